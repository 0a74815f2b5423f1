"""Directions between two classes, their robust variants, and how like each other they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refusal_nn.directions import (
    difference_in_means,
    full_sample_reliability,
    layer_similarity,
    masked_difference_in_means,
    split_half_cosine,
    standardised_difference_in_means,
    top1_coordinate_share,
    unit,
    winsorised_difference_in_means,
)
from refusal_nn.published import read_directions

GEMMA = Path(__file__).parent / "data" / "gemma-2b-it_pos-1.safetensors"
ESTIMATORS = (
    difference_in_means,
    masked_difference_in_means,
    standardised_difference_in_means,
    winsorised_difference_in_means,
)


def cosine(a, b):
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


def planted(shift, n=100, width=64, seed=0):
    """Two classes of unit noise, one layer, shifted apart by `shift` times an even direction v."""
    rng = np.random.default_rng(seed)
    v = rng.choice([-1.0, 1.0], width) / np.sqrt(width)
    harmless = rng.normal(size=(1, n, width))
    return rng.normal(size=(1, n, width)) + shift * v, harmless, v


def test_the_difference_in_means_is_that_of_torch_in_float64():
    rng = np.random.default_rng(0)
    harmful, harmless = (rng.normal(size=(3, n, 16)).astype(np.float32) for n in (21, 34))
    means = [torch.from_numpy(x).double().mean(1) for x in (harmful, harmless)]
    np.testing.assert_allclose(
        difference_in_means(harmful, harmless),
        (means[0] - means[1]).numpy(),
        rtol=1e-12,
        atol=1e-15,
    )


def test_a_large_offset_costs_float32_inputs_nothing():
    # 2^14 + k/256 is exact in float32, but sums of 4,096 such numbers are not.
    steps = np.random.default_rng(0).integers(0, 256, size=(2, 1, 4096, 8)) / 256
    harmful, harmless = (2.0**14 + steps).astype(np.float32)
    np.testing.assert_array_equal(
        difference_in_means(harmful, harmless), steps[0].mean(1) - steps[1].mean(1)
    )


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_every_estimator_gives_float64_per_layer_and_turns_with_the_classes(estimate):
    rng = np.random.default_rng(1)
    harmful = rng.normal(size=(4, 30, 8)).astype(np.float32) + 1
    harmless = rng.normal(size=(4, 20, 8)).astype(np.float32)
    found = estimate(harmful, harmless)
    assert found.shape == (4, 8)
    assert found.dtype == np.float64
    alone = np.concatenate([estimate(harmful[i : i + 1], harmless[i : i + 1]) for i in range(4)])
    np.testing.assert_array_equal(found, alone)
    if estimate is not masked_difference_in_means:  # that one looks at the harmless class alone
        np.testing.assert_allclose(estimate(harmless, harmful), -found, atol=1e-12)


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_every_estimator_recovers_a_planted_direction_in_clean_data(estimate):
    harmful, harmless, v = planted(5.0, n=400)
    assert cosine(estimate(harmful, harmless)[0], v) > 0.95


def test_a_massive_coordinate_is_masked_where_it_fills_the_raw_direction():
    harmful, harmless, v = planted(5.0)
    for states, size in ((harmful, 3300.0), (harmless, 3000.0)):
        states[..., 7] += size
    raw = difference_in_means(harmful, harmless)
    masked = masked_difference_in_means(harmful, harmless)
    assert top1_coordinate_share(raw)[0] > 0.9
    assert masked[0, 7] == 0
    np.testing.assert_array_equal(np.delete(masked, 7), np.delete(raw, 7))
    assert top1_coordinate_share(masked)[0] < 0.2
    assert cosine(masked[0], v) > 0.9


def test_without_massive_coordinates_masking_changes_nothing():
    harmful, harmless, _ = planted(5.0)
    harmful, harmless = harmful + 1, harmless + 1
    np.testing.assert_array_equal(
        masked_difference_in_means(harmful, harmless), difference_in_means(harmful, harmless)
    )


@pytest.mark.parametrize("seed", range(5))
def test_standardising_recovers_the_direction_under_one_wild_coordinate(seed):
    harmful, harmless, v = planted(3.0, seed=seed)
    for states in (harmful, harmless):
        states[..., 3] *= 300
    raw = difference_in_means(harmful, harmless)[0]
    assert abs(cosine(raw, v)) < 0.5
    assert cosine(standardised_difference_in_means(harmful, harmless)[0], v) > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_winsorising_recovers_the_direction_under_a_few_wild_prompts(seed):
    harmful, harmless, v = planted(3.0, seed=seed)
    rng = np.random.default_rng(seed)
    harmful[:, :3] += 300 * rng.normal(size=(1, 3, 64))
    raw = difference_in_means(harmful, harmless)[0]
    assert cosine(raw, v) < 0.6
    assert cosine(winsorised_difference_in_means(harmful, harmless)[0], v) > 0.85


def test_winsorising_clips_the_outer_twentieth_of_each_class_at_either_end():
    # Of 41 prompts in order, the 5th and the 95th percentile are the third from either end.
    x = np.arange(41.0).reshape(1, 41, 1)
    found = winsorised_difference_in_means(x**2, np.zeros((1, 41, 1)))
    assert found[0, 0] == pytest.approx((np.clip(np.arange(41), 2, 38) ** 2).mean())


def test_a_coordinate_without_spread_has_no_part_in_the_standardised_direction():
    harmful, harmless, _ = planted(3.0)
    harmful[..., 5], harmless[..., 5] = 1.0, 0.0
    found = standardised_difference_in_means(harmful, harmless)
    assert np.isfinite(found).all()
    assert found[0, 5] == 0


def test_unit_divides_rows_by_their_norm_and_leaves_zero_rows():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-100, 0.0]])
    np.testing.assert_array_equal(unit(rows), [[0.6, 0.8], [0, 0], [-1, 0]])


@settings(deadline=None)
@given(arrays.arrays(np.float64, (3, 5), elements=st.floats(-1e6, 1e6).map(lambda x: round(x, 3))))
def test_a_unit_row_has_length_one_or_nought_and_its_largest_share_is_at_least_the_even_one(rows):
    lengths = np.linalg.norm(unit(rows), axis=1)
    np.testing.assert_allclose(lengths, rows.any(1), atol=1e-12)
    share = top1_coordinate_share(rows)[rows.any(1)]
    assert ((share >= 1 / 5 - 1e-12) & (share <= 1 + 1e-12)).all()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_layers_that_share_one_direction_have_participation_1_and_cosines_1(n):
    found = layer_similarity(np.outer(np.arange(1, n + 1), [1.0, -2.0, 0.5]))
    assert found.layers == list(range(n))
    np.testing.assert_allclose(found.cosine, 1)
    assert found.participation_ratio == pytest.approx(1)
    assert (found.late_half_mean, found.late_half_mean_off_diagonal) == pytest.approx((1, 1))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_orthogonal_layers_have_as_many_participants_as_layers(n):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, n)))
    found = layer_similarity(q.T * np.arange(1, n + 1)[:, None])
    np.testing.assert_allclose(found.cosine, np.eye(n), atol=1e-12)
    assert found.participation_ratio == pytest.approx(n)
    assert found.late_half_mean_off_diagonal == pytest.approx(1 if n < 3 else 0, abs=1e-12)
    assert found.late_half_mean == pytest.approx(1 / (n - n // 2))


def test_a_layer_without_a_direction_is_left_out():
    found = layer_similarity(np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 2.0]]))
    assert found.layers == [1, 2, 3]
    np.testing.assert_allclose(found.cosine[0], [1, 0.5**0.5, 0])
    assert found.late_half_mean_off_diagonal == pytest.approx(0)  # layers 2 and 3 of 4


def test_a_direction_that_is_rounding_error_is_none():
    # As at the first layer of published runs, where all prompts have the same token.
    found = layer_similarity(np.array([[1e-14, 2e-14], [1, 0.5], [1, 1], [2.0, 0]]))
    assert found.layers == [1, 2, 3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [[[1.0, 0], [0, 0], [0, 0], [0, 0]], [[0.0, 0], [0, 0]]])
def test_where_late_layers_or_all_have_no_direction_nothing_is_nan(rows):
    assert np.isfinite(layer_similarity(np.array(rows))[2:]).all()


def test_the_published_directions_of_gemma_have_the_cosines_measured_on_them():
    found = layer_similarity(read_directions(GEMMA))
    assert found.layers == list(range(1, 18))
    assert round(found.late_half_mean, 3) == 0.630
    assert round(found.late_half_mean_off_diagonal, 3) == 0.584


def test_two_halves_agree_on_a_strong_shift_and_on_nothing_in_noise():
    pairs = np.tile(np.arange(100), 2)
    harmful, harmless, _ = planted(12.0)
    assert split_half_cosine(harmful, harmless, pairs)[0] > 0.9
    null = [split_half_cosine(*planted(0.0, seed=s)[:2], pairs, seed=s)[0] for s in range(20)]
    assert abs(np.mean(null)) < 0.1


def test_twins_are_in_one_half():
    # Prompts doubled in both classes: halves that divided the copies would agree on noise.
    harmful, harmless, _ = planted(0.0, n=50)
    doubled = [np.concatenate([x, x], axis=1) for x in (harmful, harmless)]
    halves = split_half_cosine(*doubled, np.tile(np.arange(50), 4))[0]
    divided = split_half_cosine(*doubled, np.arange(200))[0]
    assert abs(halves) < 0.25 < divided


def test_reliability_doubles_the_sample_by_the_rule_of_spearman_and_brown():
    np.testing.assert_allclose(
        full_sample_reliability(np.array([-0.5, 0, 0.5, 1])), [0, 0, 2 / 3, 1]
    )
