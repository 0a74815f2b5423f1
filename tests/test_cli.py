"""The command line: help at once, faults as one line and an exit code, nothing heavy unasked."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli, ending
from refusal_nn.errors import InputError, ModelError

ROOT = Path(__file__).parent.parent
STAGES = ("capture", "validate", "similarity")
HEAVY = ("torch", "transformers", "nnsight", "sklearn", "scipy", "numpy", "matplotlib", "rich")
PURE = (
    "directions crossfit statistics estimates confounds findings captured prompts splits figures "
    "files runs names subspaces candidates ranks verdicts agreement"
)


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


@pytest.fixture
def ended(monkeypatch, capsys):
    """Run an experiment in this process: its exit code, and the lines it wrote to stderr."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(stage, *arguments):
        monkeypatch.setattr(sys, "argv", [stage, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.run(importlib.import_module(f"experiments.{stage}").main)
        return end.value.code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_help_names_every_option_and_imports_nothing_heavy(stage):
    code = (
        "import importlib, sys\n"
        f"module = importlib.import_module('experiments.{stage}')\n"
        "sys.argv = ['x', '--help']\n"
        "try: module.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY []\n")
    for option in ("model", "n", "seed", "dtype", "device", "prompts", "positions", "results"):
        assert f"--{option} " in done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_help_is_a_command_of_its_own(stage):
    done = python("-m", f"experiments.{stage}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m experiments.{stage}" in done.stdout


def test_the_pure_modules_need_no_nnsight():
    code = (
        "import importlib, sys\n"
        "sys.modules['nnsight'] = None\n"
        f"for name in {PURE!r}.split(): importlib.import_module(f'refusal_nn.{{name}}')\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_the_package_alone_imports_nothing_heavy_and_its_names_when_used():
    code = (
        "import sys, refusal_nn\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "assert refusal_nn.load_prompts()[0].id\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "assert refusal_nn.difference_in_means\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_no_other():
    import refusal_nn

    assert all(getattr(refusal_nn, name) is not None for name in refusal_nn.__all__)
    assert dir(refusal_nn) == refusal_nn.__all__
    with pytest.raises(AttributeError, match="abliterate"):
        refusal_nn.abliterate  # noqa: B018


# Stage, arguments, words of the message.
BAD = {
    "no prompts": ("capture", ["--n", "0"], "whole number of at least 4"),
    "too few prompts": ("capture", ["--n", "3"], "whole number of at least 4"),
    "n in words": ("capture", ["--n", "x"], "'x'"),
    "n with a fraction": ("validate", ["--n", "4.5"], "'4.5'"),
    "a negative n": ("capture", ["--n=-8"], "'-8'"),
    "a negative seed": ("capture", ["--seed=-1"], "'-1'"),
    "a position from the start": ("capture", ["--positions", "3"], "negative"),
    "position 0": ("capture", ["--positions", "0"], "negative"),
    "a position in words": ("similarity", ["--positions=-1,last"], "'-1,last'"),
    "no position": ("capture", ["--positions", ""], "negative"),
    "an unknown dtype": ("capture", ["--dtype", "int8"], "bfloat16"),
    "one fold": ("validate", ["--folds", "1"], "at least 2"),
    "few permutations": ("validate", ["--permutations", "9"], "at least 100"),
    "an unknown option": ("capture", ["--modle", "qwen"], "--modle"),
    "an abbreviated option": ("capture", ["--mod", "qwen"], "--mod"),
    "a missing prompt file": ("capture", ["--prompts", "none.jsonl"], "none.jsonl"),
    "an unknown prompt set": ("validate", ["--prompts", "advbench"], "harmful_behaviors"),
    "a missing directions file": ("similarity", ["--directions", "none.safetensors"], "none.safe"),
    "an unknown site": ("similarity", ["--site", "mlp"], "resid_pre"),
    "figures of nothing": ("validate", ["--draw"], "make validate"),
    "a heatmap of nothing": ("similarity", ["--draw"], "make similarity"),
    "tables of nothing": ("validate", ["--show"], "make validate"),
    "cosines of nothing": ("similarity", ["--show"], "make similarity"),
    "an unknown model": ("capture", ["--model", "gpt5"], "smollm2"),
    "an unknown tiny model": ("capture", ["--model", "tiny-gpt"], "tiny-llama"),
    "an unknown device": ("capture", ["--model", "tiny-llama", "--device", "tpu"], "DEVICE=tpu"),
    "a device misspelt": ("capture", ["--model", "tiny-llama", "--device", "cpu:x"], "cpu:x"),
    "a position too far": ("capture", ["--model", "tiny-llama", "--positions=-99"], "-99"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_argument_ends_with_code_2_and_one_line_that_says_what(tmp_path, ended, case):
    stage, arguments, words = BAD[case]
    code, lines = ended(stage, "--results", str(tmp_path / "results"), *arguments)
    assert code == 2
    assert words in lines[-1]
    assert len(lines) == 1


def test_a_missing_model_file_ends_with_code_3(tmp_path, ended):
    found = ended("capture", "--results", str(tmp_path), "--model", "none.gguf")
    assert found == (3, ["error: none.gguf: no such file"])


def test_results_that_cannot_be_written_end_with_code_7(tmp_path, ended):
    (tmp_path / "results").write_text("a file")
    code, lines = ended("capture", "--results", str(tmp_path / "results"), "--model", "tiny-llama")
    assert (code, len(lines)) == (7, 1)


def test_an_error_of_the_users_ends_the_command_without_a_traceback(tmp_path):
    done = python("-m", "experiments.validate", "--prompts", "none.csv", "--results", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: PROMPTS=none.csv")
    assert len(done.stderr.splitlines()) == 1


def settings_of(*arguments):
    return cli.capture_settings(cli.parser("capture", "x").parse_args(arguments))


def test_every_option_that_decides_the_activations_is_a_setting(tmp_path):
    other = tmp_path / "p.jsonl"
    other.write_text("{}")
    base = settings_of()
    for name, value in (
        ("--model", "qwen"),
        ("--n", "64"),
        ("--seed", "1"),
        ("--dtype", "float32"),
        ("--device", "cpu"),
        ("--prompts", str(other)),
        ("--positions", "all"),
    ):
        assert settings_of(name, value) != base, name
    assert settings_of("--results", "r", "--figures", "f") == base


def test_positions_can_be_given_as_the_help_says():
    assert settings_of("--positions", "-1,-2") == settings_of("--positions=-1,-2")


def test_positions_said_in_two_ways_are_one_setting():
    assert settings_of("--positions= -1,-02,-1") == settings_of("--positions=-1,-2")


def test_a_prompt_file_or_model_file_that_changes_is_another_setting(tmp_path):
    prompts, model = tmp_path / "p.jsonl", tmp_path / "m.gguf"
    prompts.write_text("{}")
    model.write_text("x")
    before = settings_of("--prompts", str(prompts), "--model", str(model))
    assert settings_of("--prompts", str(prompts), "--model", str(model)) == before
    prompts.write_text("{} ")
    changed = settings_of("--prompts", str(prompts), "--model", str(model))
    assert changed != before
    model.write_text("xy")
    assert settings_of("--prompts", str(prompts), "--model", str(model)) != changed


@pytest.mark.parametrize("name", ["m" * 400, "~nobody-of-this-name/model", "a\nb", "", "/"])
def test_a_model_name_that_no_file_can_have_is_still_only_a_name(name):
    assert settings_of("--model", name)["model_file"] is None


@pytest.mark.parametrize("name", ["p" * 400, "~nobody-of-this-name/p.jsonl", "none.csv", ",", "="])
def test_a_prompt_file_that_cannot_be_is_refused(name):
    with pytest.raises(InputError):
        settings_of("--prompts", name)


def test_an_interruption_ends_with_130_and_a_closed_pipe_without_a_word():
    code = "from experiments import cli\ndef main(): {}\ncli.run(main)"
    interrupted = python("-c", code.format("raise KeyboardInterrupt"))
    assert interrupted.returncode == 130
    assert "Traceback" not in interrupted.stderr
    assert len(interrupted.stderr.splitlines()) == 1
    closed = python("-c", code.format("raise BrokenPipeError"))
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_request_to_end_ends_with_143():
    code = (
        "import os, signal\nfrom experiments import cli\ncli.run(lambda: os.kill(os.getpid(), 15))"
    )
    assert python("-c", code).returncode == 143


INTERRUPTED = """
import os, signal
from experiments import cli, ending
# A shell starts background jobs with SIGINT ignored, this suite among them.
signal.signal(signal.SIGINT, signal.default_int_handler)
# In the midst of an eval, as of a named tuple being made: then Python itself would end by SIGINT.
cli.run(lambda: eval("os.kill(os.getpid(), signal.{name})"))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_ends_in_one_line_and_its_code(tmp_path, name, code):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED.format(name=name))
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.splitlines()) == (code, [ending.GOES_ON])


def test_directions_of_other_weights_or_of_another_template_are_not_used():
    from experiments.bench import require_same

    now = {"model": "m", "revision": "abc", "template_sha256": "1"}
    require_same(now, now)
    for then in (now | {"revision": "abd"}, now | {"template_sha256": "2"}, {}):
        with pytest.raises(ModelError, match="RESULTS="):
            require_same(then, now)


@pytest.mark.parametrize("error", ["MemoryError()", "torch.OutOfMemoryError('too much')"])
def test_running_out_of_memory_ends_in_one_line_and_code_6(error):
    script = f"import torch\nfrom experiments import cli\ndef f(): raise {error}\ncli.run(f)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
