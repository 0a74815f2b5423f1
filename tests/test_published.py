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
