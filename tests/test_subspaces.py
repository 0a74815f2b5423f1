"""Subspaces between two classes of activations, their rank, their angles and their controls."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.decomposition import PCA, TruncatedSVD

from refusal_nn.controls import random_directions
from refusal_nn.subspaces import (
    Subspace,
    cluster_differences,
    containment,
    coordinate_scale,
    effective_rank,
    entropy_rank,
    group_differences,
    noise_spectrum,
    principal_angles,
    prompt_differences,
    random_subspaces,
    sequential,
    stack,
)

# One massive coordinate, 7, of so many times the spread of the others in both classes.
MASSIVE = 300.0


def planted(rank, *, shift=20.0, n=240, width=128, massive=1.0, vary=0.2, seed=0):
    """Harmful prompts shifted by about `shift` along one of `rank` orthonormal rows v, by group;
    noise of both classes: uneven coordinates and three topics. -> harmful, harmless, groups, v."""
    rng = np.random.default_rng(seed)
    v = np.linalg.qr(rng.normal(size=(width, rank)))[0].T
    spread = np.exp(0.3 * rng.normal(size=width))
    spread[7] *= massive
    topics = 2 * rng.normal(size=(3, width)) / np.sqrt(width)
    mean = rng.normal(size=width)

    def noise():
        return mean + rng.normal(size=(n, 3)) @ topics + rng.normal(size=(n, width)) * spread

    groups = rng.permutation(np.arange(n) % rank)
    strength = shift * (1 + vary * rng.normal(size=(n, 1)))
    return noise() + strength * v[groups], noise(), groups, v


def fits(harmful, harmless, groups, rank, scale=1.0):
    """Every construction on one data set; of directions, each group's difference in means."""
    means = np.stack([harmful[groups == g].mean(0) - harmless.mean(0) for g in np.unique(groups)])
    return {
        "stack": stack(means, rank),
        "sequential": sequential(means, rank),
        "prompt_differences": prompt_differences(harmful, harmless, rank, scale),
        "group_differences": group_differences(harmful, harmless, groups, rank, scale),
        "cluster_differences": cluster_differences(harmful, harmless, rank, 0, scale=scale),
    }


CONSTRUCTIONS = list(fits(*planted(2)[:3], 2))
OF_CLASSES = CONSTRUCTIONS[2:]


def widest(a, b):
    return float(principal_angles(a, b).max())


# Subspace


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_a_basis_is_orthonormal_in_float64_and_named_and_its_spectrum_descends(name):
    harmful, harmless, groups, _ = planted(4)
    found = fits(harmful.astype(np.float32), harmless.astype(np.float32), groups, 3)[name]
    assert (found.rank, found.d_model) == found.basis.shape == (3, 128)
    assert found.basis.dtype == found.spectrum.dtype == np.float64
    assert found.construction == name
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(3), atol=1e-12)
    assert len(found.spectrum) >= 4
    assert (np.diff(found.spectrum) <= 0).all()


@pytest.mark.parametrize("name", CONSTRUCTIONS)
@pytest.mark.parametrize("scaled", [False, True])
def test_the_first_rows_are_what_the_construction_gives_at_that_rank(name, scaled):
    harmful, harmless, groups, _ = planted(4)
    scale = coordinate_scale(harmless) if scaled else 1.0
    found = fits(harmful, harmless, groups, 4, scale)[name]
    for k in (1, 2, 4):
        lesser = found.first(k)
        assert (lesser.rank, lesser.construction) == (k, name)
        np.testing.assert_array_equal(lesser.spectrum, found.spectrum)
        if name != "cluster_differences":  # its number of clusters goes with the rank
            again = fits(harmful, harmless, groups, k, scale)[name]
            np.testing.assert_allclose(lesser.basis, again.basis, atol=1e-12)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_every_row_has_the_harmful_side_positive(name, seed):
    harmful, harmless, groups, _ = planted(4, seed=seed)
    side = harmful.mean(0) - harmless.mean(0)
    if name in ("stack", "sequential"):
        means = [harmful[groups == g].mean(0) - harmless.mean(0) for g in range(4)]
        side = np.mean([mean / np.linalg.norm(mean) for mean in means], axis=0)
    assert (fits(harmful, harmless, groups, 4)[name].basis @ side >= 0).all()
    # Classes the other way round, the rows are too: no sign comes from the decomposition.
    turned = fits(-harmful, -harmless, groups, 4)[name]
    np.testing.assert_allclose(
        turned.basis @ -side, fits(harmful, harmless, groups, 4)[name].basis @ side
    )


def test_rows_that_are_not_orthonormal_are_no_basis():
    rows = np.eye(3, 8)
    rows[1, 0] = 2e-6
    with pytest.raises(ValueError, match="orthonormal"):
        Subspace(rows, np.ones(3), "by hand")
    rows[1, 0] = 5e-7
    assert Subspace(rows, np.ones(3), "by hand").rank == 3


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_there_are_no_first_rows_outside_the_rank(k):
    with pytest.raises(ValueError, match="from 1 to 3"):
        Subspace(np.eye(3, 8), np.ones(3), "by hand").first(k)


# Constructions


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_to_rotate_the_data_rotates_the_basis(name):
    harmful, harmless, groups, _ = planted(4)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(128, 128)))[0]
    plain = fits(harmful, harmless, groups, 4)[name]
    rotated = fits(harmful @ turn, harmless @ turn, groups, 4)[name]
    np.testing.assert_allclose(rotated.basis, plain.basis @ turn, atol=1e-9)
    np.testing.assert_allclose(rotated.spectrum[:4], plain.spectrum[:4])


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_subspace_is_found_within_a_few_degrees(name, rank, seed):
    harmful, harmless, groups, v = planted(rank, seed=seed)
    assert widest(fits(harmful, harmless, groups, rank)[name], v) < 9


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_under_a_massive_coordinate_only_the_scaled_construction_finds_the_subspace(name, rank):
    raw, scaled = [], []
    for seed in range(4):
        harmful, harmless, groups, v = planted(rank, massive=MASSIVE, seed=seed)
        scale = coordinate_scale(harmless)
        raw.append(widest(fits(harmful, harmless, groups, rank)[name], v))
        scaled.append(widest(fits(harmful, harmless, groups, rank, scale)[name], v))
    # A mean's error in that coordinate is drawn: now and then it is small, and raw means are lucky.
    assert np.mean(raw) > 35
    assert max(scaled) < 16


def test_a_scaled_basis_is_a_shift_in_raw_space_and_not_a_weight():
    # Coordinates of very uneven spread, none massive: u in x / s is s u in x, and not u.
    rng = np.random.default_rng(0)
    spread = np.exp(np.linspace(-0.9, 0.9, 32))
    harmless, noise = (rng.normal(size=(4000, 32)) * spread for _ in range(2))
    v = np.ones((1, 32)) / np.sqrt(32)
    found = prompt_differences(noise + 30 * v, harmless, 1, coordinate_scale(harmless))
    assert widest(found, v) < 1
    assert widest(found, v / spread) > 20


def test_a_coordinate_that_hardly_varies_does_not_fill_the_scaled_subspace():
    harmful, harmless, _, v = planted(1)
    harmful[:, 3], harmless[:, 3] = harmless[:, 3] * 1e-6 + 1e-3, harmless[:, 3] * 1e-6
    scale = coordinate_scale(harmless)
    assert scale[3] == np.median(harmless.std(0)) / 3
    found = prompt_differences(harmful, harmless, 1, scale)
    assert abs(found.basis[0, 3]) < 1e-3
    assert widest(found, v) < 9


def test_centring_loses_the_refusal_direction_that_the_uncentred_decomposition_finds():
    for seed in range(3):
        harmful, harmless, _, v = planted(1, vary=0.0, seed=seed)
        centred = PCA(1, svd_solver="full").fit(harmful - harmless).components_
        assert widest(centred, v) > 75
        assert widest(prompt_differences(harmful, harmless, 1), v) < 5


def test_prompt_differences_are_decomposed_as_by_truncated_svd():
    harmful, harmless, _, _ = planted(4)
    rows = harmful - harmless.mean(0)
    reference = TruncatedSVD(4, algorithm="arpack", random_state=0).fit(rows)
    found = prompt_differences(harmful, harmless, 4)
    assert len(found.spectrum) == 128
    np.testing.assert_allclose(found.spectrum[:4], reference.singular_values_)
    np.testing.assert_allclose(np.abs(found.basis @ reference.components_.T), np.eye(4), atol=1e-9)


def test_one_group_is_the_difference_in_means_and_one_prompt_a_group_is_prompt_differences():
    harmful, harmless, _, _ = planted(2, n=40)
    mean = harmful.mean(0) - harmless.mean(0)
    one = group_differences(harmful, harmless, np.zeros(40), 1)
    np.testing.assert_allclose(one.basis[0], mean / np.linalg.norm(mean))
    assert one.spectrum == pytest.approx(np.sqrt(40) * np.linalg.norm(mean))
    each = group_differences(harmful, harmless, np.arange(40), 3)
    np.testing.assert_allclose(each.basis, prompt_differences(harmful, harmless, 3).basis)


def test_to_divide_a_group_in_two_of_equal_mean_changes_nothing():
    harmful, harmless, groups, _ = planted(3, n=60)
    doubled, labels = np.tile(harmful, (2, 1)), np.tile(groups, 2)
    divided = np.concatenate([groups, np.where(groups == 1, 9, groups)])
    whole, parts = (group_differences(doubled, harmless, g, 3) for g in (labels, divided))
    np.testing.assert_allclose(parts.basis, whole.basis, atol=1e-9)
    np.testing.assert_allclose(parts.spectrum[:3], whole.spectrum)


def test_the_noise_of_a_small_group_does_not_lead():
    # Of equal weight, two lone prompts' noise (length 11 here) outweighs the second of two shifts.
    rng = np.random.default_rng(0)
    v = np.eye(2, 128)
    groups = np.array([0] * 100 + [1] * 100 + [2, 3])
    harmful = rng.normal(size=(202, 128)) + np.where(groups[:, None] == 1, 5 * v[1], 5 * v[0])
    harmless = rng.normal(size=(202, 128))
    found = group_differences(harmful, harmless, groups, 2)
    means = np.stack([harmful[groups == g].mean(0) - harmless.mean(0) for g in range(4)])
    assert widest(found, v) < 20
    assert widest(np.linalg.svd(means, full_matrices=False)[2][:2], v) > 60


def test_groups_may_be_named():
    harmful, harmless, groups, _ = planted(2)
    named = np.array(["theft", "fraud"])[groups]
    np.testing.assert_allclose(
        group_differences(harmful, harmless, named, 2).basis,
        group_differences(harmful, harmless, groups, 2).basis,
        atol=1e-12,
    )


def test_blind_clusters_are_the_planted_groups_where_there_are_as_many():
    harmful, harmless, groups, _ = planted(4)
    blind = cluster_differences(harmful, harmless, 4, 0, clusters=4)
    np.testing.assert_allclose(
        blind.basis, group_differences(harmful, harmless, groups, 4).basis, atol=1e-9
    )


def test_there_are_two_clusters_a_rank_and_eight_prompts_a_cluster():
    harmful, harmless, _, _ = planted(2)
    assert len(cluster_differences(harmful, harmless, 3, 0).spectrum) == 6
    assert len(cluster_differences(harmful[:40], harmless, 3, 0).spectrum) == 5
    assert cluster_differences(harmful[:16], harmless, 3, 0).rank == 2
    assert cluster_differences(harmful[:4], harmless, 3, 0).rank == 1


def test_gram_schmidt_goes_in_the_order_given_where_the_stack_does_not():
    directions = np.array([[2.0, 0, 0, 0], [3, 4, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]])
    found = sequential(directions, 4)
    np.testing.assert_allclose(found.basis, np.eye(3, 4), atol=1e-12)  # the third is passed over
    np.testing.assert_allclose(sequential(directions[[1, 0]], 1).basis[0], [0.6, 0.8, 0, 0])
    np.testing.assert_allclose(stack(directions[[1, 0]], 1).basis, stack(directions[:2], 1).basis)


def test_gram_schmidt_turns_a_row_that_points_away_from_most_directions():
    found = sequential([[1.0, 0, 0], [-1, 0.1, 0], [-1, 0, 0.1]], 3)
    np.testing.assert_allclose(found.basis, np.diag([-1.0, 1, 1]), atol=1e-12)


def test_nearly_parallel_directions_still_give_an_orthonormal_basis():
    rng = np.random.default_rng(0)
    base = rng.normal(size=64)
    found = sequential(base + 1e-5 * rng.normal(size=(6, 64)), 6)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(found.rank), atol=1e-12)
    assert found.rank == 6
    assert sequential(base + 1e-9 * rng.normal(size=(6, 64)), 6).rank == 1


@pytest.mark.parametrize("construct", [stack, sequential])
def test_lengths_of_directions_do_not_count_and_zero_ones_are_left_out(construct):
    rows = np.random.default_rng(0).normal(size=(5, 16))
    longer = np.insert(rows * [[1], [200], [3], [0.1], [1]], 2, 1e-14, axis=0)
    longer = np.insert(longer, 0, 0.0, axis=0)
    found, plain = construct(longer, 3), construct(rows, 3)
    np.testing.assert_allclose(found.basis, plain.basis, atol=1e-12)
    np.testing.assert_allclose(found.spectrum, plain.spectrum)
    assert (found.spectrum**2).sum() == pytest.approx(5)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_the_rank_is_at_most_what_the_rows_support(name):
    rng = np.random.default_rng(0)
    harmless = np.zeros((40, 16))
    harmful = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 16))).astype(np.float32)
    found = fits(harmful, harmless, np.arange(40) % 5, 6)[name]
    assert found.rank == 2
    assert widest(found, harmful[:2]) < 1e-3


def test_tensors_are_taken_as_arrays_are():
    harmful, harmless, groups, _ = planted(2)
    tensors = [torch.from_numpy(x) for x in (harmful, harmless, groups)]
    found = group_differences(*tensors, 2, coordinate_scale(tensors[1]))
    expected = group_differences(harmful, harmless, groups, 2, coordinate_scale(harmless))
    np.testing.assert_array_equal(found.basis, expected.basis)


# Noise


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("n", "width"), [(240, 64), (120, 1000)])
def test_without_a_difference_the_spectrum_is_the_noise_spectrum(n, width, scaled):
    ratios = []
    for seed in range(6):
        harmful, harmless, _, _ = planted(1, shift=0.0, n=n, width=width, seed=seed)
        scale = coordinate_scale(harmless) if scaled else 1.0
        found = prompt_differences(harmful, harmless, 1, scale).spectrum[:3]
        ratios.append(found / noise_spectrum(harmless, n, 3, seed, scale))
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.06)


def test_the_noise_spectrum_has_the_energy_of_that_many_rows_about_the_mean():
    # Of n rows against a mean of all N: n (1 + 1/N) tr(covariance), less one row for the halving.
    harmless = np.random.default_rng(0).normal(size=(200, 400))
    for n in (20, 101, 200):
        energy = np.mean([(noise_spectrum(harmless, n, 500, s) ** 2).sum() for s in range(20)])
        assert energy == pytest.approx((n - 1 + n / 200) * 400, rel=0.02)


@pytest.mark.parametrize("massive", [1.0, MASSIVE])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_as_many_values_exceed_twice_the_noise_as_dimensions_were_planted(rank, massive):
    harmful, harmless, _, _ = planted(rank, massive=massive)
    scale = coordinate_scale(harmless)
    floor = noise_spectrum(harmless, len(harmful), 1, 0, scale)[0]
    assert (prompt_differences(harmful, harmless, 1, scale).spectrum > 2 * floor).sum() == rank


# Rank


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_values_count_in_full_and_zeros_not_at_all(count):
    spectrum = [3.7] * count + [0.0] * 3
    assert effective_rank(spectrum) == pytest.approx(count)
    assert entropy_rank(spectrum) == pytest.approx(count)


def test_ranks_are_those_of_the_formulas():
    # Squares 4 and 1: (4 + 1)² / (16 + 1). Values themselves 2/3 and 1/3: exp of their entropy.
    assert effective_rank([2, 1]) == pytest.approx(25 / 17)
    assert entropy_rank([2, 1]) == pytest.approx(3 / 2 ** (2 / 3))


@settings(deadline=None)
@given(arrays.arrays(np.float64, 6, elements=st.floats(0, 1e6).map(lambda x: round(x, 3))))
def test_a_rank_is_from_one_to_the_number_of_values_and_the_entropy_one_is_the_larger(spectrum):
    if spectrum.any():
        low, high = effective_rank(spectrum), entropy_rank(spectrum)
        assert 1 - 1e-9 <= low <= high + 1e-9 <= 6 + 1e-6
        assert effective_rank(1e-3 * spectrum) == pytest.approx(low)


# Angles


def test_angles_of_tilted_planes_are_the_tilts():
    tilts = np.radians([10.0, 75.0])
    tilted = np.zeros((2, 5))
    tilted[[0, 1], [0, 1]], tilted[[0, 1], [2, 3]] = np.cos(tilts), np.sin(tilts)
    plane = np.eye(2, 5)
    np.testing.assert_allclose(principal_angles(plane, tilted), [10, 75])
    np.testing.assert_allclose(principal_angles(tilted, plane[:1]), [10])
    np.testing.assert_allclose(principal_angles(plane, np.eye(5)[4:]), [90])


def test_the_angles_of_one_span_in_two_bases_are_nought():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 32))
    mixed = rng.normal(size=(3, 3)) @ rows
    found = prompt_differences(rows, np.zeros((1, 32)), 3)
    assert principal_angles(rows, mixed).max() < 1e-11
    assert principal_angles(found, mixed).max() < 1e-11
    # Dependent rows, also to float32 rounding only, are of rank 3.
    both = np.vstack([rows, mixed]).astype(np.float32)
    assert principal_angles(both, both).shape == (3,)


@pytest.mark.parametrize("angle", [1e-7, 1e-4, 1.0])
def test_small_angles_keep_their_digits(angle):
    # arccos of the cosine, 1 - 5e-15, would give 1e-7 with one digit.
    tilted = np.array([[np.cos(angle), np.sin(angle), 0]])
    found = np.radians(principal_angles(np.eye(1, 3), tilted))[0]
    assert found == pytest.approx(angle, rel=1e-7)


def test_containment_is_the_squared_cosine_with_the_span():
    plane = Subspace(np.eye(2, 4), np.ones(2), "by hand")
    assert containment(np.array([3.0, 0, 4, 0]), plane) == pytest.approx(9 / 25)
    assert containment(np.array([5.0, -1, 0, 0]), plane) == pytest.approx(1)
    assert containment(np.array([0, 0, 0, 1e-9]), plane) == 0
    rng = np.random.default_rng(0)
    found = prompt_differences(rng.normal(size=(9, 6)), np.zeros((1, 6)), 3)
    vector = rng.normal(size=6)
    cosine = np.cos(np.radians(principal_angles(found, vector[None])[0]))
    assert containment(vector, found) == pytest.approx(cosine**2)
    assert all(containment(row, found) <= 1 for row in found.basis)


# Random subspaces


def test_random_subspaces_are_orthonormal_and_nested():
    activations = planted(1)[0]
    found = random_subspaces(activations, 4, 10, 0)
    assert found.shape == (10, 4, 128)
    gram = found @ found.transpose(0, 2, 1)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-12)
    # Gram-Schmidt of the drawn rows: the first k rows span the first k drawn.
    centred = activations - activations.mean(0)
    drawn = np.random.default_rng(0).standard_normal((10, 4, len(centred))) @ centred
    for k in (1, 2, 3):
        assert widest(found[3, :k], drawn[3, :k]) < 1e-9


def test_a_random_subspace_of_rank_one_is_a_random_direction():
    activations = planted(1)[0]
    lines = random_subspaces(activations, 1, 5, 3)[:, 0]
    product = (lines * random_directions(activations, 5, 3)).sum(1)
    np.testing.assert_allclose(np.abs(product), 1)


def test_random_subspaces_remove_what_varies_where_isotropic_ones_do_not():
    # Variances 1 / j: a line drawn from them removes about tr(S²) / tr(S), an isotropic one tr / d.
    rng = np.random.default_rng(0)
    variance = 1 / np.arange(1, 101)
    activations = rng.normal(size=(3000, 100)) * np.sqrt(variance)
    centred = activations - activations.mean(0)

    def removed(bases):
        return np.mean([((centred @ basis.T) ** 2).sum() for basis in bases]) / len(centred)

    shaped = random_subspaces(activations, 3, 400, 0)
    even = random_subspaces(rng.normal(size=(3000, 100)), 3, 400, 0)
    assert removed(even) == pytest.approx(3 * variance.sum() / 100, rel=0.1)
    assert removed(shaped) > 4 * removed(even)
    # The exact expectation of the line, by simulation of its law and not of the code.
    law = rng.normal(size=(20000, 100)) * np.sqrt(variance)
    expected = ((law**2 * variance).sum(1) / (law**2).sum(1)).mean()
    assert removed(shaped[:, :1]) == pytest.approx(expected, rel=0.1)


# Chance and errors


def test_the_same_seed_gives_the_same_result_and_another_another():
    harmful, harmless, _, _ = planted(1, shift=0.0)  # no groups: k-means depends on its start
    results = [
        [
            cluster_differences(harmful, harmless, 3, seed).basis,
            noise_spectrum(harmless, 100, 5, seed),
            random_subspaces(harmless, 2, 3, seed),
        ]
        for seed in (5, 5, 6)
    ]
    for once, again, other in zip(*results, strict=True):
        np.testing.assert_array_equal(once, again)
        assert not np.allclose(once, other)


X, Y = np.eye(6, 8), np.zeros((4, 8))
PLANE = Subspace(np.eye(2, 8), np.ones(2), "by hand")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Subspace(np.eye(8)[0], np.ones(1), "by hand"), "basis of shape"),
        (lambda: Subspace(np.full((1, 8), np.nan), np.ones(1), "by hand"), "finite"),
        (lambda: stack(Y, 1), "all directions are zero"),
        (lambda: sequential(Y, 1), "all directions are zero"),
        (lambda: stack(X, 0), "no first 0"),
        (lambda: sequential(X, 0), "no first 0"),
        (lambda: prompt_differences(X, Y, 0), "no first 0"),
        (lambda: prompt_differences(X, Y, -1), "no first -1"),
        (lambda: group_differences(X, Y, np.arange(6), 0), "no first 0"),
        (lambda: cluster_differences(X, Y, 0, 0), "no first 0"),
        (lambda: prompt_differences(X + np.inf, Y, 1), "finite"),
        (lambda: prompt_differences(X[:0], Y, 1), "harmful of shape"),
        (lambda: prompt_differences(X[None], Y, 1), "harmful of shape"),
        (lambda: prompt_differences(X, Y[:, :7], 1), "harmless of d_model 7, not 8"),
        (lambda: prompt_differences(Y + 0.1, Y + 0.1, 1), "nothing to decompose"),
        (lambda: prompt_differences(X, Y, 1, np.zeros(8)), "scale of 0"),
        (lambda: prompt_differences(X, Y, 1, np.ones(7)), "broadcast"),
        (lambda: group_differences(X, Y, np.arange(5), 1), "groups of shape"),
        (lambda: group_differences(np.vstack([X, -X]), Y, np.zeros(12), 1), "basis of shape"),
        (lambda: cluster_differences(X, Y, 1, 0, clusters=0), "0 clusters"),
        (lambda: cluster_differences(X, Y, 1, 0, clusters=7), "from 1 to 6"),
        (lambda: coordinate_scale(Y + 0.1), "do not vary"),
        (lambda: noise_spectrum(X, 7, 1, 0), "of 2 to 6"),
        (lambda: noise_spectrum(X, 1, 1, 0), "of 2 to 6"),
        (lambda: noise_spectrum(X, 4, 0, 0), "rank 0"),
        (lambda: effective_rank([0.0, 0.0]), "not all zero"),
        (lambda: entropy_rank([]), "not all zero"),
        (lambda: effective_rank([1.0, -1.0]), "none negative"),
        (lambda: entropy_rank([1.0, np.nan]), "none negative"),
        (lambda: principal_angles(X, X[:, :7]), "b of d_model 7, not 8"),
        (lambda: principal_angles(PLANE, X[0]), "b of shape"),
        (lambda: principal_angles(X, Y), "all zero"),
        (lambda: containment(np.ones(7), PLANE), "vector of d_model 7, not 8"),
        (lambda: containment(np.zeros(8), PLANE), "vector is zero"),
        (lambda: random_subspaces(X, 6, 1, 0), "from 1 to 5"),
        (lambda: random_subspaces(X, 0, 1, 0), "from 1 to 5"),
        (lambda: random_subspaces(Y + 0.1, 1, 1, 0), "rank 1"),
    ],
)
def test_what_cannot_be_is_refused_and_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
