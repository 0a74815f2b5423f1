"""The whole pipeline on a prompt set of one's own: small, oddly numbered, or too small."""

import contextlib
import json
import sys

import pytest

from experiments import similarity, validate
from refusal_nn.errors import InputError
from refusal_nn.files import read_json


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Validate these rows with a tiny model, and return the stage's folder."""

    def run(rows, stage=validate):
        (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        options = ["--model", "tiny-llama", "--dtype", "float32", "--device", "cpu"]
        options += ["--prompts", str(tmp_path / "p.jsonl"), "--results", str(tmp_path)]
        few = ["--permutations", "100"] if stage is validate else []
        monkeypatch.setattr(sys, "argv", [stage.NAME, *options, *few])
        stage.main()
        return tmp_path / "tiny-llama" / stage.NAME

    return run


def small(n, common="", pairs=False):
    """n prompts of each class, numbered from 000, that share no word but the common ones."""
    return [
        {
            "id": f"{2 * i + j:03d}",
            "prompt": f"{common} {label}{i}",
            "label": label,
            "pair": f"{i}" if pairs else None,
        }
        for i in range(n)
        for j, label in enumerate(("harmful", "harmless"))
    ]


@pytest.mark.parametrize("pairs", [True, False])
def test_six_and_six_prompts_are_enough(run, pairs):
    folder = run(small(6, pairs=pairs))
    about = read_json(folder / "summary.json")
    assert (about["n_harmful_prompts"], about["n_harmless_prompts"]) == (3, 3)
    assert any("only 6 prompts in a class" in note for note in about["compute"])
    assert read_json(run(small(6, pairs=pairs), similarity) / "summary.json")["layers"]


def test_ids_stay_in_every_table_as_they_were_given(run):
    folder = run(small(6))
    for table in (folder / "projections.csv", folder.parent / "capture" / "prompts.csv"):
        lines = table.read_text(encoding="utf-8").splitlines()[1:]
        assert {line.split(",")[0] for line in lines} == {row["id"] for row in small(6)}


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("pairs", [True, False])
def test_a_very_small_set_is_worked_on_or_refused_in_words(run, n, pairs):
    with contextlib.suppress(InputError):
        assert (run(small(n, pairs=pairs)) / "summary.json").exists()


def test_a_set_of_near_duplicates_is_refused_in_words(run):
    with pytest.raises(InputError):
        run(small(20, common="one and the same four words"))


def test_few_clusters_of_near_duplicates_are_worked_on_or_refused_in_words(run):
    rows = small(9, common="one and the same four words") + [
        row | {"id": f"b{row['id']}", "prompt": f"quite other {row['prompt']}"} for row in small(2)
    ]
    with contextlib.suppress(InputError):
        assert (run(rows) / "summary.json").exists()
