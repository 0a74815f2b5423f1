"""Options of the causal stages, what they write, and what they join: no wrong input is taken, and
no text leaks."""

import argparse
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments import causal, causes, cli
from experiments.bench import Bench, Found, _require_position, _too_few
from refusal_nn import behaviour, prompts
from refusal_nn.captured import prompt_table, write_capture
from refusal_nn.errors import InputError
from refusal_nn.files import read_jsonl, write_text
from refusal_nn.journal import Journal
from refusal_nn.prompts import Prompt
from refusal_nn.rollouts import Rollout
from refusal_nn.runs import Stage
from refusal_nn.tracing import capture

ROOT = Path(__file__).parent.parent
TEN = SimpleNamespace(n_layers=10, name="ten")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", []),
        ("0", [0]),
        ("9", [9]),
        ("3-5", [3, 4, 5]),
        ("4-4", [4]),
        ("5,1,3-5,1", [1, 3, 4, 5]),
        ("0-9", list(range(10))),
    ],
)
def test_layers_are_those_named_once_each_in_order(text, chosen):
    assert causes.layers(causes._layers(text), TEN) == chosen


@pytest.mark.parametrize(
    "text",
    ["-1", "3-", "-", "5-3", "3-5-7", "3,,5", ",", "3,", "a", "1.5", "3 5", "+3", "²", "-3-5"],
)
def test_what_names_no_layers_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="9,15,18 or 8-20"):
        causes._layers(text)


@pytest.mark.parametrize("text", ["10", "3,10", "8-10", "99999999999999999999"])
def test_layers_that_the_model_lacks_are_refused_naming_those_it_has(text):
    with pytest.raises(InputError, match="ten has layers 0 to 9"):
        causes.layers(causes._layers(text), TEN)


def test_a_range_far_beyond_the_model_is_refused_without_counting_it_out():
    tracemalloc.start()
    with pytest.raises(InputError, match="0 to 9"):
        causes.layers("0-200000", TEN)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def parsed(*arguments):
    p = cli.parser("sweep", "what it does")
    causes.options(p)
    return p.parse_args(arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--val", "0"],
        ["--val", "-3"],
        ["--tokens", "0"],
        ["--tokens", "1e2"],
        ["--controls", "0"],
        ["--alpha", "nan"],
        ["--alpha", "-0.1"],
        ["--alpha", "4.1"],
        ["--alpha", "inf"],
        ["--layers", "3-"],
        ["--keep-text=no"],
        ["--positions", "0"],
        ["--control", "3"],
    ],
)
def test_an_option_that_cannot_be_meant_is_an_input_error(wrong):
    with pytest.raises(InputError, match="--help") as caught:
        parsed(*wrong)
    assert caught.value.exit_code == 2


def test_the_options_without_any_are_those_of_the_help():
    args = parsed()
    numbers = (args.val, args.tokens, args.alpha, args.controls)
    assert (numbers, args.layers) == ((32, 100, (1.0,), 20), "")
    assert args.keep_text is False


@pytest.mark.parametrize(
    ("text", "first"), [("-1", -1), ("-1,-2", -1), ("-5,-1", -5), ("all", -1), ("-03", -3)]
)
def test_layers_are_compared_by_the_first_position(text, first):
    assert causes.first_position(parsed("--positions", text)) == first


def test_recording_the_settings_computes_nothing(tmp_path, monkeypatch):
    def computed(args):
        raise AssertionError

    options = ["select", "--settings-only", "--results", str(tmp_path), "--model", "tiny-llama"]
    monkeypatch.setattr(sys, "argv", options)
    main = causes.main("select", "x", lambda args: causes.settings(args, "val"), compute=computed)
    main()
    wanted = json.loads((tmp_path / "tiny-llama" / "select" / "settings.json").read_text())
    assert (wanted["val"], wanted["model"]) == (32, "tiny-llama")


ROWS = [
    {"arm": "clean", "id": f"p{i}", "label": "compliance", "sha256": "0", "text": text}
    | {"evidence": f"says {text}"}
    for i, text in enumerate(["first secret", "a\nb\u2028secret\x85\r\n\x1c", "", 'ä"模'])
]


def test_text_goes_only_to_the_private_file_and_comes_back_as_it_was(tmp_path):
    causes.write_rows(tmp_path, ROWS, SimpleNamespace(keep_text=True))
    public = read_jsonl(tmp_path / "completions.jsonl")
    assert [set(row) for row in public] == [{"arm", "id", "label", "sha256"}] * len(ROWS)
    assert "secret" not in (tmp_path / "completions.jsonl").read_text()
    kept = tmp_path / "kept_text.jsonl"
    assert kept.stat().st_mode & 0o777 == 0o600
    expected = [{k: v for k, v in row.items() if k != "sha256"} for row in ROWS]
    assert read_jsonl(kept) == expected


def test_without_keep_text_no_text_is_written_whatever_the_rows_hold(tmp_path):
    causes.write_rows(tmp_path, ROWS, SimpleNamespace(keep_text=False))
    assert [p.name for p in tmp_path.iterdir()] == ["completions.jsonl"]
    assert "secret" not in (tmp_path / "completions.jsonl").read_text()
    causes.write_rows(tmp_path, [], SimpleNamespace(keep_text=False))
    assert read_jsonl(tmp_path / "completions.jsonl") == []


@pytest.mark.parametrize("name", ["kept_text.jsonl", "kept_text.jsonl.corrupt", "progress.jsonl"])
@pytest.mark.parametrize("results", ["results", "out"])
def test_git_ignores_what_may_hold_completions_wherever_results_are(name, results):
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    path = f"{results}/smollm2/sweep/{name}"
    asked = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", path], check=False)
    assert asked.returncode == 0


def some_prompts(ids):
    return [
        Prompt(str(i), f"{words} number {i} please.", label, severity=1 if label == LABEL else None)
        for i, (label, words) in zip(ids, CLASSES * len(ids), strict=False)
    ]


LABEL = "harmful"
CLASSES = [(LABEL, "Break into house"), ("harmless", "Paint a fence with colour")]


@pytest.mark.parametrize("ids", [range(12), [f"{i:03}" for i in range(12)], [*"abcdefghijkl"]])
def test_projections_are_joined_with_what_was_done_whatever_the_ids_look_like(
    tiny_llama, tmp_path, ids
):
    from experiments.behaviour import _joined

    asked = some_prompts(list(ids))
    parts = {"fit": asked[:4], "val": asked[4:8], "test": asked[8:]}
    seen, done = Stage(tmp_path / "capture"), Stage(tmp_path / "baseline")
    with seen.run({}) as run:
        acts = capture(tiny_llama, [p.prompt for p in asked], groups=[p.label for p in asked])
        write_capture(run.folder, acts, tiny_llama.template, prompt_table(parts))
        run.finish({}, {})
    with done.run({}) as run:
        judged = [{"id": p.id, "label": "refusal"} for p in asked[4:]]
        lines = "".join(json.dumps(row) + "\n" for row in judged)
        write_text(run.folder / "completions.jsonl", lines)
        run.finish({}, {})
    found, rows = _joined(parsed(), seen, done)
    assert [str(row["id"]) for row in rows] == [p.id for p in asked[4:]]
    assert found.projections.shape == (tiny_llama.n_layers, 8)
    assert found.refused.all()
    assert found.harmful.tolist() == [p.label == LABEL for p in asked[4:]]
    assert len(behaviour.by_layer(found)) == tiny_llama.n_layers


@pytest.fixture
def bench(tiny_llama, tmp_path):
    """A model that refuses all harmful prompts and breaks down on all harmless ones."""
    parts = {name: prompts.load_prompts()[:24] for name in ("val", "test")}
    did = {"harmful": "refusal", "harmless": "degenerate"}
    baseline = {
        f"{name}.{label}": [{"id": p.id, "label": what} for p in causes.of_class(part, label)]
        for name, part in parts.items()
        for label, what in did.items()
    }
    directions = torch.randn(6, 8, 64, generator=torch.Generator().manual_seed(0))
    found = Found(parts, None, directions, baseline, 9.0, [], {}, "")
    journal = Journal(tmp_path / "progress.jsonl", {})
    return Bench(parsed("--tokens", "2"), found, Rollout(tiny_llama, [40], 2), journal, 1e3)


@pytest.mark.parametrize("positions", ["-9", "-9,-1"])
def test_a_position_before_the_template_is_refused_in_words(positions):
    directions = torch.zeros(6, 8, 64)
    _require_position(parsed("--positions", "-8"), directions)
    with pytest.raises(InputError, match="-1 to -8"):
        _require_position(parsed("--positions", positions), directions)


def test_a_model_that_answers_no_harmless_prompt_ends_in_words_or_in_rows(bench):
    arm = bench.ablation(3, -1, 1.0)
    site = causal.Site("ablate everywhere", "all", 3, "harmful", arm, [arm] * 4)
    if not _too_few(bench.found):
        table, rows = causal._measured(bench, [site])
        assert len(rows) == 12 * 5
        assert table[0]["n"] == 12
