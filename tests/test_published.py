"""Directions in files of others: read without running anything, refused where they are none."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiments import against, similarity
from refusal_nn.errors import InputError
from refusal_nn.files import read_csv, read_json
from refusal_nn.published import read_directions, read_run

GEMMA = Path(__file__).parent / "data" / "gemma-2b-it_pos-1.safetensors"
ROWS = torch.arange(30.0).reshape(3, 2, 5)  # (pos, layer, d_model)


@pytest.fixture
def saved(tmp_path):
    def write(tensors):
        save_file(tensors, tmp_path / "directions.safetensors")
        return tmp_path / "directions.safetensors"

    return write


class Canary:
    """What unpickling would run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["d.pt", "d.pkl", "d.bin", "d.safetensors"])
@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_is_refused_unrun_whatever_it_is_called(tmp_path, name, dump):
    marker = tmp_path / "it-ran"
    with (tmp_path / name).open("wb") as file:
        dump(Canary(marker), file)
    with pytest.raises(InputError, match="safetensors"):
        read_directions(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("position", [-1, -2, -3])
def test_one_of_several_positions_is_taken_counted_from_the_end(saved, position):
    found = read_directions(saved({"mean_diffs": ROWS}), position)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, ROWS[position].numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_table_of_layers_is_taken_whole_in_any_float(saved, dtype):
    np.testing.assert_array_equal(read_directions(saved({"x": ROWS[0].to(dtype)})), ROWS[0])


@pytest.mark.parametrize("position", [0, 1, -4, -100])
def test_a_position_that_is_not_there_is_refused_with_those_that_are(saved, position):
    with pytest.raises(InputError, match="3 positions: choose --position from -1 to -3"):
        read_directions(saved({"x": ROWS}), position)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": torch.ones(5)}, "expected one tensor"),
        ({"x": torch.ones(2, 2, 2, 2)}, "expected one tensor"),
        ({"x": torch.tensor(1.0)}, "expected one tensor"),
        ({"x": torch.ones(2, 5), "y": torch.ones(2, 5)}, "found x, y"),
        ({}, "expected one tensor"),
        ({"x": torch.zeros(2, 5)}, "all zero"),
        ({"x": torch.ones(0, 5)}, "directions"),
        ({"x": torch.tensor([[1.0, float("nan")]])}, "not finite"),
        ({"x": torch.tensor([[1.0, -float("inf")]])}, "not finite"),
    ],
)
def test_tensors_that_are_no_directions_are_refused(saved, tensors, words):
    with pytest.raises(InputError, match=words):
        read_directions(saved(tensors))


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1, -100])
def test_a_truncated_file_is_refused(saved, keep):
    path = saved({"mean_diffs": ROWS})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_directions(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("none.safetensors", "folder.safetensors"):
        with pytest.raises(InputError, match=name):
            read_directions(tmp_path / name)


def test_published_directions_have_a_table_and_a_heatmap_of_their_own(tmp_path, monkeypatch):
    folders = ["--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "argv", ["similarity", "--directions", str(GEMMA), *folders])
    similarity.main()
    folder = tmp_path / "results" / GEMMA.stem / "similarity"
    assert len(read_csv(folder / "cosine.csv")) == 17**2
    assert round(read_json(folder / "summary.json")["late_half_mean_cosine"], 3) == 0.630
    picture = tmp_path / "figures" / GEMMA.stem / "heatmap.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(read_csv(folder / "spectrum.csv")) == 17


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_pickled_tensor_alone_is_read_as_tensors_only(tmp_path, dtype):
    torch.save(ROWS.to(dtype), tmp_path / "mean_diffs.pt")
    np.testing.assert_array_equal(read_directions(tmp_path / "mean_diffs.pt", -2), ROWS[-2])


def test_layers_in_a_dictionary_are_stacked_and_one_of_nan_is_none(tmp_path):
    rows = {i: ROWS[i, :1] for i in (2, 1)} | {0: torch.full((1, 5), float("nan"))}
    torch.save(rows, tmp_path / "rv_dict.pt")
    found = read_directions(tmp_path / "rv_dict.pt")
    np.testing.assert_array_equal(found, [[0] * 5, ROWS[1, 0].tolist(), ROWS[2, 0].tolist()])


@pytest.mark.parametrize(
    "held",
    [
        {1: ROWS[0, 0], 2: ROWS[1, 0]},
        {"a": ROWS[0]},
        {},
        [ROWS[0]],
        {0: 1.0},
        {0: ROWS[0], 1: ROWS},
    ],
)
def test_what_a_pickle_holds_beside_tensors_by_layer_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "d.pt")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        read_directions(tmp_path / "d.pt")


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
    [other] = against.read(str(folder), 8)
    assert other.by_layer
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
    "means of one position": r"expected finite \(pos, layer, d_model\)",
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
    with pytest.raises(InputError, match="cannot be read as"):
        read_run(folder)
    assert not marker.exists()
    # The canary is alive: an unguarded load does run it.
    torch.load(folder / name, weights_only=False)
    assert marker.exists()
