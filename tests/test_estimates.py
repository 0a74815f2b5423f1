"""Intervals and p-values against their definitions and against other implementations."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from refusal_nn.estimates import (
    Estimate,
    auroc,
    auroc_interval,
    cohens_d,
    log10_p,
    overlap_count,
    overlap_range,
    spearman,
    wilson,
)


def test_wilson_gives_the_published_intervals_of_seed_000():
    # reference: Wilson 95 % at n = 100 of 96, 80, 39, 21, 15
    for k, low, high in ((96, 90, 98), (80, 71, 87), (39, 30, 49), (21, 14, 30), (15, 9, 23)):
        estimate = wilson(k, 100)
        assert (round(100 * estimate.low), round(100 * estimate.high)) == (low, high)
    assert Estimate(0.79, 0.70, 0.86, 100).percent() == "79 % [70, 86] (n=100)"


def test_wilson_has_positive_width_at_the_ends():
    assert wilson(0, 20).low == 0
    assert wilson(0, 20).high > 0.1
    assert wilson(20, 20).low < 0.9


def test_auroc_equals_scikit_learns_ties_included():
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 6, 40), rng.integers(1, 7, 25)
    assert auroc(p, q) == pytest.approx(roc_auc_score([1] * 40 + [0] * 25, np.concatenate([p, q])))


@pytest.mark.parametrize("value", [0.0, 0.02, 0.5, 0.9, 0.999, 1.0])
def test_auroc_interval_holds_its_estimate_and_is_never_of_zero_width(value):
    low, high = auroc_interval(value, 30, 50)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.01
    narrower = auroc_interval(value, 3000, 5000)
    assert narrower[1] - narrower[0] < high - low


def test_auroc_interval_is_symmetric_in_exchanging_the_classes():
    low, high = auroc_interval(0.8, 40, 40)
    assert auroc_interval(0.2, 40, 40) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("dof", [3.0, 50.0, 510.0, 5000.0])
@pytest.mark.parametrize("t", [0.0, 0.5, 3.0, 40.0, 102.25, 400.0])
def test_log10_p_equals_the_exact_one_far_below_the_smallest_double(t, dof):
    with mpmath.workdps(60):
        x = mpmath.mpf(dof) / (dof + mpmath.mpf(t) ** 2)
        exact = mpmath.log10(mpmath.betainc(dof / 2, 0.5, 0, x, regularized=True)) if t else 0
    assert log10_p(t, dof) == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


def test_cohens_d_is_the_seeds_formula_and_zero_without_spread():
    rng = np.random.default_rng(0)
    p, q = rng.normal(2, 1, 30), rng.normal(0, 3, 50)
    assert cohens_d(p, q) == pytest.approx(
        (p.mean() - q.mean()) / math.sqrt((p.std() ** 2 + q.std() ** 2) / 2)
    )
    assert cohens_d(np.ones(3), np.zeros(3)) == 0.0


def test_spearman_covers_the_truth_and_survives_constants():
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # of a bivariate normal with correlation 0.5
    covered = 0
    for _ in range(200):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 100).T
        found = spearman(x, y)
        covered += found.low <= truth <= found.high
        assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert covered >= 182
    assert spearman(np.ones(9), np.arange(9)) == Estimate(0.0, -1.0, 1.0, 9)
    assert spearman(np.arange(9), np.arange(9)).high <= 1


def test_overlap_rules_on_a_case_counted_by_hand():
    harmful, harmless = np.array([2.0, 5, 6, 9]), np.array([0.0, 1, 3, 4])
    assert overlap_count(harmful, harmless) == 0  # nobody past the other mean (2 and 5.5)
    assert overlap_range(harmful, harmless) == 3  # 2 in [0, 4]; 3 and 4 in [2, 9]
    assert overlap_range(harmful + 10, harmless) == 0
