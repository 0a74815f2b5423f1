"""The choice among candidate subspaces: fewest dimensions at little KL, whatever is missing, tied,
or of another rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_nn import candidates, causal
from refusal_nn.estimates import wilson

NAN = float("nan")
MISSING = (NAN, None, float("inf"))


def scores(name, refused, kl=(0.0,) * 9, construction=None, n=32):
    about = {"name": name, "construction": construction or name, "n": n}
    return [
        about | {"rank": k, "refused": r, "kl": x}
        for k, (r, x) in enumerate(zip(refused, kl, strict=False), 1)
    ]


def test_the_best_of_each_construction_is_kept_best_first():
    rows = [
        *scores("prompts 1", (1, 0.5, 0.5, 0.5), construction="prompts"),
        *scores("prompts 2", (1, 0, 0, 0), construction="prompts"),
        *scores("clusters 1", (1, 0.5, 0, 0), construction="clusters"),
        *scores("layers", (0, 0, 0, 0)),
    ]
    assert candidates.best_of_each(rows, 9) == ["layers", "prompts 2", "clusters 1"]
    assert candidates.best_of_each(rows, 2) == ["layers", "prompts 2"]
    assert candidates.best_of_each(rows[::-1], 9) == ["layers", "prompts 2", "clusters 1"]
    assert candidates.best_of_each([], 3) == []


def test_the_leading_share_of_each_construction_is_asked_again_and_never_fewer_than_the_least():
    rows = [
        *scores("p 1", (1, 0.5), construction="p"),
        *scores("p 2", (1, 0), construction="p"),
        *scores("p 3", (0, 0), construction="p"),
        *scores("p 4", (1, 0.9), construction="p"),
        *scores("iterative", (1, 1)),
    ]
    assert candidates.leading(rows, 0.25, 1) == {"p 3", "iterative"}
    assert candidates.leading(rows, 0.26, 1) == {"p 3", "p 2", "iterative"}
    assert candidates.leading(rows, 0.25, 3) == {"p 3", "p 2", "p 1", "iterative"}
    best = candidates.best_of_each(rows, 9)
    assert set(best) <= candidates.leading(rows[::-1], 0.01, 1)


def test_a_rank_that_is_enough_counts_though_one_dimension_more_breaks_it():
    """So it is with planted models, where a mean over ranks would keep the second."""
    three = scores("c 3", (1, 1, 0, 1, 1, 1), (0.01, 0.01, 0.01, 2.0, 2.0, 2.0), "c")
    later = scores("c 5", (1, 1, 1, 0, 0, 0), construction="c")
    assert candidates.best_of_each([*later, *three], 1) == ["c 3"]


def test_of_equals_the_one_of_least_kl_is_kept():
    dear, cheap = (scores(f"c {x}", (0, 0), (x, x), "c") for x in (0.09, 0.01))
    assert candidates.best_of_each([*dear, *cheap], 1) == ["c 0.01"]


@pytest.mark.parametrize("missing", [*MISSING, 0.2])
def test_a_rank_of_much_or_unknown_kl_is_behind_any_of_little_that_is_enough(missing):
    gentle = scores("gentle", (0.9, 0.0), (0.01, 0.01))
    broken = scores("broken", (0.0, 0.0), (missing, missing))
    assert candidates.best_of_each([*broken, *gentle], 1) == ["gentle"]


@pytest.mark.parametrize("missing", MISSING)
def test_of_equals_one_of_unknown_kl_comes_last(missing):
    broken = scores("broken", (1, 1), (missing, 0.01))
    known = scores("known", (1, 1), (0.09, 0.09))
    for rows in ([*broken, *known], [*known, *broken]):
        assert candidates.best_of_each(rows, 1) == ["known"]


@pytest.mark.parametrize("refused", [(1, 0.2, 0.2), (1, 1, 0.2)])
def test_of_those_that_are_enough_fewer_dimensions_are_no_advantage_nor_a_drawback(refused):
    """One that has three keeps what it has at three, where there is no more to remove."""
    short = scores("short", refused)
    for last, best in ((0.3, "short"), (0.1, "long")):
        long = scores("long", (*refused, last))
        assert candidates.best_of_each([*short, *long], 1) == [best]


@pytest.mark.parametrize("last", [0.9, 0.4])
def test_where_none_is_enough_only_one_of_all_ranks_can_say_that_none_is(last):
    short, long = scores("short", (1, 0.5)), scores("long", (1, 0.9, last))
    assert candidates.best_of_each([*short, *long], 1) == ["long"]


def curve(name, complied, kl=(0.0,) * 9, n=32):
    rates = [wilson(round(c * n), n) for c in complied]
    return [
        {"name": name, "rank": k, "n": n, "compliance": r.value, "compliance_low": r.low, "kl": x}
        for k, (r, x) in enumerate(zip(rates, kl, strict=False), 1)
    ]


def test_the_curve_that_rises_earliest_is_best():
    early, late = curve("early", (0, 1, 1, 1)), curve("late", (0.4, 0.6, 1, 1))
    assert candidates.best_curve([*late, *early]) == "early"


def test_one_dimension_that_is_enough_is_preferred_to_two_whatever_comes_after():
    """A mean over ranks would prefer the second: removing more than is needed breaks the first."""
    one = curve("one", (1, 1, 1, 1), kl=(0.02, 0.2, 0.4, 0.8))
    two = curve("two", (0, 1, 1, 1), kl=(0.01,) * 4)
    assert candidates.best_curve([*two, *one]) == "one"


def test_what_passes_at_much_kl_only_is_no_reason_to_say_that_nothing_passes():
    gentle, dear = curve("gentle", (0.1, 0.1), kl=(0.01,) * 2), curve("dear", (0, 1), kl=(0.2,) * 2)
    assert candidates.best_curve([*gentle, *dear]) == "dear"
    enough = curve("enough", (0, 0, 1), kl=(0.05,) * 3)
    assert candidates.best_curve([*gentle, *dear, *enough]) == "enough"


def test_too_few_prompts_for_any_to_pass_leave_the_mean_over_ranks():
    few = [*curve("low", (0.2, 0.4, 0.9), n=6), *curve("high", (0.2, 0.9, 0.9), n=6)]
    assert candidates.best_curve(few) == "high"
    dear = [*curve("low", (0.2, 0.4), (9, 9), n=6), *curve("high", (0.2, 0.9), (9, 9), n=6)]
    assert candidates.best_curve(dear) == "high"


@pytest.mark.parametrize("missing", MISSING)
def test_a_curve_of_unknown_kl_is_never_preferred(missing):
    broken, known = curve("broken", (1, 1), (missing,) * 2), curve("known", (1, 1), (0.09,) * 2)
    for rows in ([*broken, *known], [*known, *broken]):
        assert candidates.best_curve(rows) == "known"


def test_ties_go_to_the_least_kl_and_then_to_the_first():
    rows = [*curve("a", (1, 1), (0.02, 0.02)), *curve("b", (1, 1), (0.01, 0.01))]
    assert candidates.best_curve(rows) == "b"
    rows = [*curve("a", (1, 1)), *curve("b", (1, 1))]
    assert candidates.best_curve(rows) == "a"


def test_a_short_curve_is_compared_over_the_ranks_of_the_longer_ones():
    short, long = curve("short", (0.3, 0.6)), curve("long", (0.3, 0.6, 0.6, 0.8))
    assert candidates.best_curve([*short, *long]) == "long"
    enough, falling = curve("short", (0.3, 0.95)), curve("falling", (0.3, 0.95, 0.2, 0.2))
    assert candidates.best_curve([*enough, *falling]) == "short"


def test_where_few_val_prompts_let_no_lower_limit_pass_the_rate_itself_counts():
    rising, flat = curve("rising", (0.1, 0.2, 0.81), n=16), curve("flat", (0.5, 0.5, 0.5), n=16)
    assert candidates.best_curve([*flat, *rising]) == "rising"
    higher = curve("higher", (0.0, 0.1, 0.69), n=16)
    assert candidates.best_curve([*flat, *higher]) == "higher"


def test_one_curve_is_the_best_of_one():
    assert candidates.best_curve(curve("only", (0,), (NAN,))) == "only"


directions_swept = st.lists(
    st.fixed_dictionaries(
        {
            "layer": st.integers(0, 30),
            "pos": st.just(-1),
            "compliance": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
            "kl": st.sampled_from([0.01, 0.1, 0.11, 2.0, NAN]),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(directions_swept)
def test_the_first_in_order_is_the_direction_that_the_sweep_reports(rows):
    assert candidates.in_order(rows)[0] is causal.best_row(rows)


def test_a_layer_that_breaks_the_model_comes_after_those_that_do_not():
    rows = [{"layer": 9, "compliance": 1.0, "kl": 0.5}, {"layer": 4, "compliance": 0.8, "kl": 0.01}]
    # As a table on disk has a number that is none.
    rows += [{"layer": 5, "compliance": 1.0, "kl": "nan"}]
    assert [row["layer"] for row in candidates.in_order(rows)] == [4, 9, 5]


def test_a_direction_that_breaks_the_text_does_not_beat_two_that_end_refusals_gently():
    # organism-2: one direction of block 17 leaves neither refusal nor sense.
    breaks = [(1, 0.0, 1.9), (2, 0.0, 2.1)]
    gentle = [(1, 0.83, 0.04), (2, 0.0, 0.25)]
    rows = [
        {"name": name, "construction": "prompts", "rank": k, "n": 12, "refused": refused, "kl": kl}
        for name, curve in (("prompts 17", breaks), ("prompts 16", gentle))
        for k, refused, kl in curve
    ]
    assert candidates.best_of_each(rows, 1) == ["prompts 16"]
