"""The forms in which directions are published: layers, site and positions are what the file says,
what it does not say is not claimed, and what cannot be told is refused."""

import contextlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiments import against
from refusal_nn.errors import InputError
from refusal_nn.published import read_directions, read_vectors
from refusal_nn.vectors import of_hidden_states

LAYERS, WIDTH = 7, 24
TABLE = torch.randn(3, LAYERS, WIDTH, generator=torch.manual_seed(0))  # (pos, layer, d_model)
ROWS = TABLE[-1]
ZEROS = torch.zeros_like(ROWS[0])
AFTER_FIRST = torch.cat([ZEROS[None], ROWS[1:]])  # as resid_pre has it: nothing at layer 0
BASIS = torch.linalg.qr(TABLE[0].mT)[0].mT[:4]
ALL = tuple(range(LAYERS))


def keyed(form, rows=ROWS):
    return {form.format(i): row for i, row in enumerate(rows)}


# Name: what the file holds, the layers of its rows, the site that is told (None: assumed).
BY_LAYER = {
    "a table": (ROWS, ALL, None),
    "a table by name": ({"directions": ROWS}, ALL, None),
    "layers before positions": (TABLE.swapaxes(0, 1), ALL, None),
    "one of each, one position": (ROWS[:, None], ALL, None),
    "one position, one of each": (ROWS[None], ALL, None),
    "numbers": ({i: row for i, row in enumerate(ROWS)}, ALL, None),
    "numbers not in order": ({i: ROWS[i] for i in (4, 2, 6, 0, 1, 3, 5)}, ALL, None),
    "numbers as text": (keyed("{}"), ALL, None),
    "some numbers": ({i: ROWS[i] for i in (2, 5)}, (2, 5), None),
    "rows of one": ({i: row[None] for i, row in enumerate(ROWS)}, ALL, None),
    "layer_3": (keyed("layer_{}"), ALL, None),
    "model.layers.3": (keyed("model.layers.{}"), ALL, None),
    "transformer.h.3": (keyed("transformer.h.{}"), ALL, None),
    "hook_resid_pre": (keyed("blocks.{}.hook_resid_pre"), ALL, "resid_pre"),
    "hook_resid_post": (keyed("blocks.{}.hook_resid_post"), ALL, "resid_post"),
    "below a name": ({"vectors": keyed("{}"), "model": "x"}, ALL, None),
    "a list": (list(ROWS), ALL, None),
    "a list with none": ([None, *ROWS[1:]], ALL, "resid_pre"),
    "a site's table": ({"resid_pre": ROWS}, ALL, "resid_pre"),
    "a site's table after": ({"resid_post": ROWS}, ALL, "resid_post"),
    "a site beside it": ({"directions": ROWS, "site": "resid_pre"}, ALL, "resid_pre"),
    "layers beside a table": ({"v": ROWS[2:5], "layers": [2, 3, 4]}, (2, 3, 4), None),
    "layers beside a list": ({"v": list(ROWS[:2]), "layers": [5, 2]}, (5, 2), None),
    "target_layers beside it": (
        {"v": ROWS[:1].repeat(2, 1), "target_layers": [3, 4]},
        (3, 4),
        None,
    ),
    "layers as a tensor": ({"v": ROWS[2:5], "layer_ids": torch.tensor([2, 3, 4])}, (2, 3, 4), None),
    "layers but for a none": ({"v": [None, *ROWS[:2]], "layers": [1, 2]}, (1, 2), None),
    "records": ([{"layer": i, "vector": ROWS[i]} for i in (3, 1)], (1, 3), None),
    "records as text": ([{"layer": str(i), "vector": ROWS[i]} for i in (3, 1)], (1, 3), None),
    "records without layers": ([{"vector": row} for row in ROWS], ALL, None),
    "a layer and one vector": ({"layer": 5, "direction": ROWS[5]}, (5,), None),
    "a hook and one vector": (
        {"hook_name": "blocks.5.hook_resid_post", "v": ROWS[5]},
        (5,),
        "resid_post",
    ),
    "layer-3": (keyed("layer-{}"), ALL, None),
    "layers[3]": (keyed("model.layers[{}]"), ALL, None),
    "an output": (keyed("model.layers.{}.output"), ALL, "resid_post"),
    "a block's input": (keyed("layer.{}.comp.block_input"), ALL, "resid_pre"),
    "resid-pre": (keyed("blocks.{}.resid-pre"), ALL, "resid_pre"),
    "3_resid_post": (keyed("{}_resid_post"), ALL, "resid_post"),
    "hookName": ({"hookName": "blocks.5.hook_resid_post", "vector": ROWS[5]}, (5,), "resid_post"),
    "layer and hook in one": ({"layer": "5-resid-pre-x", "vector": ROWS[5]}, (5,), "resid_pre"),
    "layerNumber": ({"layerNumber": 5, "hookType": "resid-pre", "v": ROWS[5]}, (5,), "resid_pre"),
    "pairs by merit": ({"directions": [(3, ROWS[3], 9.0), (1, ROWS[1], 8.0)]}, (1, 3), None),
    "pairs of hooks": ([("blocks.5.hook_resid_pre", ROWS[5])], (5,), "resid_pre"),
    "layers as text": ({"v": ROWS[2:5], "layers": "[2, 3, 4]"}, (2, 3, 4), None),
    "layers as text, bare": ({"v": ROWS[2:5], "layer_indices": "2,3,4"}, (2, 3, 4), None),
    "layers under another name": (
        {"v": ROWS[2:5], "extraction_layers": [2, 3, 4]},
        (2, 3, 4),
        None,
    ),
    "names of layers": (
        {
            "layer_0": ROWS[3],
            "layer_1": ROWS[4],
            "layer_names": ["model.layers.3", "model.layers.4"],
        },
        (3, 4),
        None,
    ),
    "a unit beside it": (
        {"direction": ROWS[5], "direction_unit": ROWS[5] / 9, "layer": 5},
        (5,),
        None,
    ),
    "their mean beside them": (
        {"directions": dict(enumerate(ROWS)), "mean_direction": ROWS.mean(0)},
        ALL,
        None,
    ),
    "arrays of numpy": ({"directions": ROWS.numpy()}, ALL, None),
    "steered modules": (
        {f"layers.{i}": {"steering_vector": ROWS[i], "action": "add"} for i in (1, 2)},
        (1, 2),
        "resid_post",
    ),
    "numbers beside it": ({"directions": ROWS, "norms": ROWS.norm(dim=1)}, ALL, None),
    "means beside it": ({"directions": ROWS, "harmful_mean": ROWS + 1, "n": 7}, ALL, None),
    "means by layer beside it": (
        {"steering_vectors": keyed("{}"), "means": keyed("{}", ROWS + 1)},
        ALL,
        None,
    ),
    "longer numbers beside it": ({"direction": ROWS[0], "losses": torch.ones(99)}, (), None),
    "how many layers": ({"directions": ROWS, "n_layers": 7, "layers": 7}, ALL, None),
    "a ranking beside it": ({"directions": ROWS, "best_layers": [5, 3, 6, 1, 0, 2, 4]}, ALL, None),
}


@pytest.fixture
def saved(tmp_path):
    def write(held, name="vectors.pt"):
        torch.save(held, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("form", BY_LAYER)
def test_directions_by_layer_are_of_the_layers_that_the_file_says(saved, form):
    held, layers, site = BY_LAYER[form]
    found = read_vectors(saved(held))
    assert found.layers == layers
    assert not found.is_basis
    if site:
        assert found.site == site
        assert found.known.startswith("assumed") == (form == "a list with none")
    if layers == ALL:
        mine = AFTER_FIRST if form == "a list with none" else ROWS
        np.testing.assert_array_equal(found.at_position()[0], mine.double())


@pytest.mark.parametrize("form", ["layers beside a list", "records"])
def test_each_row_goes_with_its_layer(saved, form):
    held, layers, _ = BY_LAYER[form]
    table = read_directions(saved(held))
    mine = (
        {5: ROWS[0], 2: ROWS[1]} if form == "layers beside a list" else {i: ROWS[i] for i in (1, 3)}
    )
    assert len(table) == 1 + max(layers)
    for i, row in enumerate(table):
        np.testing.assert_array_equal(row, mine.get(i, ZEROS).double())


BASES = {
    "orthonormal rows": BASIS,
    "orthonormal columns": torch.linalg.qr(torch.randn(90, 4))[0],
    "in half precision": BASIS.half(),
    "called a basis": {"basis": ROWS},
    "beside singular values": {"basis": BASIS, "singular_values": torch.ones(4)},
    "beside another tensor": {"basis": BASIS, "mean": ROWS[0]},
    "beside layers": {"basis": BASIS, "layers": [1, 2, 3, 4]},
    "orthonormal beside layers": {"vectors": BASIS, "layers": [1, 2, 3, 4]},
    "a list": list(BASIS),
    "named vectors": {"first_direction": BASIS[0], "second_direction": BASIS[1]},
}


@pytest.mark.parametrize("form", BASES)
def test_a_basis_is_of_no_layer_whatever_lies_beside_it(saved, form):
    found = read_vectors(saved(BASES[form]))
    assert (found.is_basis, found.layers) == (True, ())
    with pytest.raises(InputError, match="a basis, not one by layer"):
        found.table()


ONE = {
    "a vector": ROWS[0],
    "a row": ROWS[:1],
    "in three axes": ROWS[None, :1],
    "by name": {"refusal_direction": ROWS[0], "model": "x", "alpha": 1.0},
    "one for every place": {f"model.layers.{i}.mlp": {"steering_vector": ROWS[0]} for i in ALL},
}


@pytest.mark.parametrize("form", ONE)
def test_one_direction_is_of_no_layer_where_none_is_named(saved, form):
    found = read_vectors(saved(ONE[form]))
    assert (found.layers, found.is_basis) == ((), False)
    np.testing.assert_array_equal(found.at_position()[0], ROWS[:1].double())


PARTS = ["model.layers.{}.mlp.down_proj", "model.layers.{}.self_attn.o_proj", "blocks.{}.ln1.hook"]
PARTS += [
    "blocks.{}.hook_mlp_in",
    "blocks.{}.hook_attn_out",
    "blocks.{}.hook_resid_mid",
    "layers.{}.input_layernorm",
]


@pytest.mark.parametrize("form", PARTS)
def test_vectors_of_a_part_of_a_block_are_no_directions_of_the_stream(saved, form):
    with pytest.raises(InputError, match="part of a block"):
        read_vectors(saved(keyed(form)))


UNTOLD = {
    "two tables": ({"a": ROWS, "b": ROWS + 1}, "several tensors, a, b"),
    "two directions": ({"a_direction": ROWS[0], "b_direction": ROWS[1]}, "which layers"),
    "several a layer": ({i: TABLE[:, i] for i in ALL}, "several tensors"),
    "a layer twice": (
        {"blocks.3.hook_resid_pre": ROWS[3], "blocks.3.hook_resid_post": ROWS[4]},
        "which layers",
    ),
    "more layers than vectors": ({"v": ROWS[:2], "layers": [1, 2, 3]}, "names 3 layers beside 2"),
    "more vectors than layers": ({"v": ROWS, "target_layers": [3, 4]}, "names 2 layers beside 7"),
    "one layer for a table": ({"v": ROWS, "layer": 3}, "names 1 layers beside 7"),
    "negative layers": ({"v": ROWS[:2], "layers": [-1, -2]}, "count from 0"),
    "a layer beyond belief": ({10**8: ROWS[0], 1: ROWS[1]}, "count from 0"),
    "four axes": (torch.randn(2, 3, 4, 5), "has the shape"),
    "lists that differ": (
        {"v": ROWS[:2], "some_layers": [1, 2], "other_layers": [3, 4]},
        "name different layers",
    ),
    "names against a list": (
        {"layer_2": ROWS[0], "layer_5": ROWS[1], "layers": [3, 4]},
        "different",
    ),
    "layers from elsewhere": ({"v": ROWS, "start_layer": 10}, "not counted from 0"),
    "negative names": ({"layer_-1": ROWS[0], "layer_-2": ROWS[1]}, "count from 0"),
    "the third direction": ({"direction_1": ROWS[0], "direction_2": ROWS[1]}, "which layers"),
    "a basis a layer": (torch.linalg.qr(torch.randn(LAYERS, 24, 3))[0].mT, "a basis for each"),
    "bases": ({"bases": TABLE}, "a basis for each"),
    "tables of many tags": ({"directions": [TABLE[0], TABLE[1]]}, "several tensors"),
    "many prompts": (torch.randn(64, 32, 128), "positions are at most 16"),
    "a projection": (torch.randn(24, 24), "is a matrix"),
    "a probe of two classes": ({"weight": ROWS[:2], "bias": torch.zeros(2)}, "is a matrix"),
    "two means": ({"refusal": ROWS, "comply": ROWS + 1}, "several tensors"),
    "texts": ({"model": "x"}, "no vector"),
    "numbers": ({0: 1.0}, "no vector"),
    "nothing": ({}, "no vector"),
}


@pytest.mark.parametrize("form", UNTOLD)
def test_what_cannot_be_told_is_refused_in_one_line(saved, form):
    held, words = UNTOLD[form]
    with pytest.raises(InputError, match=words) as said:
        read_vectors(saved(held))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("held", [ROWS + 1j, {1.5: ROWS[0]}, [[[[[[[[[ROWS]]]]]]]]]])
def test_what_is_no_number_or_nested_beyond_sense_is_refused(saved, held):
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        read_vectors(saved(held))


def test_the_site_that_is_not_told_is_read_off_layer_0(saved):
    """At a token of the template every prompt enters block 0 alike."""
    for held, site in ((AFTER_FIRST, "resid_pre"), (ROWS, "resid_post")):
        assert read_vectors(saved(held)).site == site
    later = read_vectors(saved({i: ROWS[i] for i in ALL[1:]}))
    assert (later.site, later.known) == ("resid_pre", "assumed: they begin at layer 1")


def test_a_row_more_than_layers_is_hidden_states_unless_the_file_says_otherwise(saved):
    found = read_vectors(saved(ROWS))
    assert of_hidden_states(found, LAYERS).site == "resid_post"
    assert of_hidden_states(found, LAYERS - 1).site == "resid_pre"
    told = read_vectors(saved({"directions": ROWS, "site": "resid_post"}))
    assert of_hidden_states(told, LAYERS - 1) == told


def test_positions_are_claimed_only_where_there_are_several_or_the_file_tells_them(saved):
    assert read_vectors(saved(ROWS)).positions == ()
    assert read_vectors(saved(TABLE)).positions == (-3, -2, -1)
    told = read_vectors(saved({"directions": TABLE[:2], "positions": [-5, -4]}))
    assert told.positions == (-5, -4)
    assert told.at_position()[1] == -4
    with pytest.raises(InputError, match="choose --position from -4, -5"):
        told.at_position(-1)
    with pytest.raises(InputError, match="leave --position out"):
        read_vectors(saved(ROWS)).at_position(-1)


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


def test_a_number_in_a_files_name_is_the_layer_of_its_one_direction(saved):
    assert read_vectors(saved(ROWS[0], "vec_layer_13_model.pt")).layers == (13,)
    assert read_vectors(saved(ROWS, "layer_3.pt")).layers == ALL


def test_rounding_at_layer_0_is_no_direction(saved):
    held = torch.cat([1e-9 * ROWS[:1], ROWS[1:]])
    assert read_vectors(saved(held)).site == "resid_pre"


def test_what_was_taken_by_place_or_out_of_several_is_said(saved):
    assert "(numbered by place)" in read_vectors(saved(ROWS)).said()
    assert "(assumed)" in read_vectors(saved(TABLE)).said()
    assert "its directions, " in read_vectors(saved({"directions": ROWS, "other": ROWS})).said()
    told = read_vectors(saved({"v": ROWS[:2], "layers": [3, 9], "site": "resid_pre"}))
    assert told.said() == "layers 3 to 9 (2 of them), resid_pre (the file says so)"


def test_rows_by_place_must_be_as_many_as_the_layers_of_the_model(saved):
    with pytest.raises(InputError, match="of which are they"):
        against.read(str(saved(ROWS)), WIDTH, LAYERS + 5)


def test_a_name_in_a_file_cannot_forge_a_line(saved):
    with pytest.raises(InputError) as said:
        read_vectors(saved({"a\nerror: b\x1b[2J": ROWS, "c": ROWS + 1}))
    assert "\n" not in str(said.value)
    assert "\x1b" not in str(said.value)


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


@pytest.mark.parametrize(("site", "shift"), [("resid_pre", 1), ("resid_post", 0)])
def test_angles_are_taken_with_what_leaves_the_same_block(saved, site, shift):
    [other] = against.read(str(saved({"directions": ROWS, "site": site})), WIDTH, LAYERS)
    np.testing.assert_array_equal(other.at(3)[0], ROWS[3 + shift].double())
    assert site in other.taken


def test_a_file_of_more_layers_than_the_model_or_of_its_embedding_alone_is_refused(saved):
    for held in ({"layer": LAYERS, "v": ROWS[0], "site": "resid_post"}, {"resid_pre": ROWS[:1]}):
        held = held if "v" in held else {"layer": 0, "v": ROWS[0], "site": "resid_pre"}
        with pytest.raises(InputError, match="this model has layers 0 to 6"):
            against.read(str(saved(held)), WIDTH, LAYERS)


def test_a_basis_and_one_direction_are_taken_at_every_layer(saved):
    for held, rows in ((BASIS, BASIS), (ROWS[0], ROWS[:1])):
        [other] = against.read(str(saved(held)), WIDTH, LAYERS)
        for layer in (0, 6):
            np.testing.assert_array_equal(other.at(layer), rows.double())
