"""Two modes are found where there are two, and not where one hump explains the rates."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_nn import modes
from refusal_nn.agreement import wilson_rate
from refusal_nn.modes import two_modes
from refusal_nn.published_rates import CROSS_MODEL, PUBLISHED, of_study

PHI = "microsoft/Phi-3-mini-4k-instruct"


def rates(*percents, n=100):
    return {f"model {i}": wilson_rate(x / 100, n) for i, x in enumerate(percents)}


def test_the_published_rates_split_in_two_but_only_just_and_one_model_is_in_neither_mode():
    found = two_modes({name: row.rate for name, row in of_study(CROSS_MODEL).items()})
    assert found.verdict == modes.TWO_MODES
    assert 0.03 < found.p < 0.06
    assert [len(of) for of in found.by_class.values()] == [4, 0, 2, 1]
    assert found.by_class[modes.OPEN] == [PHI]
    assert PHI in found.low
    assert found.gap == pytest.approx(0.712 - 0.488, abs=0.002)


def test_the_studys_own_column_is_our_rule_by_rate():
    for row in of_study(CROSS_MODEL).values():
        assert row.verdict.verdict == row.sufficient.upper(), row.model
    assert all(row.verdict.by_rate_only for row in PUBLISHED)


@pytest.mark.parametrize(
    "percents",
    [
        (50,) * 7,
        (0,) * 7,
        (90, 91, 92, 93, 94, 95, 10),  # one model is no mode
        (10, 25, 40, 55, 70, 85, 95),
        (80, 85, 90, 95, 97, 99, 100),
    ],
)
def test_one_hump_an_even_spread_or_an_outlier_is_not_two_modes(percents):
    assert two_modes(rates(*percents)).verdict == modes.NOT_SHOWN


@pytest.mark.parametrize("order", list(itertools.permutations(range(6)))[::97])
def test_two_tight_groups_are_two_modes_in_any_order(order):
    values = [5, 8, 10, 90, 93, 96]
    found = two_modes(rates(*(values[i] for i in order)), draws=2000)
    assert found.verdict == modes.TWO_MODES
    assert {values[order[int(name[-1])]] for name in found.high} == {90, 93, 96}


def test_the_same_split_on_few_prompts_is_not_shown_where_intervals_touch():
    percents = (10, 20, 20, 80, 80, 90)
    assert two_modes(rates(*percents, n=100)).gap > 0
    few = two_modes(rates(*percents, n=10))
    assert few.gap < 0
    assert few.verdict == modes.NOT_SHOWN


def test_four_models_are_too_few_whatever_they_show():
    found = two_modes(rates(1, 2, 98, 99))
    assert (found.verdict, found.p) == (modes.TOO_FEW, None)
    assert [len(of) for of in found.by_class.values()] == [2, 0, 2, 0]


@pytest.mark.parametrize("law", [(1, 1), (8, 2), (5, 5)])
def test_models_from_one_hump_are_seldom_called_two_modes(law):
    rng = np.random.default_rng(0)
    called = 0
    for seed in range(60):
        counts = rng.binomial(100, rng.beta(*law, size=7))
        called += two_modes(rates(*counts), draws=300, seed=seed).verdict == modes.TWO_MODES
    assert called <= 7  # of 60 at 5 %: 3 expected, more than 7 once in 100


@given(st.lists(st.floats(0, 1), min_size=5, max_size=8))
def test_the_best_split_is_the_best_of_all(values):
    share, size = modes._best_split(np.array(values))
    x, best = np.sort(values), 0.0
    for k in range(modes.LEAST_IN_MODE, len(x) - modes.LEAST_IN_MODE + 1):
        within = sum(((part - part.mean()) ** 2).sum() for part in (x[:k], x[k:]))
        total = ((x - x.mean()) ** 2).sum()
        best = max(best, 1 - within / total if total > 1e-12 else 0.0)
    assert share == pytest.approx(best, abs=1e-6)
    assert modes.LEAST_IN_MODE <= size <= len(x) - modes.LEAST_IN_MODE


@pytest.mark.parametrize(
    ("percent", "n", "kind"),
    [
        (96, 100, modes.SINGLE),
        (79, 100, modes.SINGLE),
        (78, 100, modes.OPEN),
        (55, 100, modes.BETWEEN),
        (39, 100, modes.OPEN),
        (21, 100, modes.DISTRIBUTED),
        (21, 10, modes.OPEN),
    ],
)
def test_a_model_is_in_a_mode_only_with_its_whole_interval(percent, n, kind):
    assert modes.classified(wilson_rate(percent / 100, n)) == kind
