"""The causal stages in turn on a tiny model that was trained to refuse, from the command line."""

import importlib
import json
import sys

import pytest
import refuser
import torch
from safetensors.torch import load_file

from experiments import causes
from refusal_nn import loading, precision, selection
from refusal_nn.errors import ModelError
from refusal_nn.files import read_csv, read_json, read_jsonl
from refusal_nn.runs import Stage

STAGES = ("select", "baseline", "sweep", "causal", "behaviour")
FILES = {
    "select": {"candidates.csv", "directions.safetensors"},
    "baseline": {"completions.jsonl"},
    "sweep": {"sweep.csv", "completions.jsonl"},
    "causal": {"causal.csv", "completions.jsonl"},
    "behaviour": {"behaviour.csv", "behaviour_by_layer.csv"},
}
LAYERS = 6


class Bench:
    """A trained model, its prompts and results, and its command line."""

    def __init__(self, root):
        self.root = root
        refuser.write_prompts(root / "prompts.csv", 64)
        refuser.train(root / "model", refuser.write_prompts(root / "train.csv", 400, seed=1))

    def run(self, stage, *arguments, results="results"):
        options = ["--model", str(self.root / "model"), "--n", "64", "--dtype", "float32"]
        options += ["--device", "cpu", "--prompts", str(self.root / "prompts.csv")]
        options += ["--results", str(self.root / results), "--figures", str(self.root / "figures")]
        own = {"capture": [], "validate": ["--permutations", "100"]}
        causal = ["--tokens", "16", "--controls", "2", "--val", "8", "--layers", "4"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [stage, *options, *own.get(stage, causal), *arguments])
            importlib.import_module(f"experiments.{stage}").main()
        [folder] = (self.root / results).iterdir()
        return folder / stage

    def summary(self, stage):
        [folder] = (self.root / "results").iterdir()
        return read_json(folder / stage / "summary.json")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("refuser"))
    for stage in ("capture", "validate", *STAGES):
        made.run(stage)
    return made


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_writes_its_files_and_draws_and_shows(bench, stage, capsys):
    [folder] = (bench.root / "results").iterdir()
    Stage(folder / stage).verify()
    names = {p.name for p in (folder / stage).iterdir()} - {".lock"}
    kept = {"direction.safetensors"} if stage == "select" else set()
    assert names - kept == FILES[stage] | {"settings.json", "manifest.json", "summary.json"}
    bench.run(stage, "--draw")
    bench.run(stage, "--show")
    assert capsys.readouterr().out.strip()


def test_the_model_refuses_and_select_filters_by_it(bench):
    rates = bench.summary("baseline")["refusal"]
    assert rates["test.harmful"]["refusal"] > 0.8 > 0.2 > rates["test.harmless"]["refusal"]
    counts = {(r["split"], r["class"]): r for r in bench.summary("select")["counts"]}
    assert counts["val", "harmful"]["used"] == 8
    assert 26 <= counts["fit", "harmful"]["used"] <= counts["fit", "harmful"]["n"] == 32


def test_every_layer_and_post_instruction_position_is_a_candidate(bench):
    [folder] = (bench.root / "results").iterdir()
    rows = read_csv(folder / "select" / "candidates.csv")
    positions = sorted({r["pos"] for r in rows})
    assert positions == list(range(-len(positions), 0))
    places = [(layer, pos) for layer in range(LAYERS) for pos in positions]
    assert sorted((r["layer"], r["pos"]) for r in rows) == places


def test_adding_and_subtracting_the_direction_decides_refusal_and_random_ones_do_less(bench):
    [folder] = (bench.root / "results").iterdir()
    rows = {
        (r["intervention"], r["source_layer"]): r
        for r in read_csv(folder / "causal" / "causal.csv")
    }
    away, towards = rows["add -1", 4], rows["add +1", 4]
    assert away["compliance"] > 0.8
    assert away["over_controls_low"] > 0.2
    assert towards["refusal"] > 0.8
    assert towards["over_controls_low"] > 0.2


def test_the_verdict_rests_on_numbers_that_can_be_recounted_from_the_rows(bench):
    [folder] = (bench.root / "results").iterdir()
    about, test = bench.summary("sweep"), bench.summary("sweep")["test"]
    before = [
        r
        for r in read_jsonl(folder / "baseline" / "completions.jsonl")
        if r["set"] == "test.harmful"
    ]
    refused = {r["id"] for r in before if r["label"] == "refusal"}
    rows = [r for r in read_jsonl(folder / "sweep" / "completions.jsonl") if r["split"] == "test"]
    best = [r for r in rows if r["arm"] == "best" and r["id"] in refused]
    assert test["baseline_refusal"]["value"] == len(refused) / len(before)
    assert test["compliance"]["n"] == len(best) == len(refused)
    assert test["compliance"]["value"] == sum(r["label"] == "compliance" for r in best) / len(best)
    random = [r for r in rows if r["arm"] != "best"]
    assert len(random) == 2 * len(refused)
    # Twenty test prompts are too few for a verdict, and it says so.
    assert about["verdict"] == "UNTESTABLE"
    assert f"{len(refused)} prompts refused at baseline: fewer than 30" in about["reasons"]


def test_no_completion_is_kept_unless_asked_for(bench):
    [folder] = (bench.root / "results").iterdir()
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".csv"):
            assert "help with that" not in path.read_text()
            assert "here is a plan" not in path.read_text()


def test_kept_text_is_for_the_owner_alone_and_says_what_the_rows_say(bench):
    folder = bench.run("baseline", "--keep-text", results="kept")
    path = folder / "kept_text.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    labels = {r["id"]: r["label"] for r in read_jsonl(folder / "completions.jsonl")}
    for row in read_jsonl(path):
        if row["text"] == refuser.REFUSAL:
            assert labels[row["id"]] == "refusal"
        if row["text"].startswith(refuser.ANSWER[:60]):
            assert labels[row["id"]] == "compliance"
    assert "help with that" not in (folder / "completions.jsonl").read_text()


class Killed(Exception):
    pass


def test_a_killed_sweep_goes_on_and_ends_in_the_same_bytes(bench, monkeypatch):
    from refusal_nn.journal import Journal

    [folder] = (bench.root / "results").iterdir()
    whole = {p.name: p.read_bytes() for p in (folder / "sweep").glob("*.[cj]s*")}
    (folder / "sweep" / "summary.json").unlink()
    add, added = Journal.add, []

    def killing(self, unit, rows):
        found = add(self, unit, rows)
        added.append(unit)
        if len(added) == 2:
            raise Killed
        return found

    monkeypatch.setattr(Journal, "add", killing)
    with pytest.raises(Killed):
        bench.run("sweep")
    assert not (folder / "sweep" / "summary.json").exists()
    first = list(added)
    bench.run("sweep")
    assert not set(added[len(first) :]) & set(first)  # no unit twice
    for name in ("sweep.csv", "completions.jsonl", "summary.json"):
        assert (folder / "sweep" / name).read_bytes() == whole[name]


def test_a_model_that_does_not_refuse_ends_as_untestable_with_the_numbers(tmp_path):
    options = ["--model", "tiny-llama", "--n", "40", "--dtype", "float32", "--device", "cpu"]
    options += ["--results", str(tmp_path), "--figures", str(tmp_path / "f"), "--tokens", "4"]
    for stage in ("select", "sweep", "causal"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [stage, *options])
            importlib.import_module(f"experiments.{stage}").main()
            patch.setattr(sys, "argv", [stage, *options, "--draw"])
            importlib.import_module(f"experiments.{stage}").main()
        about = read_json(tmp_path / "tiny-llama" / stage / "summary.json")
        assert about["verdict"] == "UNTESTABLE"
        assert (
            "0 harmful prompts whose answer begins as a refusal in fit, of 20 asked"
            in about["reasons"][0]
        )
        json.dumps(about, allow_nan=False)


@pytest.fixture
def narrow(bench, monkeypatch):
    """Runs a stage as on a device that computes in bfloat16, of a model whose directions would
    turn in it; and what models bases were iterated on."""
    fitted, iterate = [], selection.iterate_directions
    monkeypatch.setattr(loading, "computes_bfloat16", lambda device: False)
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "smallness", lambda model: 1)
    monkeypatch.setattr(precision, "SAME_TEXT", 1.0)
    monkeypatch.setattr(
        selection, "iterate_directions", lambda m, *a: fitted.append(m.dtype) or iterate(m, *a)
    )
    causes._loaded.clear()
    yield (
        lambda stage, *options: bench.run(stage, "--dtype", "auto", *options, results="narrow"),
        fitted,
    )
    causes._loaded.clear()


def test_completions_and_scores_are_narrow_and_directions_exact(bench, narrow, monkeypatch):
    run, fitted = narrow
    dtypes = {}
    for stage in ("select", "baseline", "sweep", "subspace"):
        folder = run(stage, "--max-rank", "2")
        dtypes[stage] = read_json(folder / "manifest.json")["dtype"]
    half = "torch.bfloat16"
    assert dtypes == {"select": "torch.float32", "baseline": half, "sweep": half, "subspace": half}
    assert set(fitted) == {torch.float32}
    chose = read_json(folder.parent / "select" / "summary.json")
    assert chose["scored_in"] == half
    assert (
        0
        < chose["text_kl"]["kl"]
        == pytest.approx(read_json(folder.parent / "baseline" / "summary.json")["text_kl"]["kl"])
    )
    # Directions are the float32 run's, number by number.
    exact, own = (
        load_file(bench.root / of / folder.parent.name / "select" / "directions.safetensors")
        for of in ("results", "narrow")
    )
    assert torch.equal(exact["directions"], own["directions"])
    monkeypatch.setattr(precision, "smallness", lambda model: 2)
    causes._loaded.clear()
    with pytest.raises(ModelError, match=r"its baseline completed in torch\.bfloat16"):
        run("sweep", "--controls", "3")
