"""The forms in which directions are published: layers and places are what the file says, and what
cannot be told is refused."""

import functools

import numpy as np
import pytest
import torch
from made_vectors import AFTER_FIRST, ALL, BASIS, LAYERS, ROWS, TABLE, ZEROS, keyed, save

from refusal_nn.errors import InputError
from refusal_nn.published import read_directions, read_vectors

# Name: what the file holds, the layers of its rows, the site that is told (None: assumed).
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
    return functools.partial(save, tmp_path)


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
    "orthonormal columns": torch.linalg.qr(torch.randn(90, 4, generator=torch.manual_seed(1)))[0],
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
