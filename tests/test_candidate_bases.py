"""Candidate subspaces: what each construction finds, and the tables of them."""

import numpy as np
import pytest

from refusal_nn import candidates, subspaces
from refusal_nn.candidates import Candidate, States
from refusal_nn.subspaces import Subspace

D, N = 24, 40


def axes(*which):
    return np.eye(D)[list(which)]


def planted(layers=2, kinds=("a", "b"), n=N):
    """Harmful prompts of each kind lie along an axis of their own, at every layer."""
    rng = np.random.default_rng(0)
    categories = np.array([kinds[i % len(kinds)] for i in range(n)])
    shift = 8.0 * np.stack([axes(list(kinds).index(c))[0] for c in categories])
    harmful, harmless = rng.standard_normal((2, layers, n, D))
    return States((harmful + shift).astype(np.float32), harmless.astype(np.float32), categories)


def basis(rank, construction="prompts"):
    return Subspace(axes(*range(rank)), np.arange(rank, 0, -1.0), construction)


def test_each_construction_of_a_layer_finds_the_axes_that_hold_the_difference():
    for found in candidates.at_layer(planted(), 1, 4, 0):
        degrees = subspaces.principal_angles(axes(0, 1), found.subspace.basis[:2])
        assert degrees.max() < 15, found.name
        assert found.layer == 1
        assert found.name == f"{found.construction} 1"


def test_a_layer_gives_prompts_categories_and_clusters_and_a_floor_for_the_first_only():
    found = {c.construction: c for c in candidates.at_layer(planted(), 0, 4, 0)}
    assert list(found) == ["prompts", "categories", "clusters"]
    assert found["categories"].subspace.rank == 2  # a row per category, and no more
    noise = found["prompts"].noise
    assert found["categories"].noise is found["clusters"].noise is None
    spectrum = found["prompts"].subspace.spectrum
    assert (spectrum[:2] > 1.5 * noise[:2]).all()
    assert (spectrum[2:4] < 1.3 * noise[2:4]).all()


@pytest.mark.parametrize("kinds", [("",), ("only",)])
def test_without_two_categories_there_is_no_construction_of_them(kinds):
    found = [c.construction for c in candidates.at_layer(planted(kinds=kinds), 0, 4, 0)]
    assert found == ["prompts", "clusters"]


def test_each_layer_is_fitted_to_its_own_activations_alone():
    states = planted(layers=3)
    one = States(states.harmful[1:2], states.harmless[1:2], states.categories)
    for a, b in zip(
        candidates.at_layer(states, 1, 3, 7), candidates.at_layer(one, 0, 3, 7), strict=True
    ):
        np.testing.assert_array_equal(a.subspace.basis, b.subspace.basis)


def test_fewer_prompts_than_the_rank_looked_for_give_fewer_dimensions():
    for found in candidates.at_layer(planted(n=6), 0, 8, 0):
        assert 1 <= found.subspace.rank <= 6


def test_over_layers_stacks_all_and_chains_the_best_in_their_order():
    directions = np.stack([*axes(0, 1, 2), *axes(0, 1)]) * np.arange(1, 6)[:, None]
    whole, best = candidates.over_layers(directions, range(5), [2, 1, 4], 2)
    assert (whole.name, best.name) == ("layers", "best layers")
    assert whole.layer is best.layer is None
    assert subspaces.principal_angles(whole.subspace, axes(0, 1)).max() < 1e-6  # twice each
    np.testing.assert_allclose(np.abs(best.subspace.basis), axes(2, 1), atol=1e-12)


def test_over_one_layer_both_are_its_direction():
    for found in candidates.over_layers(5 * axes(0, 3), [1], [1], 8):
        np.testing.assert_allclose(found.subspace.basis, axes(3))


def test_without_a_best_layer_there_is_no_chain():
    assert [c.name for c in candidates.over_layers(axes(0, 1), [0, 1], [], 8)] == ["layers"]


def test_a_spectrum_is_a_row_per_component_with_shares_of_the_energy():
    found = Candidate("prompts", 3, Subspace(axes(0), np.array([3.0, 2.0, 1.0]), "x"), np.ones(2))
    rows = list(candidates.spectrum_rows([found, Candidate("layers", None, basis(2))]))
    assert [r["component"] for r in rows] == [1, 2, 3, 1, 2]
    np.testing.assert_allclose([r["share"] for r in rows[:3]], [9 / 14, 4 / 14, 1 / 14])
    assert [r["noise"] for r in rows] == [1, 1, "", "", ""]
    assert [r["layer"] for r in rows] == [3, 3, 3, "", ""]
    assert rows[0]["effective_rank"] == pytest.approx(14**2 / (81 + 16 + 1))


def test_a_spectrum_ends_at_four_times_the_rank():
    found = Candidate("prompts", 0, Subspace(axes(0, 1), np.arange(20, 0, -1.0), "x"))
    assert len(list(candidates.spectrum_rows([found]))) == 8
    assert list(candidates.spectrum_rows([])) == []


def test_angles_are_between_every_two_once_as_many_as_the_smaller_rank():
    turned = np.cos(0.3) * axes(0) + np.sin(0.3) * axes(5)
    rows = list(candidates.angle_rows({"a": axes(0, 1), "b": turned, "c": axes(7)}))
    found = {(r["a"], r["b"], r["component"]): r["degrees"] for r in rows}
    assert list(found) == [("a", "b", 1), ("a", "c", 1), ("b", "c", 1)]
    assert list(found.values()) == pytest.approx([np.degrees(0.3), 90, 90])
    assert list(candidates.angle_rows({"a": axes(0)})) == []
