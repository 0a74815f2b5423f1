"""Gram-matrix refits equal refits of the directions themselves, and no fold divides a cluster."""

import numpy as np
import pytest

from refusal_nn import crossfit

N_HARMFUL, N_HARMLESS, WIDTH, FOLDS = 14, 11, 30, 4


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(N_HARMFUL + N_HARMLESS, WIDTH)) + 50.0
    states[:N_HARMFUL] += 0.5 * rng.normal(size=WIDTH)
    labels = np.arange(len(states)) < N_HARMFUL
    # Five mixed clusters, one harmful one of three, one harmless one of two, the rest alone.
    clusters = np.arange(len(states))
    clusters[N_HARMFUL : N_HARMFUL + 5] = np.arange(5)
    clusters[[7, 8]] = 6
    clusters[-1] = clusters[-2]
    return states, labels, clusters


def scores_of_explicit_directions(states, labels, folds, weights):
    scores = np.zeros(len(states))
    for fold in range(FOLDS):
        train = (folds != fold) & (weights > 0)
        harmful, harmless = (states[train & chosen].mean(0) for chosen in (labels, ~labels))
        direction = harmful - harmless
        midpoint = (harmful + harmless) / 2 @ direction
        held_out = folds == fold
        scores[held_out] = (states[held_out] @ direction - midpoint) / np.linalg.norm(direction)
    return scores


def designs(labels, clusters):
    rng = np.random.default_rng(1)
    base = crossfit.observed(labels, clusters, FOLDS, rng)
    return (
        base,
        crossfit.permuted(base, clusters, 6, rng),
        crossfit.jackknifed(base, clusters, 99, rng),
    )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_scores_from_gram_matrices_equal_those_of_explicit_directions(data, which):
    states, labels, clusters = data
    design = designs(labels, clusters)[which]
    fast = crossfit.held_out_scores(crossfit.gram(states), design)
    for draw in range(len(fast)):
        slow = scores_of_explicit_directions(
            states, design.labels[draw], design.folds[draw], design.weights[draw]
        )
        np.testing.assert_allclose(fast[draw], slow, rtol=1e-8, atol=1e-9)


def test_scores_do_not_change_under_a_shift_of_all_states(data):
    states, labels, clusters = data
    base = designs(labels, clusters)[0]
    near, far = (
        crossfit.held_out_scores(crossfit.gram(states + shift), base) for shift in (0, 1e4)
    )
    np.testing.assert_allclose(near, far, rtol=1e-6)


def test_no_fold_divides_a_cluster_and_every_fold_holds_both_classes(data):
    _, labels, clusters = data
    for seed in range(50):
        base = crossfit.observed(labels, clusters, FOLDS, np.random.default_rng(seed))
        for cluster in np.unique(clusters):
            assert len(np.unique(base.folds[0, clusters == cluster])) == 1
        for fold in range(FOLDS):
            assert len(np.unique(labels[base.folds[0] == fold])) == 2


def test_permutation_keeps_labels_within_mixed_clusters_and_moves_whole_ones(data):
    _, labels, clusters = data
    _, permuted, _ = designs(labels, clusters)
    assert (permuted.labels != labels).any()
    for draw in range(len(permuted.labels)):
        for cluster in np.unique(clusters):
            members = clusters == cluster
            if len(np.unique(labels[members])) == 2:
                assert permuted.labels[draw, members].sum() == labels[members].sum()
            else:
                assert len(np.unique(permuted.labels[draw, members])) == 1


def test_a_permuted_analysis_is_the_observed_one_on_reordered_prompts(data):
    # Without clusters a permutation must be a relabelling of rows that keeps the folds' design.
    _, labels, _ = data
    rng = np.random.default_rng(3)
    base = crossfit.observed(labels, np.arange(labels.size), FOLDS, rng)
    permuted = crossfit.permuted(base, np.arange(labels.size), 20, rng)
    design = sorted(zip(base.labels[0], base.folds[0], strict=True))
    for draw in range(20):
        assert sorted(zip(permuted.labels[draw], permuted.folds[draw], strict=True)) == design


def test_jackknife_leaves_every_cluster_out_once_and_alone(data):
    _, labels, clusters = data
    _, _, left_out = designs(labels, clusters)
    gone = [np.unique(clusters[weights == 0]) for weights in left_out.weights]
    assert sorted(int(g[0]) for g in gone) == sorted(np.unique(clusters))
    assert all(len(g) == 1 for g in gone)
    grouped = crossfit.jackknifed(
        designs(labels, clusters)[0], clusters, 5, np.random.default_rng(0)
    )
    assert len(grouped.weights) == 5
    assert (grouped.weights == 0).sum(0).tolist() == [1] * labels.size


def test_jackknife_error_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=40)
    left_out = np.array([np.delete(x, i).mean() for i in range(40)])
    assert crossfit.jackknife_error(left_out) == pytest.approx(x.std(ddof=1) / np.sqrt(40))


def test_effect_size_and_auroc_equal_their_definitions(data):
    states, labels, clusters = data
    base, permuted, left_out = designs(labels, clusters)
    for design in (base, permuted, left_out):
        scores = crossfit.held_out_scores(crossfit.gram(states), design)
        d, area = crossfit.effect_size(scores, design), crossfit.pairwise_auroc(scores, design)
        for draw, values in enumerate(scores):
            present = design.weights[draw] > 0
            p, q = (values[present & c] for c in (design.labels[draw], ~design.labels[draw]))
            pooled = np.sqrt((p.var(ddof=1) + q.var(ddof=1)) / 2)
            assert d[draw] == pytest.approx((p.mean() - q.mean()) / pooled)
            wins = (p[:, None] > q).mean() + 0.5 * (p[:, None] == q).mean()
            assert area[draw] == pytest.approx(wins)


def test_no_direction_gives_scores_of_zero_not_a_division():
    labels = np.arange(8) < 4
    base = crossfit.observed(labels, np.arange(8), 2, np.random.default_rng(0))
    scores = crossfit.held_out_scores(np.zeros((8, 8)), base)
    assert not scores.any()
    assert crossfit.effect_size(scores, base) == 0
    assert crossfit.pairwise_auroc(scores, base) == 0.5
