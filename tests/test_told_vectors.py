"""Site, positions and layers of published vectors: what the file does not tell is not claimed, and
what was taken by place or assumed is said."""

import functools

import numpy as np
import pytest
import torch
from made_vectors import AFTER_FIRST, ALL, BASIS, LAYERS, ROWS, TABLE, WIDTH, save

from experiments import against
from refusal_nn.errors import InputError
from refusal_nn.published import read_vectors
from refusal_nn.vectors import of_hidden_states


@pytest.fixture
def saved(tmp_path):
    return functools.partial(save, tmp_path)


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
