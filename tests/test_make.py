"""The Makefile itself: what runs again, what does not, and that no name is taken for a command."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_nn.names import safe_name

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "refusal_nn" / "figures.py"
VARIABLES = ["MODEL", "N", "SEED", "DTYPE", "DEVICE", "PROMPTS", "POSITIONS", "PERMUTATIONS"]
VARIABLES += ["DIRECTIONS", "RESULTS", "VAL", "TOKENS", "ALPHA", "LAYERS", "CONTROLS", "JUDGE"]
VARIABLES += ["KEEP_TEXT", "SYSTEM"]
INHERITED = {*VARIABLES, "FIGURES", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
SMALL = {"MODEL": "tiny-llama", "N": "40", "DTYPE": "float32", "PERMUTATIONS": "100"}


def make(target, results, **variables):
    """make in the repository, as from a clean shell, with this interpreter, installing nothing."""
    given = SMALL | {"RESULTS": str(results), "PY": sys.executable, "PYTHON": sys.executable}
    return subprocess.run(
        [
            "make",
            "--old-file=.venv/.installed",
            *target.split(),
            *(f"{name}={value}" for name, value in (given | variables).items()),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in INHERITED}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results and figures of one `make validate`; not to be changed."""
    results = tmp_path_factory.mktemp("made") / "results"
    done = make("validate", results)
    assert done.returncode == 0, done.stderr
    return results


@pytest.fixture
def copied(made, tmp_path):
    """A copy of them, times and all."""
    return shutil.copytree(made, tmp_path / "copied")


def times(results):
    return {
        str(path.relative_to(results)): path.stat().st_mtime_ns
        for path in results.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def changed(results, before):
    after = times(results)
    return {name for name in after | before if after.get(name) != before.get(name)}


def test_one_command_makes_tables_and_figures(made):
    stages = {path.parent.name for path in made.glob("tiny-llama/*/summary.json")}
    assert stages == {"capture", "validate", "similarity"}
    assert len(list(made.glob("figures/tiny-llama/**/*.png"))) == 4 + 6


def test_a_second_make_runs_no_stage_and_draws_nothing(copied):
    before = times(copied)
    done = make("validate", copied)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert "up to date" in done.stdout
    assert changed(copied, before) == set()


def test_an_edit_of_the_figures_only_draws(copied):
    before, stamp = times(copied), FIGURES.stat()
    try:
        FIGURES.touch()
        done = make("validate", copied)
    finally:
        os.utime(FIGURES, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert done.returncode == 0, done.stderr
    drawn = {name for name in before if name.startswith("figures/")}
    assert changed(copied, before) == drawn


def test_another_n_captures_again(copied):
    before = times(copied)
    done = make("capture", copied, N="41")
    assert done.returncode == 0, done.stderr
    folder = "tiny-llama/capture"
    assert {f"{folder}/{name}" for name in ("activations.safetensors", "summary.json")} <= changed(
        copied, before
    )
    manifest = json.loads((copied / folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["n"] == 41
    before = times(copied)
    assert make("capture", copied, N="41").returncode == 0
    assert changed(copied, before) == set()


def test_the_tables_of_a_finished_run_can_be_shown_again(copied):
    before = times(copied)
    done = make("show", copied)
    assert done.returncode == 0, done.stderr
    assert "tiny-llama: harmful against harmless, 20 + 20 fit prompts" in done.stdout
    assert changed(copied, before) == set()


def test_a_report_is_made_of_what_is_there_whatever_the_settings_and_computes_nothing(copied):
    before = times(copied)
    first = make("report", copied, N="77")
    assert first.returncode == 0, first.stderr
    assert changed(copied, before) == {"tiny-llama/report.html"}
    page = (copied / "tiny-llama" / "report.html").read_text(encoding="utf-8")
    assert "make sweep MODEL=tiny-llama N=40 DTYPE=float32" in page
    before = times(copied)
    again = make("report", copied)
    assert "up to date" in again.stdout
    assert changed(copied, before) == set()


def test_a_report_on_nothing_ends_in_one_line_with_what_to_run_first(tmp_path):
    done = make("report", tmp_path / "results", MODEL="it's")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert "holds no finished stage to report; run `make all MODEL='it'\"'\"'s'" in said[0]


@pytest.mark.parametrize(
    "name",
    [
        "it's",
        'say "{mark}"',
        "x; touch {mark}",
        "x' ; touch {mark} ; '",
        'x" ; touch {mark} ; "',
        "`touch {mark}`",
        "x & touch {mark} & y",
        "x | tee {mark}",
        "x > {mark}",
        "a b",
        "--help",
        "*",
        "# no comment",
        "модель",
    ],
)
def test_a_model_name_is_a_name_and_no_command(tmp_path, name):
    given = name.format(mark=tmp_path / "mark")
    settings = tmp_path / "results" / safe_name(given) / "capture" / "settings.json"
    done = make(str(settings), tmp_path / "results", MODEL=given)
    assert done.returncode == 0, done.stderr
    assert json.loads(settings.read_text(encoding="utf-8"))["model"] == given
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("name", ["$(shell touch {mark})", "$(touch {mark})", "$$(touch {mark})"])
def test_a_dollar_in_a_model_name_runs_nothing(tmp_path, name):
    make("show", tmp_path / "results", MODEL=name.format(mark=tmp_path / "mark"))
    assert not (tmp_path / "mark").exists()


def test_published_directions_need_no_model(tmp_path):
    path = ROOT / "tests" / "data" / "gemma-2b-it_pos-1.safetensors"
    done = make("similarity", tmp_path / "results", DIRECTIONS=str(path))
    assert done.returncode == 0, done.stderr
    assert "late half 0.630 (0.584 without the diagonal)" in done.stdout
    assert (tmp_path / "results" / "figures" / path.stem / "heatmap.png").exists()


def test_an_unknown_model_ends_in_one_line_that_says_what_is_known(tmp_path):
    done = make("capture", tmp_path / "results", MODEL="it's not there")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert said[0].startswith('error: unknown model "it\'s not there"; choose one of smollm2')


def test_results_with_a_space_are_refused_at_once(tmp_path):
    done = make("validate", f"{tmp_path}/two words")
    assert done.returncode == 2
    assert "RESULTS must be one path without spaces" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_target_and_variable(tmp_path):
    done = make("help", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("validate", "similarity", "capture", "report", "show", "test", "lint", "clean"):
        assert f"make {word}" in done.stdout
    for name in VARIABLES:
        assert f"{name}=" in done.stdout, name


def imported(done):
    """Modules that any process of a make imported under PYTHONPROFILEIMPORTTIME."""
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_all_chains_every_stage_and_a_second_time_runs_no_pass_in_less_than_5_s(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    first = make("all", tmp_path / "results", TOKENS="2", VAL="4")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "results" / "tiny-llama"
    order = ["capture", "validate", "select", "baseline", "sweep"]
    order += ["causal", "behaviour", "subspace"]
    stamps = {name: folder / name / "summary.json" for name in order}
    written = [stamps[name].stat().st_mtime_ns for name in order]
    assert written == sorted(written)
    # A random model refuses nothing: that is said, not computed.
    assert json.loads(stamps["sweep"].read_text())["verdict"] == "UNTESTABLE"
    assert "UNTESTABLE" in first.stdout
    before, used = times(tmp_path / "results"), processor_seconds()
    second = make("all", tmp_path / "results", TOKENS="2", VAL="4")
    assert second.returncode == 0
    # The time that it takes where nothing else runs, as this suite does.
    assert processor_seconds() - used < 5
    assert times(tmp_path / "results") == before
    # Without torch no model is loaded, and no pass is run.
    assert "torch" in imported(first)
    assert "argparse" in imported(second)
    assert not {"torch", "nnsight", "numpy"} & imported(second)
    planned = make("-n all", tmp_path / "results", TOKENS="3", VAL="4").stdout
    assert "experiments.baseline" in planned


def test_a_setting_of_the_completions_leaves_what_stands_before_them(tmp_path):
    settings = {"TOKENS": "2", "VAL": "4"}
    assert make("select", tmp_path / "results", **settings).returncode == 0
    before = times(tmp_path / "results")
    changed = make("select", tmp_path / "results", **settings | {"TOKENS": "3", "CONTROLS": "7"})
    assert changed.returncode == 0, changed.stderr
    assert times(tmp_path / "results") == before
