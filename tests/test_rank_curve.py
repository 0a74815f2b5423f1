"""What the rank rule is given: every judge, every cluster, what is missing, the layers looked at,
and a rank that the single direction does not contradict."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import bases, rank_curve
from experiments.against import Other
from experiments.bench import Bench, Found
from refusal_nn import ranks
from refusal_nn.candidates import Candidate
from refusal_nn.errors import InputError
from refusal_nn.prompts import Prompt
from refusal_nn.subspaces import Subspace

FOUND = ranks.RankVerdict(ranks.RANK, 2, 2, 3, 8, ("why",))
TWO = Candidate("prompts", 3, Subspace(np.eye(4)[:2], np.ones(2), "prompts"))


def test_a_direction_that_is_enough_bounds_the_rank_and_says_so():
    said = rank_curve.reconciled(FOUND, "YES")
    assert (said.label, said.low, said.rank) == ("rank 2 [1, 3]", 1, 2)
    assert said.reasons[:-1] == FOUND.reasons
    assert "single direction" in said.reasons[-1]


def test_where_a_direction_is_enough_it_is_not_said_that_nothing_is():
    nothing = FOUND._replace(verdict=ranks.NOT_ACCESSIBLE, rank=None, low=9, high=9)
    said = rank_curve.reconciled(nothing, "YES")
    assert (said.verdict, said.low, said.high) == (ranks.UNDETERMINED, 1, 9)


@pytest.mark.parametrize("single", ["NO", "PARTIAL", "UNDETERMINED", "UNTESTABLE"])
def test_a_direction_that_is_not_enough_changes_nothing(single):
    assert rank_curve.reconciled(FOUND, single) is FOUND


@pytest.mark.parametrize("single", ["NO", "PARTIAL"])
def test_another_direction_that_is_enough_is_said_to_be_another(single):
    said = rank_curve.reconciled(FOUND._replace(rank=1), single)
    assert said._replace(reasons=FOUND.reasons) == FOUND._replace(rank=1)
    assert "another direction" in said.reasons[-1]


@pytest.mark.parametrize(
    "agreed", [FOUND._replace(rank=1), FOUND._replace(verdict=ranks.UNTESTABLE, rank=None)]
)
def test_what_agrees_with_a_direction_that_is_enough_stays(agreed):
    assert rank_curve.reconciled(agreed, "YES") is agreed


def judged(arm, i, label="compliance", **changes):
    row = {"arm": arm, "id": f"p{i}", "label": label, "coherence": 1.0, "begins_refusal": False}
    row |= {"compliance": 1.0, "refusal_score": -1.0}
    return row | changes


def bench(prompts, refused, **changes):
    rows = [{"id": p.id, "label": "refusal" if p.id in refused else "deflection"} for p in prompts]
    found = Found({"test": prompts}, None, None, {"test.harmful": rows}, 9.0, [], {}, "")
    return SimpleNamespace(found=found, **changes)


ASKED = [
    Prompt("p0", "one two three four five six", "harmful"),
    Prompt("p1", "two three four five six seven eight", "harmful"),
    Prompt("p2", "four five six seven eight nine", "harmful"),
    Prompt("p3", "something else", "harmful"),
]


def curve(rows, refused=("p0", "p1", "p2", "p3")):
    table = [{"kl": None}, {"kl": 0.05}]
    return rank_curve.ruled(bench(ASKED, refused), table, rows, np.zeros((2, 1, len(refused))))


def arms(**of):
    return [judged(arm, i, **of.get(f"p{i}", {})) for arm in "ab" for i in range(4)]


def test_near_duplicates_by_way_of_a_prompt_that_was_answered_are_one_cluster():
    a, b, c = curve([r for r in arms() if r["id"] != "p1"], ("p0", "p2", "p3")).clusters
    assert a == b != c


def test_a_missing_kl_is_no_number_and_the_baseline_is_of_all_prompts():
    found = curve([r for r in arms() if r["id"] != "p3"], ("p0", "p1", "p2"))
    assert np.isnan(found.kl[0])
    assert found.kl[1] == 0.05
    assert (found.baseline.value, found.baseline.n) == (0.75, 4)


def test_the_second_judge_is_the_logits_where_there_is_no_model():
    found = curve(arms(p1={"begins_refusal": True}, p2={"label": "degenerate"}))
    assert found.second.tolist() == [[True, False, False, True]] * 2


def test_a_judge_model_speaks_for_the_prompts_that_it_judged_at_every_rank():
    rows = arms(p0={"judge_label": "compliance"}, p1={"judge_label": "refusal"})
    rows[2]["judge_label"] = "compliance"  # of p2 at the first rank only
    found = curve(rows)
    assert found.second.tolist() == [[True, False]] * 2


def test_a_kl_that_is_no_number_is_an_empty_cell():
    rows = [judged(f"prompts 3 rank {k}", i) for k in (1, 2) for i in range(3)]
    kl = {"prompts 3 rank 1": float("nan"), "prompts 3 rank 2": 0.02}
    table = rank_curve.rows_of("val", TWO, rows, kl)
    assert [row["kl"] for row in table] == [None, 0.02]
    assert [row["rank"] for row in table] == [1, 2]


@pytest.mark.parametrize("controls", [1, 2, 3, 5])
def test_every_prompt_meets_different_random_subspaces_of_each_rank(controls):
    met = []

    def roll(arms, asked, what):
        rows = [judged(name, p.id[1:]) for name in arms for p in asked[name]]
        met.append({p.id: {r["arm"] for r in rows if r["id"] == p.id} for p in ASKED})
        return rows

    states = np.random.default_rng(0).standard_normal((4, 9, 4))
    args = SimpleNamespace(controls=controls, seed=0)
    model = SimpleNamespace(n_layers=4)
    made = bench(ASKED, {p.id for p in ASKED}, args=args, model=model, harmless=states, roll=roll)
    made.span = lambda basis: basis
    found, rows = rank_curve.random_spans(made, TWO, 2)
    turns = min(2, controls)
    assert [x.shape for x in found] == [(turns, 4)] * 2
    assert [len(arms) for of in met for arms in of.values()] == [turns] * 8
    assert len(rows) == 8 * turns


def looked_at(n, layers="", without=()):
    there = [layer for layer in range(n) if layer not in without]
    args = SimpleNamespace(layers=layers, positions="-1")
    model = SimpleNamespace(n_layers=n, name="m")
    bench = SimpleNamespace(model=model, has_direction=lambda layer, pos: layer in there)
    return bases._layers(args, bench)


@pytest.mark.parametrize(
    ("n", "usual"),
    [(1, [0]), (2, [1]), (3, [1]), (5, [1, 2, 3]), (30, list(range(3, 24)))],
)
def test_the_usual_layers_are_between_a_tenth_and_four_fifths_of_the_depth(n, usual):
    assert looked_at(n) == usual


def test_layers_at_which_all_prompts_are_alike_are_left_out():
    assert looked_at(5, "0-2", without=(0,)) == [1, 2]
    with pytest.raises(InputError, match="one state"):
        looked_at(5, "0", without=(0,))


def test_a_published_direction_is_of_the_nearest_layer_that_has_one():
    rows = np.diag([0.0, 1.0, 2.0, 0.0])
    other = Other("p", rows[1:3], (1, 2))
    assert [other.at(layer).argmax() for layer in (0, 1, 2, 3, 9)] == [1, 1, 2, 2, 2]
    assert len(Other("b", rows[1:3]).at(0)) == len(Other("b", rows[1:3]).at(7)) == 2


def test_ranks_are_padded_to_one_shape_without_removing_more(tiny_llama):
    made = Bench(SimpleNamespace(max_rank=4), None, SimpleNamespace(model=tiny_llama), None, 1.0)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 2)))[0].T
    assert made.span(basis).basis.shape == made.span(basis[:1]).basis.shape == (4, 64)
    x = torch.randn(3, 64)
    torch.testing.assert_close(
        made.span(basis)._ablated(x),
        x - x @ torch.tensor(basis.T @ basis).float(),
    )
