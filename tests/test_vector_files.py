"""Files of vectors in every format: read alike, without running anything, or refused in a line."""

import contextlib
import json

import numpy as np
import pytest
import torch
from made_vectors import AFTER_FIRST, ALL, LAYERS, ROWS
from safetensors.torch import save_file

from refusal_nn.errors import InputError
from refusal_nn.published import read_directions, read_vectors


@contextlib.contextmanager
def control_vector(path, signed=False, kind="controlvector"):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, kind)
    count = writer.add_int32 if signed else writer.add_uint32
    count("controlvector.layer_count", LAYERS)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def written(path, suffix, signed=False):
    """The same directions of layers 1 to 6 in each format."""
    rows, name = ROWS[1:].double().numpy(), path / f"vectors{suffix}"
    named = {str(i): row for i, row in enumerate(rows, 1)}
    if suffix in (".pt", ".pth", ".bin"):
        torch.save({i: ROWS[i] for i in ALL[1:]}, name)
    elif suffix == ".safetensors":
        save_file({str(i): ROWS[i].clone() for i in ALL[1:]}, name)
    elif suffix == ".npz":
        np.savez(name, **named, model=np.array("x"))
    elif suffix == ".gguf":
        with control_vector(name, signed) as writer:
            for i, row in named.items():
                writer.add_tensor(f"direction.{i}", row.astype(np.float32))
    else:
        held = {"directions": {i: row.tolist() for i, row in named.items()}, "model_type": "llama"}
        name.write_text(json.dumps(held))
    return name


FORMATS = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".gguf", ".json", ".svec")


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_directions_are_read_from_every_format(tmp_path, suffix):
    found = read_vectors(written(tmp_path, suffix))
    assert found.layers == ALL[1:]
    np.testing.assert_allclose(found.rows[0], ROWS[1:].double(), rtol=1e-6)
    assert found.site == ("resid_post" if suffix in (".gguf", ".json", ".svec") else "resid_pre")


def test_an_array_of_numpy_is_a_table(tmp_path):
    np.save(tmp_path / "v.npy", ROWS.numpy())
    np.testing.assert_array_equal(read_directions(tmp_path / "v.npy"), ROWS.double())


@pytest.mark.parametrize("suffix", [*FORMATS, ".npy"])
@pytest.mark.parametrize("keep", [0, 7, 60, 200, -9])
def test_a_cut_file_is_refused_in_one_line_or_read_whole(tmp_path, suffix, keep):
    if suffix == ".npy":
        np.save(tmp_path / "vectors.npy", ROWS.numpy())
        path = tmp_path / "vectors.npy"
    else:
        path = written(tmp_path, suffix)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot be read as") as said:
        read_vectors(path)
    assert "\n" not in str(said.value)


def test_a_cut_file_of_torchs_older_format_is_refused_in_one_line(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(ROWS, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be read as") as said:
        read_vectors(path)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(("signed", "site"), [(True, "resid_pre"), (False, "resid_post")])
def test_control_vectors_of_llama_cpp_number_the_same_place_one_higher(tmp_path, signed, site):
    """Its count of layers has a sign, repeng's has none."""
    path = written(tmp_path, ".gguf", signed)
    found = read_vectors(path)
    assert (found.layers, found.site) == (ALL[1:], site)


def test_packed_control_vectors_are_refused_by_the_name_of_their_kind(tmp_path):
    from gguf import GGMLQuantizationType, quants

    path = written(tmp_path, ".gguf")
    rows = np.random.default_rng(0).standard_normal((1, 256)).astype(np.float32)
    packed = quants.quantize(rows, GGMLQuantizationType.Q8_0)
    with control_vector(path) as writer:
        writer.add_tensor("direction.1", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    with pytest.raises(InputError, match="Q8_0"):
        read_vectors(path)


def test_objects_in_numpys_files_are_refused_unread(tmp_path):
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="numpy arrays"):
        read_vectors(tmp_path / "v.npy")


def test_a_model_in_gguf_is_no_control_vector(tmp_path):
    with control_vector(tmp_path / "m.gguf", kind="llama") as writer:
        writer.add_tensor("blk.0.attn_q.weight", ROWS.numpy())
    with pytest.raises(InputError, match="no control vector"):
        read_vectors(tmp_path / "m.gguf")


@pytest.mark.parametrize("row", [[1, None, 3], [True, 2, 3]])
def test_a_row_of_json_that_is_not_all_numbers_is_refused(tmp_path, row):
    rows = [row * 8, [1.0, 2.0, 3.0] * 8]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="numbers and other things"):
        read_vectors(tmp_path / "v.json")


def test_null_in_json_is_a_layer_without_direction(tmp_path):
    rows = [None, *ROWS[1:].tolist()]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    np.testing.assert_allclose(read_directions(tmp_path / "v.json"), AFTER_FIRST.double())
