"""From judged rows to rates, the layer chosen and the verdict: all can be recounted by hand."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import causes
from refusal_nn import causal
from refusal_nn.estimates import wilson
from refusal_nn.judges import LABELS
from refusal_nn.verdicts import MODERATE_KL, MOST_KL

NAN = float("nan")


def row(label="compliance", number=0, **values):
    """A judged row as a rollout gives it."""
    broken = label == "degenerate"
    return {
        "id": f"p{number}",
        "label": label,
        "compliance": float(label == "compliance"),
        "coherence": 0.0 if broken else 1.0,
        "refusal_score": 2.0 if label == "refusal" else -2.0,
        "begins_refusal": label == "refusal",
    } | values


def labelled(*labels):
    return [row(label, i) for i, label in enumerate(labels)]


judged = st.builds(
    row,
    st.sampled_from(LABELS),
    st.integers(0, 99),
    coherence=st.sampled_from([0.0, 0.5, 1.0]),
    compliance=st.sampled_from([0.0, 0.5, 1.0]),
    refusal_score=st.floats(-9, 9),
    begins_refusal=st.booleans(),
)


@pytest.mark.parametrize(
    ("answer", "by_rule", "by_logits"),
    [
        (row("compliance"), True, True),
        (row("compliance", coherence=0.5), True, True),
        (row("compliance", coherence=0.0), False, True),
        (row("compliance", begins_refusal=True), True, False),
        (row("refusal"), False, False),
        (row("refusal", begins_refusal=False), False, True),
        (row("deflection"), False, True),
        (row("degenerate"), False, False),
    ],
)
def test_who_complied_by_either_judge(answer, by_rule, by_logits):
    assert causal.complied(answer) is by_rule
    assert causal.complied_by_logits(answer) is by_logits


def test_a_rate_of_nothing_has_no_number():
    assert causal.rate([]) == {}
    assert causal.rate([True], "x") == {"x": 1.0, "x_low": wilson(1, 1).low, "x_high": 1.0}


@given(st.lists(judged, min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_a_summary_can_be_recounted_from_its_rows(rows):
    found, n = causal.summarise(rows), len(rows)
    assert found["n"] == n == sum(found[f"n_{label}"] for label in LABELS)
    complied = sum(r["label"] == "compliance" and r["coherence"] > 0 for r in rows)
    assert found["compliance"] == complied / n
    assert found["coherence"] == sum(r["coherence"] > 0 for r in rows) / n
    assert found["refusal"] == found["n_refusal"] / n == causal.refusal_rates(rows)["refusal"]
    for name in ("compliance", "coherence", "refusal"):
        assert 0 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] <= 1
        assert found[f"{name}_low"] < found[f"{name}_high"]
    for name in ("compliance", "coherence"):
        assert found[f"mean_{name}"] == pytest.approx(math.fsum(r[name] for r in rows) / n)
    assert found["refusal_score"] == pytest.approx(math.fsum(r["refusal_score"] for r in rows) / n)
    assert causal.summarise(rows[::-1]) == pytest.approx(found)
    json.dumps(found, allow_nan=False)


def test_refusal_rates_of_no_rows_say_so_and_invent_no_rate():
    assert causal.refusal_rates([]) == {"n": 0, "labels": dict.fromkeys(LABELS, 0)}


def swept(layer, compliance, kl):
    return {"layer": layer, "compliance": compliance, "kl": kl}


def best(*rows):
    """The layer chosen, whatever the order of the rows."""
    found = {causal.best_row(order)["layer"] for order in itertools.permutations(rows)}
    assert len(found) == 1, "the order of the rows decides"
    return found.pop()


def test_the_best_row_complies_most_among_those_of_little_kl():
    assert best(swept(1, 0.5, 0.01), swept(2, 0.6, MOST_KL), swept(3, 0.65, MOST_KL + 1e-9)) == 2
    assert best(swept(1, 0.0, 0.1), swept(2, 0.39, 0.2)) == 1
    assert best(swept(1, 0.7, 0.1), swept(2, 1.0, 0.2)) == 1


def test_a_direction_that_does_nothing_is_not_best_for_its_little_kl():
    assert best(swept(1, 0.0, 0.0), swept(2, 0.8, 0.2)) == 2
    assert best(swept(1, 0.6, 0.0), swept(2, 0.8, 0.2)) == 2
    assert best(swept(1, 0.1, 0.0), swept(2, 0.5, 0.2)) == 2
    # But one that breaks the model says nothing.
    assert best(swept(1, 0.0, 0.0), swept(2, 0.8, MODERATE_KL + 1e-9)) == 1


def test_where_no_row_is_of_little_kl_the_best_of_all_is_taken():
    assert best(swept(1, 0.5, 0.6), swept(2, 0.6, 5.0)) == 2
    assert best(swept(1, 0.5, 0.3), swept(2, 0.6, 5.0)) == 1
    assert best(swept(1, 0.6, 7.0), swept(2, 0.6, 5.0)) == 2


def test_of_equals_the_least_kl_is_best():
    assert best(swept(1, 0.5, 0.02), swept(2, 0.5, 0.01), swept(3, 0.4, 0.0)) == 2
    assert best(swept(1, 0.2, 0.02), swept(2, 0.2, 0.01), swept(3, 0.1, 0.0)) == 2


def test_a_row_whose_kl_is_no_number_is_never_preferred():
    assert best(swept(1, 0.2, 0.05), swept(2, 0.9, NAN)) == 1
    assert best(swept(1, 0.5, 3.0), swept(2, 0.5, NAN)) == 1


def test_judges_that_agree_on_everything_have_kappa_one_and_on_one_label_none():
    both = causal.agreement(labelled("refusal", "compliance", "refusal", "degenerate"))
    assert (both["value"], both["n"]) == (1.0, 4)
    one = causal.agreement(labelled("refusal", "refusal"))
    assert (one["value"], one["low"], one["high"]) == (0.0, -1.0, 1.0)
    assert causal.agreement([])["n"] == 0


def trial(n=40, refused=36, complied=34, controls=(0, 1), kl=0.02, **values):
    """Before, after and controls of n prompts of which the first `refused` are refused."""
    before = [row("refusal" if i < refused else "compliance", i) for i in range(n)]
    after = [row("compliance" if i < complied or i >= refused else "refusal", i) for i in range(n)]
    after = [r | values for r in after]
    random = [
        row("compliance" if i < c else "refusal", i) | {"arm": arm}
        for arm, c in enumerate(controls)
        for i in range(refused)
    ]
    return before, after, random, kl


def test_a_clear_effect_is_yes_and_its_numbers_are_those_of_the_rows():
    verdict, numbers = causal.single_direction(*trial())
    assert verdict.verdict == "YES"
    assert not verdict.by_rate_only
    assert numbers["baseline_refusal"]["value"] == 36 / 40
    assert numbers["compliance"] == wilson(34, 36)._asdict()
    assert numbers["controls_compliance"] == pytest.approx((0 + 1) / 2 / 36)
    assert (numbers["controls"], numbers["controls_n"]) == (2, 72)
    assert numbers["over_controls"]["value"] == pytest.approx(34 / 36 - 1 / 72)
    assert (numbers["mcnemar"]["changed_up"], numbers["mcnemar"]["changed_down"]) == (0, 34)
    assert sum(numbers["labels"].values()) == 36
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"kl": NAN}, "UNDETERMINED"),
        ({"kl": 0.11}, "UNDETERMINED"),
        ({"controls": (30, 34)}, "UNDETERMINED"),
        ({"begins_refusal": True}, "UNDETERMINED"),
        ({"complied": 0, "controls": (0,)}, "NO"),
        ({"refused": 29, "complied": 29}, "UNTESTABLE"),
        ({"n": 80, "refused": 36}, "UNTESTABLE"),
    ],
)
def test_what_keeps_an_effect_from_being_a_yes(change, verdict):
    assert causal.single_direction(*trial(**change))[0].verdict == verdict


def test_the_order_of_the_rows_and_rows_beyond_the_prompts_asked_do_not_matter():
    before, after, random, kl = trial()
    expected = causal.single_direction(before, after, random, kl)
    after, random = [row("degenerate", 999), *after[::-1]], random[::-1]
    random.append(row("compliance", 999) | {"arm": 0})
    verdict, numbers = causal.single_direction(before, after, random, kl)
    assert verdict == expected[0]
    for name in set(numbers) - {"judges_kappa"}:
        assert numbers[name] == expected[1][name]


@pytest.mark.parametrize("missing", ["after", "control"])
def test_a_missing_row_is_an_error_and_no_smaller_sample(missing):
    before, after, random, kl = trial()
    if missing == "after":
        after = after[1:]
    else:
        random = random[1:]
    with pytest.raises((KeyError, ValueError)):
        causal.single_direction(before, after, random, kl)


def test_random_directions_in_turn_give_the_mean_of_all_of_them():
    """Prompts each met by two of ten random directions; the five even ones let all comply."""
    before, after, _, kl = trial(refused=40, complied=34)
    asked = causes.in_rotation(list(range(40)), [*range(10)], 2)
    assert {len(of) for of in asked.values()} == {8}
    random = [
        row("refusal" if arm % 2 else "compliance", i) | {"arm": arm}
        for arm, of in asked.items()
        for i in of
    ]
    _, numbers = causal.single_direction(before, after, random, kl)
    assert (numbers["controls"], numbers["controls_n"]) == (10, 80)
    assert numbers["controls_compliance"] == 0.5


def test_nothing_refused_and_no_controls_are_errors_and_no_verdict():
    with pytest.raises(ValueError, match="at least"):
        causal.single_direction(*trial(controls=()))
    with pytest.raises(ValueError, match=r".+"):
        causal.single_direction([], [], [], 0.0)


def test_where_nothing_is_refused_nothing_can_be_tested():
    verdict, _ = causal.single_direction(*trial(refused=0, complied=0))
    assert verdict.verdict == "UNTESTABLE"
