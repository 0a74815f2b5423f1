"""Half of the prompts rule out candidates, never the one that all of them would choose."""

import numpy as np
import pytest

from refusal_nn.directions import choose
from refusal_nn.grid import LEAST, averaged, halves, in_play, two_rounds

N_LAYERS, TOTALS = 10, {"harmful": 32, "harmless": 32}


def table(seed, places=60):
    """Scores of places by prompt, gates and all: prompts differ, and places on each prompt."""
    rng = np.random.default_rng(seed)

    def of(center, spread):
        easy = rng.normal(0, spread, 32)
        return (
            rng.normal(rng.normal(center, spread, places), 1)[..., None]
            + easy
            + rng.normal(0, spread, (places, 32))
        )

    values = {"ablated": of(0, 1), "added": of(2, 1), "kl": np.exp(of(-3, 0.7))}
    return {
        (i % N_LAYERS, -1 - i // N_LAYERS): {k: v[i].tolist() for k, v in values.items()}
        for i in range(places)
    }


def asking(scores, asked, first=16, **changes):
    def ask(number, places):
        part = (slice(first), slice(first, None))[number]
        asked.append([len(places), number])
        for layer, pos in places:
            row = {k: v[part] for k, v in scores[layer, pos].items()}
            yield {"layer": layer, "pos": pos, "token": "x", "norm": 1.0, **row, **changes}

    return ask


def whole(scores):
    return [averaged(row) for row in asking(scores, [], first=32)(0, list(scores))]


@pytest.mark.parametrize("seed", range(40))
def test_what_all_prompts_choose_is_chosen_at_little_more_than_half_the_work(seed):
    scores, asked = table(seed), []
    rows = two_rounds(list(scores), asking(scores, asked), TOTALS, N_LAYERS)
    every = choose(whole(scores), N_LAYERS)
    chosen = choose(rows, N_LAYERS)
    assert (every and (every["layer"], every["pos"])) == (
        chosen and (chosen["layer"], chosen["pos"])
    )
    assert chosen is None or not chosen["ruled_out"]
    assert sum(count for count, number in asked if number == 1) <= len(scores) / 3
    for row in rows:
        n = 16 if row["ruled_out"] else 32
        own = scores[row["layer"], row["pos"]]
        assert (row["n_harmful"], row["n_harmless"]) == (n, n)
        assert row["kl"] == pytest.approx(np.mean(own["kl"][:n]))
        assert row["ablated"] == pytest.approx(np.mean(own["ablated"][:n]))


def test_a_choice_that_was_ruled_out_at_first_is_asked_all_when_the_leader_fails():
    """The leader's KL comes with the second half; the only other one was far behind it."""
    quiet, loud = [0.01] * 32, [0.01] * 16 + [9.0] * 16
    scores = {
        (0, -1): {"ablated": [-9.0] * 32, "added": [1.0] * 32, "kl": loud},
        (1, -1): {"ablated": [-1.0] * 32, "added": [1.0] * 32, "kl": quiet},
        (2, -1): {"ablated": [5.0] * 32, "added": [1.0] * 32, "kl": quiet},
    }
    asked = []
    rows = two_rounds(list(scores), asking(scores, asked), TOTALS, N_LAYERS)
    assert asked == [[3, 0], [1, 1], [1, 1]]
    assert [row["ruled_out"] for row in rows] == [False, False, True]
    assert choose(rows, N_LAYERS)["layer"] == 1


def test_where_the_leader_fails_whoever_may_beat_the_next_is_asked_all_as_well():
    """By half of the prompts the second is a little better than the third; by all, the third."""
    n = [(-1.0) ** i for i in range(16)]
    quiet, loud = [0.01] * 32, [0.09 + 0.001 * x for x in n] + [0.13] * 16
    two, three = [-2 + x for x in n] * 2, [-1.9 - x for x in n] + [-2.5 - x for x in n]
    scores = {
        (i, -1): {"ablated": ablated, "added": [1.0] * 32, "kl": kl}
        for i, (ablated, kl) in enumerate([([-9.0] * 32, loud), (two, quiet), (three, quiet)])
    }
    rows = two_rounds(list(scores), asking(scores, []), TOTALS, N_LAYERS)
    assert choose(whole(scores), N_LAYERS)["layer"] == 2
    assert choose(rows, N_LAYERS)["layer"] == 2


def test_one_round_where_there_are_few_prompts():
    scores, asked = table(0), []
    rows = two_rounds(list(scores), asking(scores, asked, first=32), TOTALS, N_LAYERS)
    assert asked == [[60, 0]]
    assert not any(row["ruled_out"] for row in rows)
    few = {"harmful": list(range(2 * LEAST - 1)), "harmless": list(range(40))}
    assert halves(few, 0) == [few]


def test_halves_hold_every_prompt_of_a_class_once_and_are_drawn_anew_with_every_seed():
    prompts = {"harmful": list(range(17)), "harmless": list(range(40))}
    one, two = halves(prompts, 0)
    assert {k: len(v) for k, v in one.items()} == {"harmful": 8, "harmless": 20}
    assert {k: sorted(one[k] + two[k]) for k in one} == prompts
    assert halves(prompts, 0) == [one, two] != halves(prompts, 1)


def test_a_score_that_is_no_number_rules_out_and_stays_a_gap():
    scores = table(3)
    scores[4, -1]["kl"][2] = None
    rows = two_rounds(list(scores), asking(scores, []), TOTALS, N_LAYERS)
    [row] = [r for r in rows if (r["layer"], r["pos"]) == (4, -1)]
    assert row["kl"] is None
    assert row["ruled_out"]


def test_a_score_that_is_no_number_in_the_second_half_is_never_chosen():
    scores = table(0)
    best = choose(whole(scores), N_LAYERS)
    scores[best["layer"], best["pos"]]["kl"][30] = None
    rows = two_rounds(list(scores), asking(scores, []), TOTALS, N_LAYERS)
    [row] = [r for r in rows if (r["layer"], r["pos"]) == (best["layer"], best["pos"])]
    assert row["kl"] is None
    chosen, expected = choose(rows, N_LAYERS), choose(whole(scores), N_LAYERS)
    assert (chosen["layer"], chosen["pos"]) == (expected["layer"], expected["pos"])


def test_nothing_without_a_direction_or_too_deep_is_in_play():
    scores = table(1)
    flat = list(asking(scores, [], norm=0.0)(0, list(scores)))
    assert in_play(flat, TOTALS, N_LAYERS) == []
    going = in_play(list(asking(scores, [])(0, list(scores))), TOTALS, N_LAYERS)
    assert going
    assert max(layer for layer, _ in going) <= 6
