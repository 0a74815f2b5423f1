"""The subspace stage from the command line, on planted models whose rank is known."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch

from experiments import against
from refusal_nn import planted
from refusal_nn.errors import InputError
from refusal_nn.files import read_csv, read_json, read_jsonl, write_tensors
from refusal_nn.journal import Journal
from refusal_nn.prompts import load_prompts
from refusal_nn.runs import Stage

ALWAYS = {"settings.json", "summary.json", "verdict.json"}
TABLES = {f"{n}.csv" for n in ("screened", "candidates", "rank_curve", "spectrum", "angles")}
TABLES |= {"completions.jsonl", "basis.safetensors", "bases.safetensors"}
DRAWN = ("spectrum", "rank_curve", "angles")
FIGURES = {"subspace.json", *(f"{name}.{kind}" for name in DRAWN for kind in ("png", "svg"))}
SMALL = {"n": 104, "dtype": "float32", "device": "cpu", "tokens": 12, "controls": 2, "val": 12}
SMALL |= {"layers": 3, "max-rank": 3}


class Chain:
    """Prompts, results and the command line of the stage on a planted model."""

    def __init__(self, root, model, prompts):
        self.root, self.model, self.prompts = root, model, prompts
        self.results = root / "results"

    def run(self, *arguments, **options):
        paths = {"prompts": self.prompts, "figures": self.root / "figures"}
        given = SMALL | paths | {"model": self.model, "results": self.results} | options
        words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["subspace", *words, *arguments])
            importlib.import_module("experiments.subspace").main()
        return self

    @property
    def folder(self):
        return self.results / self.model / "subspace"

    def json(self, name="verdict"):
        return read_json(self.folder / f"{name}.json")

    def rows(self, name):
        return read_csv(self.folder / f"{name}.csv")

    def copied(self, root):
        """The same results in another place, to be changed."""
        made = Chain(root, self.model, self.prompts)
        shutil.copytree(self.results, made.results)
        return made


def chain(k, **options):
    @pytest.fixture(scope="module")
    def made(tmp_path_factory):
        root = tmp_path_factory.mktemp(f"planted{k}")
        planted.write_prompts(root / "prompts.csv", SMALL["n"])
        return Chain(root, f"planted-{k}", root / "prompts.csv").run(**options)

    return made


none, one, two = chain(0), chain(1, max_rank=2), chain(2)


def contents(folder):
    """Of every file by name but the manifest, which has the time of day."""
    files = [p for p in folder.iterdir() if p.name not in (".lock", "manifest.json")]
    return {p.name: p.read_bytes() for p in files}


def test_two_planted_directions_are_rank_two_and_not_one_direction(two):
    verdict = two.json()
    assert verdict["rank"]["label"] == "rank 2 [2, 2]"
    assert verdict["single_direction"]["verdict"] != "YES"
    known = verdict["planted"]
    assert known["rank"] == len(known["angles"]) == 2
    assert max(known["angles"]) < 25 < known["direction_angle"][0]


def test_one_planted_direction_is_rank_one_and_yes(one):
    verdict = one.json()
    assert (verdict["rank"]["label"], verdict["rank"]["rank"]) == ("rank 1 [1, 1]", 1)
    assert verdict["single_direction"]["verdict"] == "YES"
    assert max(*verdict["planted"]["angles"], *verdict["planted"]["direction_angle"]) < 25


def test_a_model_that_refuses_nothing_is_untestable_and_make_finds_its_stamps(none, capsys):
    assert set(contents(none.folder)) == ALWAYS
    assert none.json()["rank"]["verdict"] == none.json("summary")["verdict"] == "UNTESTABLE"
    assert none.json()["single_direction"]["verdict"] == "UNTESTABLE"
    none.run("--draw").run("--show")
    assert (none.root / "figures" / none.model / "subspace.json").is_file()
    assert "UNTESTABLE" in capsys.readouterr().out


def test_it_writes_its_files_draws_and_shows_without_the_model(two, capsys, monkeypatch):
    Stage(two.folder).verify()
    assert set(contents(two.folder)) == ALWAYS | TABLES
    assert two.json("summary")["label"] == two.json()["rank"]["label"]
    json.dumps(two.json(), allow_nan=False)
    monkeypatch.setattr("experiments.causes.load", None)
    two.run("--draw").run("--show")
    assert set(contents(two.root / "figures" / two.model)) == FIGURES
    said = capsys.readouterr().out
    assert "rank 2" in said
    assert not any(p.prompt in said for p in load_prompts(str(two.prompts)))


def test_every_construction_is_tried_at_the_layers_asked_for_within_its_rank(two):
    rows = two.rows("candidates")
    iterated = f"iterative {two.json()['single_direction']['best']['layer']}"
    fitted = {"prompts 3", "categories 3", "clusters 3", "layers", "best layers"}
    ranks = {name: [r["rank"] for r in rows if r["name"] == name] for name in fitted | {iterated}}
    assert sum(map(len, ranks.values())) == len(rows)
    assert ranks["prompts 3"] == [1, 2, 3]
    assert ranks["layers"] == [1]  # there is one layer
    assert all(0 <= r["refused"] <= 1 and r["kl"] >= 0 for r in rows)


def test_the_single_direction_itself_is_among_those_compared(two):
    """So that no basis can be said to need more dimensions than a direction that is enough."""
    best = two.json()["single_direction"]["best"]
    val = [r for r in two.rows("rank_curve") if r["split"] == "val" and r["rank"] == 1]
    [mine] = [r for r in val if r["construction"] == "iterative"]
    swept = read_csv(two.results / two.model / "sweep" / "sweep.csv")
    [theirs] = [r for r in swept if (r["layer"], r["pos"]) == (best["layer"], best["pos"])]
    assert mine["layer"] == best["layer"]
    assert mine["compliance"] == theirs["compliance"]
    assert mine["kl"] == pytest.approx(theirs["kl"], rel=1e-3, abs=1e-7)


def test_the_curve_on_test_can_be_recounted_from_the_completions(two):
    rows = [r for r in read_jsonl(two.folder / "completions.jsonl") if r["split"] == "test"]
    test = [r for r in two.rows("rank_curve") if r["split"] == "test"]
    assert [r["rank"] for r in test] == [1, 2, 3]
    for row in test:
        arm = [r for r in rows if r["arm"] == f"{row['name']} rank {row['rank']}"]
        complied = [r["label"] == "compliance" and r["coherence"] > 0 for r in arm]
        assert row["n"] == len(arm) >= 30
        assert row["compliance"] == pytest.approx(np.mean(complied))
        random = [r for r in rows if r["arm"].endswith(f"rank {row['rank']}")]
        random = [r["label"] == "compliance" for r in random if r["arm"].startswith("random")]
        assert row["controls_n"] == len(random) == 2 * len(arm)
        assert row["controls_compliance"] == pytest.approx(np.mean(random))
        assert row["controls_coherence"] == 1
    assert not any("text" in r for r in rows)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_in_the_bytes_of_one_that_was_not(two, tmp_path, monkeypatch):
    made = two.copied(tmp_path)
    (made.folder / "summary.json").unlink()
    add, added = Journal.add, []

    def killing(self, unit, rows):
        found = add(self, unit, rows)
        added.append(unit)
        if len(added) == 5:
            raise Killed
        return found

    monkeypatch.setattr(Journal, "add", killing)
    with pytest.raises(Killed):
        made.run()
    assert not (made.folder / "summary.json").exists()
    first = list(added)
    made.run()
    assert len(added) > len(first)
    assert not set(added[len(first) :]) & set(first)  # no unit twice
    assert contents(made.folder) == contents(two.folder)


def test_other_settings_compute_again_and_leave_the_stages_before(two, tmp_path):
    made = two.copied(tmp_path)
    before = (made.folder.parent / "sweep" / "summary.json").stat().st_mtime_ns
    made.run(max_rank=1)
    assert (made.folder.parent / "sweep" / "summary.json").stat().st_mtime_ns == before
    assert {r["rank"] for r in made.rows("rank_curve")} == {1}
    found = made.json()["rank"]
    assert (found["up_to"], found["rank"]) == (1, None)
    assert found["label"] == "not linearly accessible up to 1"
    made.run("--draw").run("--show")


def test_one_control_and_a_rank_beyond_what_there_is_go_as_far_as_they_go(two, tmp_path):
    made = two.copied(tmp_path).run(controls=1, max_rank=5)
    test = [r for r in made.rows("rank_curve") if r["split"] == "test"]
    assert all(r["controls_n"] == r["n"] for r in test)
    most = {r["construction"]: r["rank"] for r in made.rows("candidates")}
    assert (most["prompts"], most["layers"]) == (5, 1)
    assert made.json()["rank"]["rank"] == 2


def test_another_runs_basis_gives_angles_as_wide_as_its_rank(one, two, tmp_path):
    layers = torch.zeros(5, planted.WIDTH)
    layers[2] = planted.truth(2).basis[0]
    write_tensors(tmp_path / "a" / "b" / "published.safetensors", {"directions": layers}, {})
    paths = [one.folder / "basis.safetensors", tmp_path / "a" / "b" / "published.safetensors"]
    made = two.copied(tmp_path / "again")
    made.run(against=",".join(map(str, paths)))
    own = made.json()["construction"]
    of = {}
    for r in made.rows("angles"):
        if r["a"].startswith(own):
            of.setdefault(r["b"], []).append(r["degrees"])
    # The other model's is of rank 1 although its file holds more; the layer without any is passed.
    assert len(of["planted-1/basis"]) == len(of["a/published"]) == 1
    assert of["a/published"][0] < 25
    taken = made.json()["against"]
    assert "a basis of rank 1" in taken["planted-1/basis"]
    assert "layer 0 has none" in taken["a/published"]
    made.run("--draw").run("--show")


UNUSABLE = {
    "64 wide, this model 128": {"basis": torch.eye(2, 64)},
    "all zero": {"basis": torch.zeros(2, 128)},
    "several tensors, a, b": {"a": torch.ones(2, 128), "b": torch.zeros(2, 128)},
}


@pytest.mark.parametrize("words", [*UNUSABLE, "cannot be read"])
def test_what_there_are_no_angles_with_is_one_clear_error(tmp_path, words):
    path = tmp_path / "other.safetensors"
    path.write_text("no tensors")
    if words in UNUSABLE:
        write_tensors(path, UNUSABLE[words], {})
    with pytest.raises(InputError, match=words) as caught:
        against.read(f"{path}", 128, 3)
    assert "\n" not in str(caught.value)


def test_a_wrong_file_costs_nothing_that_was_done(two, tmp_path):
    made = two.copied(tmp_path)
    with pytest.raises(InputError, match="is no file"):
        made.run(against=tmp_path / "missing.safetensors")
    assert contents(made.folder) == contents(two.folder)
    write_tensors(tmp_path / "narrow.safetensors", {"basis": torch.eye(2, 64)}, {})
    with pytest.raises(InputError, match="64 wide, this model 128"):
        made.run(against=tmp_path / "narrow.safetensors")
