"""A race among arms leaves the best one in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from experiments import sweep
from refusal_nn.prompts import Prompt
from refusal_nn.racing import ALPHA, Standing, fisher_p, heats, ruled_out


@given(st.lists(st.integers(), unique=True))
def test_heats_hold_every_item_once(items):
    parts = heats(items)
    assert sorted(x for part in parts for x in part) == sorted(items)
    assert all(parts)


def test_heats_are_spread_over_the_order():
    parts = heats(range(32))
    assert [len(p) for p in parts] == [8, 8, 16]
    for part in parts:
        assert np.mean(part) == pytest.approx(15.5, abs=2)
    assert [len(p) for p in heats(range(16))] == [8, 8]
    assert [len(p) for p in heats(range(7))] == [7]
    assert heats([]) == []


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_p_is_fishers(n, m, data):
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    theirs = fisher_exact([[a, n - a], [b, m - b]], alternative="greater").pvalue
    assert fisher_p(Standing(a, n, 0), Standing(b, m, 0)) == pytest.approx(theirs)


def raced(rates, harm, rng):
    """Names still in after every prompt of three heats."""
    done = {name: 0 for name in rates}
    heat_sizes, n = (8, 8, 16), 0
    for size in heat_sizes[:-1]:
        n += size
        done = {name: k + rng.binomial(size, rates[name]) for name, k in done.items()}
        standings = {name: Standing(k, n, harm[name]) for name, k in done.items()}
        out = ruled_out(standings, len(rates) * 2, 0.1)
        done = {name: k for name, k in done.items() if name not in out}
    return set(done)


def test_an_arm_as_good_as_all_others_is_seldom_ruled_out():
    """30 arms of one rate, 400 races: the chance that a given one is lost stays under ALPHA."""
    rates = {str(i): 0.5 for i in range(30)}
    lost = [
        "0" not in raced(rates, dict.fromkeys(rates, 0), np.random.default_rng(s))
        for s in range(400)
    ]
    assert np.mean(lost) <= ALPHA


def test_hopeless_arms_are_ruled_out_after_the_first_heat():
    standings = {"best": Standing(8, 8, 0.0)} | {str(i): Standing(0, 8, 0.0) for i in range(29)}
    assert ruled_out(standings, 60, 0.1) == {str(i) for i in range(29)}


def test_an_arm_that_does_harm_rules_none_of_the_harmless_out():
    standings = {"salad": Standing(16, 16, 3.0), "gentle": Standing(4, 16, 0.05)}
    assert ruled_out(standings, 4, 0.1) == set()
    everything_harms = {"a": Standing(16, 16, 3.0), "b": Standing(0, 16, 2.0)}
    assert ruled_out(everything_harms, 4, 0.1) == {"b"}
    assert ruled_out({}, 4, 0.1) == set()


def test_a_sweep_asks_all_prompts_of_what_is_in_play_and_a_quarter_of_what_is_hopeless():
    prompts = [Prompt(str(i), "text", "harmful") for i in range(32)]
    complies, asked = {"good": 1.0, "fair": 0.8, "hopeless": 0.0}, {}

    def roll(arms, whose, what):
        for name in arms:
            asked[name] = asked.get(name, 0) + len(whose[name])
        return [
            {"arm": name, "id": p.id, "label": label, "coherence": 1.0}
            for name in arms
            for p in whose[name]
            for label in ["compliance" if int(p.id) % 10 < 10 * complies[name] else "refusal"]
        ]

    rows, out = sweep.raced(roll, dict.fromkeys(complies), prompts, dict.fromkeys(complies, 0.0))
    assert out == {"hopeless"}
    assert asked == {"good": 32, "fair": 32, "hopeless": 8}
    assert len({(r["arm"], r["id"]) for r in rows}) == len(rows) == 72
