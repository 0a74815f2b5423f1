"""Agreement and paired differences against published examples, and their coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from refusal_nn import agreement
from refusal_nn.agreement import (
    cohens_kappa,
    kappa_in_words,
    mcnemar,
    paired_rate_difference,
    rate_over_controls,
)
from refusal_nn.estimates import SMALLEST_P, Estimate, wilson


def labels(table):
    """Two judges' labels with these counts: rows are the first judge's."""
    cells = [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    return [i for i, _ in cells], [j for _, j in cells]


def outcomes(both, first, second, neither):
    """Paired booleans with these counts."""
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


def limits(estimate, digits=3):
    return (round(estimate.low, digits), round(estimate.high, digits))


# Fleiss, Cohen and Everitt's limits: kappa - 1.96 s.e. and kappa + 1.96 s.e.
KAPPAS = [
    # SAS/STAT User's Guide, PROC FREQ, "Agreement Study": 0.3449, ASE 0.0724
    ([[10, 4, 1, 0], [5, 10, 12, 2], [2, 4, 12, 5], [0, 2, 6, 13]], 0.3449, 0.2030, 0.4868),
    # R, fmsb::Kappa.test(matrix(c(20, 10, 5, 15), 2, 2))
    ([[20, 5], [10, 15]], 0.4000, 0.1511, 0.6489),
    # Fleiss (1981, p. 213): 0.676; the limits by the formula
    ([[75, 1, 4], [5, 4, 1], [0, 0, 10]], 0.6765, 0.5046, 0.8484),
]


@pytest.mark.parametrize(("table", "kappa", "low", "high"), KAPPAS)
def test_kappa_holds_the_published_interval_and_is_little_wider(table, kappa, low, high):
    found = cohens_kappa(*labels(table))
    assert found.value == pytest.approx(kappa, abs=5e-5)
    assert found.low <= low + 5e-5
    assert found.high >= high - 5e-5
    assert found.high - found.low < 1.15 * (high - low)


def test_a_kappa_of_one_label_only_is_not_told_as_no_agreement():
    said = kappa_in_words(cohens_kappa([True] * 97, [True] * 97))
    assert said == "not defined, one label throughout (n=97)"
    none = cohens_kappa([True, False] * 50, [True] * 50 + [False] * 50)
    assert kappa_in_words(none).startswith("0.00 [-0.2")


def test_kappa_with_much_data_has_the_interval_of_fleiss_cohen_and_everitt():
    for table, kappa, low, high in KAPPAS:
        found = cohens_kappa(*labels(400 * np.array(table)))
        half = (high - low) / 2 / math.sqrt(400)
        assert (found.low, found.high) == pytest.approx((kappa - half, kappa + half), abs=3e-4)


def test_kappa_equals_scikit_learns_on_words():
    rng = np.random.default_rng(0)
    words = np.array(["refusal", "compliance", "degenerate"])
    a, b = words[rng.integers(0, 3, 60)], words[rng.integers(0, 3, 60)]
    assert cohens_kappa(a, b).value == pytest.approx(cohen_kappa_score(a, b))


def test_items_that_a_judge_left_out_do_not_count():
    a = ["yes", "no", None, "yes", "no", "no"]
    b = ["yes", "no", "yes", None, "yes", "no"]
    assert cohens_kappa(a, b) == cohens_kappa(["yes", "no", "no", "no"], ["yes", "no", "yes", "no"])
    assert cohens_kappa(a, b).n == 4


def test_full_agreement_is_1_with_an_interval_that_narrows_with_n():
    few, many = (cohens_kappa(["a", "b"] * n, ["a", "b"] * n) for n in (5, 50))
    assert few.value == many.value == few.high == many.high == 1
    assert few.low < many.low < 1


def test_kappa_of_one_label_or_of_nothing_is_undefined_and_says_so_by_its_width():
    assert cohens_kappa(["a"] * 9, ["a"] * 9) == Estimate(0.0, -1.0, 1.0, 9)
    assert cohens_kappa(["a"], ["a"]) == Estimate(0.0, -1.0, 1.0, 1)
    assert cohens_kappa([None, "a"], ["a", None]) == Estimate(0.0, -1.0, 1.0, 0)
    assert cohens_kappa([], []) == Estimate(0.0, -1.0, 1.0, 0)


def test_a_judge_of_one_label_agrees_by_chance_only_with_an_interval_of_some_width():
    found = cohens_kappa(["a"] * 20, ["a"] * 15 + ["b"] * 5)
    assert found.value == pytest.approx(0)
    assert found.low < -0.05
    assert found.high > 0.05


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=40))
def test_kappa_is_symmetric_and_inside_its_interval(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    found = cohens_kappa(a, b)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low
    assert tuple(cohens_kappa(b, a)) == pytest.approx(tuple(found), abs=1e-12)


def copying(share, agreeing):
    """Cell probabilities of two judges with one rate, the second copying the first so often."""
    p = np.outer([share, 1 - share], [share, 1 - share]) * (1 - agreeing)
    return p + agreeing * np.diag([share, 1 - share])


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize(
    ("share", "kappa"), [(0.5, 0.0), (0.5, 0.5), (0.5, 0.9), (0.8, 0.2), (0.9, 0.4), (0.9, 0.8)]
)
def test_kappas_interval_covers_the_truth(n, share, kappa):
    rng = np.random.default_rng(0)
    tables, times = np.unique(
        rng.multinomial(n, copying(share, kappa).ravel(), 3000), axis=0, return_counts=True
    )
    found = [cohens_kappa(*labels(t.reshape(2, 2))) for t in tables]
    covered = np.array([e.low - 1e-12 <= kappa <= e.high + 1e-12 for e in found])
    assert times @ covered >= 0.93 * times.sum()


def test_mcnemar_gives_the_published_p_values():
    # Armitage and Berry (1994, p. 127): 12 against 2 of 50, exact p = 0.0129
    found = mcnemar(*outcomes(20, 2, 12, 16))
    assert found[:2] == (12, 2)
    assert found.p == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    # Altman et al. (2000), Table 6.2: 5 against 0, 2 / 2^5
    assert mcnemar(*outcomes(14, 5, 0, 22)).p == pytest.approx(1 / 16)


def test_mcnemar_is_1_where_nothing_or_as_much_changed_each_way():
    for cells in ((3, 0, 0, 4), (1, 0, 0, 0), (0, 3, 3, 1)):
        found = mcnemar(*outcomes(*cells))
        assert (found.p, found.log10_p) == (1.0, 0.0)


def test_mcnemar_never_says_p_is_0():
    found = mcnemar(np.zeros(2000), np.ones(2000))
    assert found.p == SMALLEST_P
    assert found.log10_p == pytest.approx(-1999 * math.log10(2))


def test_paired_difference_gives_the_published_intervals():
    # Newcombe (1998, Statist. Med. 17:2635), Table III, method 10, of 36, 12, 2, 0
    assert limits(paired_rate_difference(*outcomes(36, 12, 2, 0)), 4) == (0.0569, 0.3404)
    # Fagerland, Lydersen and Laake (2017), chapter 8: airways, and complete response
    assert limits(paired_rate_difference(*outcomes(1, 1, 7, 12))) == (-0.507, -0.026)
    assert limits(paired_rate_difference(*outcomes(59, 6, 16, 80)), 4) == (-0.1186, -0.0046)
    # Altman et al. (2000, p. 52), Table 6.2
    altman = paired_rate_difference(*outcomes(14, 5, 0, 22))
    assert (altman.value, *limits(altman)) == (pytest.approx(5 / 41), 0.011, 0.226)


cells = st.tuples(*[st.integers(0, 12)] * 4).filter(any)


@given(cells)
def test_a_difference_turns_its_sign_with_its_arms_and_stays_in_range(cells):
    a, b = outcomes(*cells)
    found, turned = paired_rate_difference(a, b), paired_rate_difference(b, a)
    assert -1 - 1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12
    assert found.high - found.low > 0.01
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_of_a_rate_is_wilson_of_a_count(counts):
    k, n = counts
    assert tuple(agreement.wilson_rate(k / n, n)) == pytest.approx(tuple(wilson(k, n)), abs=1e-12)


def test_wilson_of_a_rate_lies_between_its_neighbours_and_is_exact_at_the_ends():
    low, middle, high = wilson(26, 100), agreement.wilson_rate(0.265, 100), wilson(27, 100)
    assert low.low < middle.low < high.low
    assert low.high < middle.high < high.high
    assert agreement.wilson_rate(0, 3).low == 0
    assert agreement.wilson_rate(1, 3).high == 1
    for rate, n in ((1.1, 10), (-0.1, 10), (float("nan"), 10), (0.5, 0)):
        with pytest.raises(ValueError, match="rate"):
            agreement.wilson_rate(rate, n)


def test_equal_differences_have_an_interval_of_some_width():
    found = rate_over_controls(np.ones(40), np.zeros((5, 40)))
    assert found.value == found.high == 1
    assert 0.8 < found.low < 0.9
    none = rate_over_controls(np.zeros(40), np.zeros((5, 40)))
    assert none.value == 0
    assert none.low == pytest.approx(-none.high)
    assert none.high > 0.05
    one = rate_over_controls([1], [[0]])
    assert -1 <= one.low < 0.2
    assert one.n == 1


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize(
    "p", [(0.85, 0.1, 0.02, 0.03), (0.5, 0.3, 0.1, 0.1), (0.25,) * 4, (0.02, 0.9, 0.01, 0.07)]
)
def test_the_paired_interval_covers_the_truth(n, p):
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, p, 2000)
    truth = p[1] - p[2]
    found = [paired_rate_difference(*outcomes(*draw)) for draw in draws]
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.93


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("level", [-1.5, 0.5, 1.5])
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_the_interval_over_controls_covers_the_truth(n, level, shared):
    """Eight controls, prompts that yield more or less easily to all of them (shared > 0) or not."""
    rng = np.random.default_rng(0)

    def draw(n):
        ease = shared * rng.normal(size=n)
        target = ease + rng.normal(size=n) > -1
        return target, ease + rng.normal(size=(8, n)) > level

    target, controls = draw(400_000)
    truth = target.mean() - controls.mean()
    found = [rate_over_controls(*draw(n)) for _ in range(2000)]
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.93


@pytest.mark.parametrize(
    ("target", "controls"),
    [
        ([1, 0], [[1, 0, 1]]),
        ([1, 0], [1, 0]),
        ([1, 0], np.zeros((0, 2))),
        ([], np.zeros((1, 0))),
        ([1, float("nan")], [[1, 0]]),
        ([1, 2], [[1, 0]]),
    ],
)
def test_outcomes_that_are_missing_or_do_not_match_are_refused(target, controls):
    with pytest.raises(ValueError, match=r"outcome|prompts"):
        rate_over_controls(target, controls)


def test_paired_outcomes_must_be_equally_many():
    with pytest.raises(ValueError, match="shorter"):
        cohens_kappa(["a"], [])
    for compare in (mcnemar, paired_rate_difference):
        with pytest.raises(ValueError, match="equally many"):
            compare([True], [True, False])
