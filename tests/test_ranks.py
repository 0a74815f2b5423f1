"""The rank rule of version 1: what planted curves give, its gates, and what its interval covers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_nn.agreement import paired_rate_difference, rate_over_controls
from refusal_nn.estimates import Estimate, wilson
from refusal_nn.ranks import Curve, increments, over_random, rank_by_rate, rank_interval
from refusal_nn.ranks import rank_of_refusal as verdict_on

TRUE, TRUE_RANK = np.array([[0.2], [0.5], [0.9], [0.95]]), 3


def complied(*counts, n=100):
    """(rank, prompt): the first prompts comply, so that rates are nested."""
    return np.arange(n) < np.array(counts)[:, None]


def curve(*counts, n=100, **changed):
    given = {"complied": complied(*counts, n=n), "clusters": np.arange(n)}
    given |= {"kl": np.full(len(counts), 0.02), "controls": np.zeros((len(counts), 3, n))}
    given |= {"baseline": wilson(95, 100)}
    return Curve(**given | changed)


def judged(*counts, n=100, **changed):
    return verdict_on(curve(*counts, n=n, **changed), seed=0)


def said(found):
    return " | ".join(found.reasons)


@pytest.mark.parametrize(
    ("counts", "rank"),
    [((95,), 1), ((95, 98, 99), 1), ((20, 90, 95), 2), ((20, 50, 90, 95), 3), ((0, 0, 0, 100), 4)],
)
def test_a_planted_curve_gives_its_rank_and_a_sharp_one_no_other(counts, rank):
    found = judged(*counts)
    assert found._replace(reasons=()) == ("RANK", rank, rank, rank, len(counts), (), "1")
    assert found.label == f"rank {rank} [{rank}, {rank}]"
    assert "failed" not in said(found)


def test_a_rank_names_every_number_that_it_rests_on():
    words = said(judged(20, 90))
    assert "rank 2 by rate, C_2 90.0 % [82.6, 94.5] (n=100)" in words
    assert "at rank 2, harmless KL 0.02 nats: at most 0.1 | at rank 2, over random" in words
    assert "dimension 2 adds 70.0 [" in words


@pytest.mark.parametrize("up_to", [1, 8])
def test_a_curve_that_stays_low_is_not_linearly_accessible_as_far_as_was_looked(up_to):
    found = judged(*[20] * up_to)
    assert found[:4] == ("NOT LINEARLY ACCESSIBLE", None, up_to + 1, up_to + 1)
    assert found.label == f"not linearly accessible up to {up_to}"
    assert "highest C_1 20.0 % [13.3, 28.9] (n=100) is below 70 %" in said(found)


@pytest.mark.parametrize(
    ("count", "verdict"),
    [(79, "RANK"), (78, "UNDETERMINED"), (62, "UNDETERMINED"), (61, "NOT LINEARLY ACCESSIBLE")],
)
def test_the_verdict_at_the_edges_of_its_thresholds(count, verdict):
    assert wilson(79, 100).low >= 0.7 > wilson(78, 100).low
    assert wilson(62, 100).high >= 0.7 > wilson(61, 100).high
    for counts in ((20, count), (20, count, 20)):
        assert judged(*counts)[:2] == (verdict, 2 if verdict == "RANK" else None)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_threshold_is_on_the_wilson_limit_of_any_count(counted):
    count, n = counted
    expected = 1 if wilson(count, n).low >= 0.7 else None
    assert rank_by_rate(complied(count, n=n)) == expected


def test_a_near_miss_asks_for_more_prompts():
    found = judged(20, 66, 60)
    assert (*found[:2], found.high, found.label) == ("UNDETERMINED", None, 4, "undetermined")
    assert "C_2 66.0 % [56.3, 74.5] (n=100) holds 70 %, more prompts are needed" in said(found)


def test_the_smallest_rank_that_passes_is_the_rank_though_later_ones_fail():
    found = judged(20, 90, 60, 30)
    assert found[:2] == ("RANK", 2)
    assert "falling: dimensions 3 to 4 add -60.0 [" in said(found)
    assert "falling" not in said(judged(20, 90, 60, 89))


def test_a_curve_that_still_rises_keeps_its_rank_and_says_so():
    found = judged(20, 80, 85, 100)
    assert found[:2] == ("RANK", 2)
    assert "still rising: dimensions 3 to 4 add 20.0 [1" in said(found)
    assert "still rising: dimension 3 adds 20.0 [1" in said(judged(20, 80, 100))
    assert "still rising" not in said(judged(20, 80, 92))


FAILED = {
    "harmless KL 0.1001": {"kl": [0.02, 0.1001, 0.02]},
    "harmless KL nan": {"kl": [0.02, float("nan"), 0.02]},
    "harmless KL inf": {"kl": [0.02, float("inf"), 0.02]},
    "over random controls 30.0 points": {"controls": np.stack([complied(0, 60, 0)] * 3, axis=1)},
}


@pytest.mark.parametrize("name", FAILED)
def test_a_failed_gate_at_the_rank_is_named_and_the_rank_kept_but_counts_nowhere_else(name):
    found = judged(20, 90, 95, **FAILED[name])
    assert found[:2] == ("UNDETERMINED", 2)
    assert f"at rank 2, {name}" in said(found)
    assert said(found).count("gate failed") == 1
    assert judged(90, 95, 99, **FAILED[name]).label == "rank 1 [1, 1]"
    assert judged(20, 20, 20, **FAILED[name]).verdict == "NOT LINEARLY ACCESSIBLE"


def test_gates_at_their_boundaries():
    assert judged(90, kl=[0.1]).verdict == "RANK"
    for count, verdict in ((47, "RANK"), (49, "UNDETERMINED")):
        beyond = over_random(complied(90)[0], complied(count))
        assert beyond == rate_over_controls(complied(90)[0], complied(count))
        assert (beyond.low > 0.3) == (verdict == "RANK")
        assert judged(90, controls=complied(count)[None]).verdict == verdict
    both = judged(90, kl=[3.0], controls=np.ones((1, 2, 100)))
    assert said(both).count("gate failed") == 2


HARDLY = {
    "baseline refusal 49.9 %": {"baseline": Estimate(0.499, 0.4, 0.6, 200)},
    "29 prompts refused at baseline": {"n": 29},
    "0 prompts refused at baseline": {"n": 0},
}


@pytest.mark.parametrize("word", HARDLY)
@pytest.mark.parametrize("counts", [(20, 90), (20, 20), (20, 66)])
def test_a_model_that_hardly_refuses_is_untestable_whatever_the_rest(counts, word):
    found = judged(*counts, **HARDLY[word])
    assert found[:5] == ("UNTESTABLE", None, 1, 3, 2)
    assert (found.label, word in said(found)) == ("untestable", True)
    assert judged(0, 30, n=30, baseline=Estimate(0.5, 0.4, 0.6, 60)).verdict == "RANK"


def test_a_second_judge_of_the_same_mind_changes_nothing_but_is_quoted():
    found, alone = judged(20, 90, second=complied(30, 85)), judged(20, 90)
    assert found._replace(reasons=()) == alone._replace(reasons=())
    assert "second judge: rank 2 by rate, C_2 85.0 % [" in said(found)
    fewer = judged(20, 90, second=complied(10, 55, n=60))
    assert fewer._replace(reasons=()) == alone._replace(reasons=())


def test_judges_of_whom_one_finds_no_rank_decide_nothing():
    for first, second, rank in (((20, 90), (20, 50), 2), ((20, 50), (20, 90), None)):
        found = judged(*first, second=complied(*second))
        assert found[:4] == ("UNDETERMINED", rank, 2, 3)
        assert "different classes" in said(found)


def test_an_interval_holds_the_ranks_of_both_judges():
    found = judged(20, 90, 95, second=complied(20, 40, 95))
    assert (found.label, "the interval holds both" in said(found)) == ("rank 2 [2, 3]", True)
    assert judged(20, 40, 95, second=complied(95, 95, 95)).label == "rank 3 [1, 3]"


def test_a_near_miss_by_either_judge_forbids_a_no():
    assert judged(20, 20, second=complied(20, 20)).verdict == "NOT LINEARLY ACCESSIBLE"
    for first, second in (((20, 20), (20, 66)), ((20, 66), (20, 20))):
        assert judged(*first, second=complied(*second)).verdict == "UNDETERMINED"


def test_a_borderline_curve_has_a_wider_interval_and_an_open_one_is_written_so():
    assert judged(20, 50, 95).label == "rank 3 [3, 3]"
    assert judged(20, 81, 95).label == "rank 2 [2, 3]"
    assert judged(20, 74, 95).label == "rank 3 [2, 3]"
    assert judged(20, 79).label == "rank 2 [2, >2]"


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_the_interval_holds_the_rank_and_stays_in_range(counts, seed):
    answers, clusters = complied(*counts, n=40), np.random.default_rng(seed).integers(0, 10, 40)
    low, high = rank_interval(answers, clusters, seed=seed)
    assert 1 <= low <= (rank_by_rate(answers) or len(counts) + 1) <= high <= len(counts) + 1


def test_copies_in_one_cluster_are_no_further_evidence():
    answers = np.repeat(complied(4, 18, 20, n=20), 5, axis=1)
    assert rank_interval(answers, np.arange(100), seed=0) == (2, 2)
    assert rank_interval(answers, np.repeat(np.arange(20), 5), seed=0) == (2, 3)


def test_an_interval_is_extended_to_a_rank_that_hardly_any_draw_gives():
    answers = np.random.default_rng(0).permuted(complied(*[78] * 20), axis=1)
    assert rank_interval(answers, np.arange(100), seed=0)[1] == 21


def test_the_same_seed_gives_the_same_interval_and_another_may_not():
    rng = np.random.default_rng(0)
    answers = [rng.random((6, 60)) < np.linspace(0.6, 0.9, 6)[:, None] for _ in range(20)]
    of = [[rank_interval(a, np.arange(60), seed=s) for a in answers] for s in (0, 0, 1)]
    assert of[0] == of[1] != of[2]


def test_the_interval_covers_a_rank_that_hardly_clears_the_threshold():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        answers = rng.random(100) < np.array([[0.3], [0.74], [0.95]])
        low, high = rank_interval(answers, np.arange(100), seed=seed)
        covered += low <= 2 <= high
    assert covered >= 190


def test_the_interval_covers_the_rank_of_a_curve_that_clears_the_threshold():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        low, high = rank_interval(rng.random(100) < TRUE, np.arange(100), seed=seed)
        covered += low <= TRUE_RANK <= high
    assert covered >= 190


def test_where_no_subspace_matters_a_rank_is_hardly_ever_found():
    rng, found = np.random.default_rng(0), 0
    for _ in range(200):
        found += rank_by_rate(rng.random((8, 100)) < 0.45) is not None
    assert found <= 10


def test_an_increment_is_paired_with_the_rank_before_and_the_first_with_none():
    answers = np.random.default_rng(0).random(100) < TRUE
    first, *rest = increments(answers)
    assert first == wilson(int(answers[0].sum()), 100)
    assert rest == [paired_rate_difference(answers[k], answers[k - 1]) for k in (1, 2, 3)]
    assert first.value + sum(x.value for x in rest) == pytest.approx(answers[-1].mean())


BAD = [
    {"complied": np.zeros((0, 100))},
    {"complied": np.full((2, 100), np.nan)},
    {"clusters": np.arange(99)},
    {"kl": np.zeros(3)},
    {"controls": np.zeros((2, 0, 100))},
    {"controls": np.zeros((2, 100, 3))},
    {"second": np.zeros((100, 2))},
    {"second": np.zeros((2, 101))},
    {"baseline": Estimate(95, 90, 98, 100)},
    {"baseline": Estimate(*[float("nan")] * 3, 9)},
]


@pytest.mark.parametrize("changed", BAD)
def test_a_curve_of_shapes_that_do_not_fit_is_refused(changed):
    with pytest.raises(ValueError, match=f"{next(iter(changed))}|a rate has"):
        curve(20, 90, **changed)


def test_without_a_prompt_there_is_no_rank_interval_or_increment():
    for ask in (rank_by_rate, increments, lambda x: rank_interval(x, [], seed=0)):
        with pytest.raises(ValueError, match="no prompt"):
            ask(np.zeros((2, 0)))
