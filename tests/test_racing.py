"""A race among arms leaves the best one in, and asks little of the others."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import sweep
from refusal_nn import causal
from refusal_nn.prompts import Prompt
from refusal_nn.racing import ALPHA, FIRST, heats, p_value, race


@given(st.lists(st.integers(), unique=True), st.integers(0, 9))
def test_heats_hold_every_item_once(items, seed):
    parts = heats(items, seed)
    assert sorted(x for part in parts for x in part) == sorted(items)
    assert all(len(part) >= min(FIRST, len(items)) for part in parts)


def test_heats_are_drawn_anew_with_every_seed():
    assert [len(p) for p in heats(range(32), 0)] == [4, 4, 8, 16]
    assert [len(p) for p in heats(range(17), 0)] == [4, 4, 9]
    assert [len(p) for p in heats(range(7), 0)] == [7]
    assert heats([], 0) == []
    assert heats(range(32), 1) == heats(range(32), 1) != heats(range(32), 2)
    first = np.array([heats(range(32), seed)[0] for seed in range(400)])
    assert np.bincount(first.ravel(), minlength=32) == pytest.approx(50, abs=30)


def test_p_is_the_share_of_all_draws_that_hold_so_few():
    successes = [1, 1, 1, 0, 0, 0, 0]
    draws = [sum(drawn) for drawn in itertools.combinations(successes, 4)]
    for k in range(4):
        assert p_value(k, 4, 3, 7) == pytest.approx(np.mean([d <= k for d in draws]))
    assert p_value(0, 4, None, 7) == 0


def run(outcomes, order, seed):
    """race() over a table (arm, item): what was asked of each, and who was ruled out."""
    asked = dict.fromkeys(outcomes, 0)

    def ask(names, items):
        assert names
        for name in names:
            asked[name] += len(items)
        return {name: [outcomes[name][i] for i in items] for name in names}

    items = range(len(next(iter(outcomes.values()))))
    return asked, race(list(outcomes), items, ask, order, seed)


@pytest.mark.parametrize("together", [False, True], ids=["independent arms", "easy prompts"])
def test_the_arm_that_is_best_on_all_prompts_is_seldom_ruled_out(together):
    """200 tables of 30 arms, two of them nearly the best, a race each: at most ALPHA, whose upper
    limit for 200 is 9 %."""
    lost = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chance = rng.beta(2, 2, 30)[:, None]
        chance[:2] = 0.6
        u = rng.random(32) if together else rng.random((30, 32))
        did = {str(i): row.tolist() for i, row in enumerate(u < chance)}
        order = lambda name, rate: (-rate, int(name))  # noqa: E731
        best = min(did, key=lambda name: order(name, np.mean(did[name])))
        lost.append(best in run(did, order, seed)[1])
    assert np.mean(lost) <= ALPHA + 0.04


def test_whoever_is_in_to_the_end_was_asked_all():
    rng = np.random.default_rng(0)
    did = {str(i): (rng.random(32) < i / 12).tolist() for i in range(12)}
    asked, out = run(did, lambda name, rate: (-rate, int(name)), 0)
    assert {name for name in did if asked[name] < 32} == out != set()
    assert all(asked[name] in (4, 8, 16) for name in out)


def test_an_arm_that_could_not_be_chosen_whatever_it_did_is_asked_the_least():
    """It does harm, and another does little of it and enough good."""
    did = {"good": [True] * 26 + [False] * 6, "salad": [True] * 32, "idle": [False] * 32}
    kl = {"good": 0.2, "salad": 3.0, "idle": 0.01}

    def order(name, rate):
        return causal.worse({"compliance": rate, "kl": kl[name]})

    assert run(did, order, 0) == ({"good": 32, "salad": 4, "idle": 4}, {"salad", "idle"})
    alone = {"salad": did["salad"], "idle": did["idle"]}
    assert run(alone, order, 0) == ({"salad": 4, "idle": 32}, {"salad"})


def test_a_sweep_asks_all_prompts_of_what_is_in_play_and_an_eighth_of_what_is_hopeless():
    prompts = [Prompt(str(i), "text", "harmful") for i in range(32)]
    complies, asked = {"good": 1.0, "fair": 0.9, "hopeless": 0.0}, {}

    def roll(arms, whose, what):
        for name in arms:
            asked[name] = asked.get(name, 0) + len(whose[name])
        return [
            {"arm": name, "id": p.id, "label": label, "coherence": 1.0}
            for name in arms
            for p in whose[name]
            for label in ["compliance" if int(p.id) % 10 < 10 * complies[name] else "refusal"]
        ]

    kl = {"good": 0.05, "fair": 0.01, "hopeless": 0.0}
    rows, out = sweep.raced(roll, dict.fromkeys(complies), prompts, kl, 0)
    assert "good" not in out
    assert asked["good"] == 32
    assert asked["hopeless"] == 4
    assert len({(r["arm"], r["id"]) for r in rows}) == len(rows) == sum(asked.values())
