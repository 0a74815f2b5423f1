"""What this package never does: run code out of files, obey text, keep secrets or completions."""

import ast
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import cli, console
from refusal_nn import figures, jobs
from refusal_nn.errors import InputError, ModelError, RefusalNNError
from refusal_nn.loading import load
from refusal_nn.plain_text import visible
from refusal_nn.tiny import build

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("refusal_nn/**/*.py"), *ROOT.glob("experiments/**/*.py")]
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ERRORS = ["UnpicklingError"]
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("os", "system"), ("os", "popen")}


def dangers(source):
    """Line and kind of all in a source that could run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            own = [a.name for a in node.names]
            # The name of an error runs nothing.
            names = own + ([getattr(node, "module", None) or ""] if own != ERRORS else [])
            found = {name.partition(".")[0] for name in names} & MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found = {node.func.id} & BUILT_IN
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = getattr(node.func.value, "id", "")
            kept = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            numbers_only = kept.get("weights_only") is True or kept.get("allow_pickle") is False
            found = set() if numbers_only else {(owner, node.func.attr)} & CALLS
        elif isinstance(node, ast.keyword):
            trusted = node.arg in ("trust_remote_code", "allow_pickle", "shell")
            found = {node.arg} if trusted and getattr(node.value, "value", True) else set()
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            said = {getattr(k, "value", ""): getattr(v, "value", True) for k, v in pairs}
            found = {k for k in ("trust_remote_code", "allow_pickle") if said.get(k, False)}
        else:
            continue
        yield from ((node.lineno if hasattr(node, "lineno") else 0, name) for name in found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_source_can_run_what_a_file_holds(path):
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import cloudpickle as c",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=asked)",
        "from pickle import UnpicklingError, loads",
        "np.load(path)",
        "np.load(path, allow_pickle=asked)",
        "load(path, allow_pickle=True)",
        "load(name, trust_remote_code=True)",
        "load(name, trust_remote_code=asked)",
        "options = {'trust_remote_code': True}",
        "subprocess.run(words, shell=True)",
        "os.system(words)",
    ],
)
def test_the_search_for_dangers_finds_each(source):
    assert list(dangers(source))


class Canary:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_pickled_weights_are_refused_unrun(tmp_path):
    model, tokenizer = build("qwen2")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    mark = tmp_path / "ran"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Canary(mark)}))
    with pytest.raises(ModelError, match="safetensors"):
        load(str(tmp_path))
    assert not mark.exists()
    pickle.loads((tmp_path / "pytorch_model.bin").read_bytes())
    assert mark.exists()  # the canary does sing


HOSTILE = {
    "an escape": "\x1b[2J\x1b]0;owned\x07",
    "a C1 control": "\x9b31m",
    "a carriage return": "safe\rowned",
    "a backspace": "ab\b\b",
    "text that runs backwards": "a\u202eb\u2066",
    "an Arabic letter mark": "a\u061cb",
    "half a surrogate pair": "a\udc80",
}
MARKUP = ["[bold red]x[/]", "[link=http://a.b]x[/link]", ":bomb:", "[/]", "\\[bold]x", "[@click=x]"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_a_terminal_shows_hostile_text_and_does_not_obey_it(text, capsys, monkeypatch):
    console.say(f"id {text}")
    console.table(f"title {text}", ["name", text], [[text, text]])
    console.sheet(f"title {text}", ["name", text], [[text, text]])

    def fail():
        raise InputError(text)

    with pytest.raises(SystemExit):
        cli.run(fail)
    printed = "".join(capsys.readouterr())
    assert not set("\x1b\x9b\r\b\x07\u202e\u2066\u061c\udc80") & set(printed)
    assert printed.count(visible(text)) == 10


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_printed_as_it_stands(text, capsys):
    console.say(text)
    console.table("t", ["name"], [[text]])
    console.sheet("t", ["name"], [[text]])
    assert capsys.readouterr().out.count(text) == 3


@given(st.text(st.characters(exclude_categories=())))
def test_visible_text_can_be_printed_and_plain_text_is_left_alone(text):
    shown = visible(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    shown.encode()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("text", [r"$\frac{1}{0}$", "$x", r"\undefined", "a_b^c$$", r"$\int$"])
def test_a_label_with_dollars_is_drawn_as_text(text, tmp_path):
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(figures.style()):
        figure = Figure()
        axes = figure.subplots()
        axes.plot(np.arange(2), label=text)
        axes.set(title=text, xlabel=text)
        axes.set_xticks([0, 1], [text, text])
        axes.legend()
    figures.save(figure, tmp_path / "f.svg")
    assert (tmp_path / "f.svg").stat().st_size > 1000


CANARIES = {"HF_TOKEN": "hf_canary0123456789abcdef", "NDIF_API_KEY": "ndif-canary-0123456789"}


def experiment(stage, root, *more):
    words = ["--model", "tiny-llama", "--n", "20", "--dtype", "float32", "--device", "cpu"]
    words += ["--results", str(root / "results"), "--figures", str(root / "figures"), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [stage, *words])
        importlib.import_module(f"experiments.{stage}").main()


def everything(root):
    return b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())


def test_no_secret_is_in_any_artefact_message_or_error(tmp_path, monkeypatch, capsys):
    for name, canary in CANARIES.items():
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("NDIF_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(jobs, "WAITS", ())
    experiment("capture", tmp_path)
    with pytest.raises(RefusalNNError) as caught:
        experiment("capture", tmp_path, "--backend", "ndif", "--dtype", "auto", "--device", "auto")
    seen = everything(tmp_path) + "".join([*capsys.readouterr(), str(caught.value)]).encode()
    assert b"tiny-llama" in seen
    for canary in CANARIES.values():
        assert canary.encode() not in seen


@pytest.mark.parametrize("keep", [False, True])
def test_completions_are_kept_only_where_asked_and_for_the_owner_alone(tmp_path, capsys, keep):
    model, said = load("tiny-llama", dtype="float32"), []
    from refusal_nn import rollouts

    whole = rollouts.generate_scored

    def heard(*args, **options):
        found = whole(*args, **options)
        said.extend(c.text for c in found[0] if len(c.text.strip()) > 12)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "generate_scored", heard)
        more = ["--tokens", "12", *(["--keep-text"] if keep else [])]
        experiment("baseline", tmp_path, *more)
        experiment("baseline", tmp_path, *more, "--show")
    assert said
    assert model.name == "tiny-llama"
    printed = "".join(capsys.readouterr())
    kept = list(tmp_path.rglob("kept_text.jsonl"))
    others = [p for p in tmp_path.rglob("*") if p.is_file() and p not in kept]
    seen = printed + "".join(p.read_text(encoding="utf-8", errors="replace") for p in others)
    assert not any(text in seen or ascii(text)[1:-1] in seen for text in said)
    assert len(kept) == keep
    for path in kept:
        assert path.stat().st_mode & 0o777 == 0o600
        inside = ROOT / "results" / "m" / "sweep" / path.name
        ignored = ["git", "check-ignore", "-q", str(inside.relative_to(ROOT))]
        assert subprocess.run(ignored, cwd=ROOT, env=os.environ).returncode == 0
