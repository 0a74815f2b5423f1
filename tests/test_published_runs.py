"""Run folders of the published pipeline: read without a model, and without running anything."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_published import ROWS, Canary

from experiments import against, similarity
from refusal_nn.errors import InputError
from refusal_nn.files import read_csv, read_json
from refusal_nn.published import read_directions, read_run

GRIDS = Path(__file__).parent / "data" / "published_grids.json"
CHOSEN = {"pos": -2, "layer": 10}


def run_folder(root, means=True, flat=False):
    """gemma-2b-it's grid and choice as the pipeline writes them; its directions made up."""
    published = json.loads(GRIDS.read_text())["gemma-2b-it"]
    names = ("position", "layer", "refusal_score", "steering_score", "kl_div_score")
    grid = [dict(zip(names, row, strict=True)) for row in published["grid"]]
    folder = root / "gemma-2b-it"
    paths = [folder / ("" if flat else sub) for sub in ("generate_directions", "select_direction")]
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
    (paths[1] / "direction_evaluations.json").write_text(json.dumps(grid))
    (folder / "direction_metadata.json").write_text(json.dumps(published["selected"]))
    if means:
        table = torch.randn(5, 18, 8, dtype=torch.float64, generator=torch.manual_seed(0))
        table[:, 0] = 0
        torch.save(table, paths[0] / "mean_diffs.pt")
        torch.save(table[-2, 10], folder / "direction.pt")
    return folder


@pytest.mark.parametrize("flat", [False, True])
def test_a_published_run_folder_gives_its_directions_scores_and_choice(tmp_path, flat):
    run = read_run(run_folder(tmp_path, flat=flat))
    assert run.directions.shape == (5, 18, 8)
    assert (len(run.grid), run.n_layers, run.chosen) == (90, 18, CHOSEN)
    assert {"pos", "layer", "ablated", "added", "kl"} == set(run.grid[0])


@pytest.mark.parametrize("means", [True, False])
def test_similarity_spectrum_and_selection_work_on_a_run_folder_without_a_model(
    tmp_path, monkeypatch, capsys, means
):
    folders = ["--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]
    folder = run_folder(tmp_path, means)
    monkeypatch.setattr(sys, "argv", ["similarity", "--directions", str(folder), *folders])
    similarity.main()
    results = tmp_path / "results" / "gemma-2b-it"
    said = read_json(results / "select" / "summary.json")
    assert said["chosen"] == said["published"] == CHOSEN
    assert said["passing"] == 13  # as counted in the published files
    assert len(read_csv(results / "select" / "candidates.csv")) == 90
    assert (
        "our rule layer 10, pos -2, published layer 10, pos -2: the same" in capsys.readouterr().out
    )
    assert (results / "similarity").exists() == means
    if means:
        shares = [row["share"] for row in read_csv(results / "similarity" / "spectrum.csv")]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)


def test_against_takes_a_run_folder_and_its_rows_by_what_leaves_the_block(tmp_path):
    folder = run_folder(tmp_path)
    [other] = against.read(str(folder), 8, 18)
    assert other.layers == tuple(range(17))
    table = torch.load(folder / "generate_directions" / "mean_diffs.pt", weights_only=True)
    np.testing.assert_allclose(other.at(9), table[-1, 10][None])


def broken(folder, fault):
    table = torch.load(folder / "generate_directions" / "mean_diffs.pt", weights_only=True)
    if fault == "another direction.pt":
        torch.save(table[-1, 10], folder / "direction.pt")
    elif fault == "a choice beyond":
        (folder / "direction_metadata.json").write_text('{"pos": -9, "layer": 10}')
    elif fault == "a choice in words":
        (folder / "direction_metadata.json").write_text('{"pos": "last", "layer": 10}')
    elif fault == "a grid of words":
        rows = json.loads((folder / "select_direction/direction_evaluations.json").read_text())
        rows[3]["kl_div_score"] = "low"
        (folder / "select_direction/direction_evaluations.json").write_text(json.dumps(rows))
    elif fault == "a grid without scores":
        (folder / "select_direction/direction_evaluations.json").write_text('[{"layer": 1}]')
    elif fault == "cut JSON":
        (folder / "direction_metadata.json").write_text('{"pos"')
    else:
        torch.save(table[0], folder / "generate_directions" / "mean_diffs.pt")


FAULTS = {
    "another direction.pt": "not the direction at the pos and layer",
    "a choice beyond": "beyond its 5 positions and 18 layers",
    "a choice in words": "whole numbers pos and layer",
    "a grid of words": "rows of numbers",
    "a grid without scores": "a list of rows",
    "cut JSON": "cannot be read as JSON",
    "means of one position": "beyond its 1 positions",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_folder_that_does_not_fit_together_is_refused(tmp_path, fault):
    folder = run_folder(tmp_path)
    broken(folder, fault)
    with pytest.raises(InputError, match=FAULTS[fault]):
        read_run(folder)


def test_an_empty_folder_is_refused_with_what_belongs_there(tmp_path):
    with pytest.raises(InputError, match=r"direction_evaluations\.json"):
        read_run(tmp_path)
    with pytest.raises(InputError, match=r"mean_diffs\.pt"):
        read_directions(tmp_path)


@pytest.mark.parametrize("name", ["generate_directions/mean_diffs.pt", "direction.pt"])
def test_a_pickle_in_a_run_folder_that_would_run_code_is_refused_unrun(tmp_path, name):
    folder, marker = run_folder(tmp_path), tmp_path / "it-ran"
    torch.save({"tensor": ROWS, "more": Canary(marker)}, folder / name)
    with pytest.raises(
        InputError, match=r"cannot be read as .*: it holds more than tensors"
    ) as said:
        read_run(folder)
    assert "weights_only" not in str(said.value)
    assert not marker.exists()
    # The canary is alive: an unguarded load does run it.
    torch.load(folder / name, weights_only=False)
    assert marker.exists()
