"""A projection that predicts refusal is found to, one that does not is not, and few outcomes give
no number."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from refusal_nn.behaviour import (
    BINS,
    Asked,
    by_layer,
    calibrate,
    low_projecting,
    predicts_refusal,
)
from refusal_nn.estimates import auroc, spearman

NAN = float("nan")


def simulated(n=6000, slope=1.5, intercept=-0.4, seed=0):
    """Refusal that is logistic in the projection; half of the prompts are val."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, n)
    p = 1 / (1 + np.exp(-(intercept + slope * (x - 3))))
    return x, rng.random(n) < p, np.arange(n) % 2 == 0, p


def asked(projections, refused, harmful=None, severity=None):
    n = len(refused)
    return Asked(
        np.atleast_2d(np.asarray(projections, float)),
        np.asarray(refused, bool),
        np.ones(n, bool) if harmful is None else np.asarray(harmful, bool),
        np.full(n, NAN) if severity is None else np.asarray(severity, float),
        np.array(["test"] * n),
    )


@pytest.mark.parametrize("slope", [0.5, 1.5, -1.0])
def test_a_logistic_truth_is_recovered_and_calibrated(slope):
    x, refused, val, p = simulated(slope=slope)
    found = calibrate(x, refused, val)
    assert np.abs(found.probability - p).max() < 0.06
    assert found.about["slope"] == pytest.approx(1, abs=0.15)
    best = float(np.mean((p[~val] - refused[~val]) ** 2))
    assert best - 1e-3 < found.about["brier"] < best + 3e-3
    assert found.about["brier"] < found.about["brier_constant"]


def test_a_projection_that_says_nothing_is_no_better_than_the_rate_alone():
    x, refused, val, _ = simulated(slope=0.0)
    about = calibrate(x, refused, val).about
    assert about["brier"] == pytest.approx(about["brier_constant"], abs=2e-3)


def test_a_relation_that_weakens_on_test_shows_as_a_slope_below_one():
    x, refused, val, _ = simulated()
    noise = np.random.default_rng(1).random(x.size) < 0.5
    refused = np.where(val | noise, refused, ~refused)
    assert calibrate(x, refused, val).about["slope"] < 0.5


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0), (1e6, 0), (1, 1e4)])
def test_the_unit_of_the_projection_does_not_matter(scale, shift):
    x, refused, val, _ = simulated(400)
    expected, found = calibrate(x, refused, val), calibrate(scale * x + shift, refused, val)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-4)


def test_bins_hold_every_test_prompt_once_and_rise():
    x, refused, val, _ = simulated(206)
    bins = calibrate(x, refused, val).about["bins"]
    assert [b["n"] for b in bins] == [21, 21, 21, 20, 20]
    assert sum(b["n"] * b["refused"] for b in bins) == pytest.approx(refused[~val].sum())
    assert all(a["high"] <= b["low"] for a, b in itertools.pairwise(bins))
    for b in bins:
        assert b["low"] <= b["predicted"] <= b["high"]
        assert b["refused_low"] <= b["refused"] <= b["refused_high"]


def test_separable_classes_leave_the_fit_finite():
    x = np.r_[-np.ones(20), np.ones(20)] + np.linspace(0, 0.1, 40)
    found = calibrate(x, x > 0, np.arange(40) % 2 == 0)
    assert 0 < found.probability.min() < 0.2 < 0.8 < found.probability.max() < 1
    json.dumps(found.about, allow_nan=False)


@pytest.mark.parametrize(
    ("refused", "val"),
    [
        ([0, 0, 0, 1], [1, 1, 0, 0]),  # one outcome in val
        ([1, 1, 0, 1], [1, 1, 0, 0]),
        ([0, 1, 0, 1], [0, 0, 0, 0]),  # no val
        ([0, 1, 0, 1], [1, 1, 1, 1]),  # no test
        ([], []),
    ],
)
def test_without_both_outcomes_in_val_and_a_test_there_is_no_probability(refused, val):
    found = calibrate(np.arange(float(len(val))), np.array(refused, bool), np.array(val, bool))
    assert found.about is None
    assert found.probability.shape == (len(val),)
    assert np.isnan(found.probability).all()


@pytest.mark.parametrize("outcome", [True, False])
@pytest.mark.parametrize("test", [1, 2, 7])
def test_one_outcome_on_test_has_no_slope_but_the_rest(outcome, test):
    x, refused, val = np.arange(8.0 + test), np.array([False, True] * 4), np.arange(8 + test) < 8
    about = calibrate(x, np.r_[refused, [outcome] * test], val).about
    assert about["slope"] is None
    assert (about["n_val"], about["n"]) == (8, test)
    assert len(about["bins"]) == min(test, BINS)
    json.dumps(about, allow_nan=False)


def test_a_constant_projection_gives_the_rate_of_val_and_no_slope():
    refused = np.array([True, False, False, False] * 5)
    found = calibrate(np.full(20, 7.0), refused, np.arange(20) < 12)
    np.testing.assert_allclose(found.probability, 0.25, atol=1e-4)
    assert found.about["brier"] == pytest.approx(found.about["brier_constant"], abs=1e-4)
    assert found.about["slope"] is None


scores = st.lists(st.integers(-4, 4), min_size=2, max_size=9)


@given(scores, scores)
@settings(deadline=None, max_examples=80)
def test_auroc_counts_the_pairs_ties_half_and_turns_with_the_classes(a, b):
    a, b = np.array(a, float), np.array(b, float)
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auroc(a, b) == pytest.approx(pairs)
    assert auroc(b, a) == pytest.approx(1 - pairs)
    found = predicts_refusal(np.r_[a, b], np.arange(a.size + b.size) < a.size)
    assert found.value == pytest.approx(pairs)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert found.n == a.size + b.size


@pytest.mark.parametrize("refused", [[], [1], [1, 0], [1, 0, 0, 0], [0, 1, 1, 1], [1] * 9])
def test_fewer_than_two_of_an_outcome_have_no_auroc(refused):
    assert predicts_refusal(np.arange(float(len(refused))), np.array(refused, bool)) is None
    [row] = by_layer(asked(np.arange(float(len(refused))), refused))
    assert (row["auroc"], row["auroc_low"], row["auroc_n"]) == ("", "", 0)


def test_a_projection_that_is_the_same_for_all_says_nothing():
    found = predicts_refusal(np.zeros(20), np.arange(20) < 9)
    assert found.value == 0.5
    assert found.low < 0.5 < found.high


def test_the_interval_covers_the_truth_and_is_not_empty_at_one():
    rng, truth, held = np.random.default_rng(0), stats.norm.cdf(1 / np.sqrt(2)), 0
    for _ in range(200):
        refused = np.arange(60) < 20
        found = predicts_refusal(rng.normal(refused, 1.0), refused)
        held += found.low <= truth <= found.high
    assert held >= 182
    perfect = predicts_refusal(np.arange(8.0), np.arange(8) >= 4)
    assert perfect.value == perfect.high == 1.0
    assert perfect.low < 0.8


def test_a_row_per_layer_with_the_same_columns_and_each_its_own_numbers():
    rng = np.random.default_rng(0)
    refused, severity = np.arange(30) < 12, np.r_[np.arange(20) % 5 + 1.0, [NAN] * 10]
    graded = np.nan_to_num(severity)
    rows = by_layer(
        asked([rng.normal(size=30), refused, graded, -graded], refused, graded > 0, severity)
    )
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert len({tuple(row) for row in rows}) == 1
    assert rows[1]["auroc"] == rows[1]["auroc_harmful"] == 1.0
    assert rows[2]["spearman_severity"] == pytest.approx(1.0)
    assert rows[3]["spearman_severity"] == pytest.approx(-1.0)
    assert {(r["auroc_n"], r["auroc_harmful_n"], r["spearman_n"]) for r in rows} == {(30, 20, 20)}


@pytest.mark.parametrize("severity", [[NAN] * 6, [1, 2, 3, NAN, NAN, NAN]])
def test_few_or_no_severities_have_no_rank_correlation(severity):
    [row] = by_layer(asked(np.arange(6.0), [0, 1] * 3, severity=severity))
    assert row["spearman_severity"] == ""
    assert row["spearman_n"] == 0


def test_spearman_is_of_ranks_and_a_constant_has_none():
    x = np.array([1.0, 2, 3, 4, 5, 5])
    assert spearman(x, np.exp(x)).value == pytest.approx(1.0)
    assert spearman(x, -(x**3)).value == pytest.approx(-1.0)
    assert spearman(x, np.ones(6))[:3] == spearman(x[:3], x[:3])[:3] == (0.0, -1.0, 1.0)
    found = spearman(x, np.array([2.0, 1, 4, 3, 6, 5]))
    assert -1 < found.low < found.value < found.high < 1


def projected(*values):
    return [{"class": label, "projection": x} for label, x in values]


def test_harmful_prompts_below_the_harmless_95th_percentile_lowest_first():
    harmless = [("harmless", float(i)) for i in range(101)]
    found = low_projecting(
        projected(("harmful", 95.0), ("harmful", 94.9), *harmless, ("harmful", -3), ("harmful", 99))
    )
    assert [row["projection"] for row in found] == [-3, 94.9]


def test_without_one_of_the_classes_nobody_projects_low():
    assert low_projecting([]) == []
    assert low_projecting(projected(("harmful", 1.0))) == []
    assert low_projecting(projected(("harmless", 1.0))) == []
    assert low_projecting(projected(("harmless", 1.0), ("harmful", 1.0))) == []
