"""Directions in files of others: read without running anything, refused where they are none."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiments import similarity
from refusal_nn.errors import InputError
from refusal_nn.files import read_csv, read_json
from refusal_nn.published import read_directions
from refusal_nn.saved_directions import write_directions

GEMMA = Path(__file__).parent / "data" / "gemma-2b-it_pos-1.safetensors"
ROWS = torch.arange(60.0).reshape(3, 4, 5)  # (pos, layer, d_model)


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
    with pytest.raises(InputError, match="choose --position from -1, -2, -3"):
        read_directions(saved({"x": ROWS}), position)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": torch.ones(5)}, "one direction of no layer"),
        ({"x": torch.ones(2, 2, 2, 2)}, "has the shape"),
        ({"x": torch.tensor(1.0)}, "no vector"),
        ({"x": torch.ones(2, 5), "y": torch.zeros(2, 5)}, "several tensors, x, y"),
        ({}, "no vector"),
        ({"x": torch.zeros(2, 5)}, "all zero"),
        ({"x": torch.ones(0, 5)}, "no vector"),
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


@pytest.mark.parametrize("positions", [[-1], [-3, -2, -1]])
def test_a_file_of_our_own_is_read_by_its_own_order_of_axes_and_site(
    tmp_path, monkeypatch, capsys, positions
):
    rows = torch.randn(4, len(positions), 6)  # (layer, pos, d_model)
    names = ("model", "revision", "dtype", "seed", "template_sha256", "prompt_set_sha256")
    where = {"layers": range(4), "positions": positions, "tokens": ["x"] * len(positions), "n": {}}
    path = tmp_path / "directions.safetensors"
    write_directions(path, rows, dict.fromkeys(names, "x"), **where)
    for i, pos in enumerate(positions):
        np.testing.assert_array_equal(read_directions(path, pos), rows[:, i].double())
    folders = ["--results", str(tmp_path / "r"), "--figures", str(tmp_path / "f")]
    monkeypatch.setattr(sys, "argv", ["similarity", "--directions", str(path), *folders])
    similarity.main()
    said = capsys.readouterr().out
    assert "resid_post (the file says so)" in said
    assert ("position -1 is taken" in said) == (len(positions) > 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_pickled_tensor_alone_is_read_as_tensors_only(tmp_path, dtype):
    torch.save(ROWS.to(dtype), tmp_path / "mean_diffs.pt")
    np.testing.assert_array_equal(read_directions(tmp_path / "mean_diffs.pt", -2), ROWS[-2])


def test_layers_in_a_dictionary_are_stacked_and_one_of_nan_is_none(tmp_path):
    rows = {i: ROWS[i, :1] for i in (2, 1)} | {0: torch.full((1, 5), float("nan"))}
    torch.save(rows, tmp_path / "rv_dict.pt")
    found = read_directions(tmp_path / "rv_dict.pt")
    np.testing.assert_array_equal(found, [[0] * 5, ROWS[1, 0].tolist(), ROWS[2, 0].tolist()])
