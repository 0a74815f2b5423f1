"""Prompts kept, directions fitted and scored, and the choice among them, on a tiny random model."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_nn import grid, selection
from refusal_nn.directions import choose
from refusal_nn.interventions import (
    ActivationAddition,
    DirectionalAblation,
    orthonormal,
    stacked,
)
from refusal_nn.journal import Journal
from refusal_nn.prompts import Prompt, load_prompts
from refusal_nn.scores import kl_divergence, refusal_score
from refusal_nn.tracing import capture, next_token_logits

TOKENS = [40, 41, 300]
NAN = float("nan")


def asked(harmful, harmless):
    """Prompts whose texts are their refusal scores."""
    return [
        Prompt(f"{label}-{i:03}", str(score), label)
        for label, scores in (("harmful", harmful), ("harmless", harmless))
        for i, score in enumerate(scores)
    ]


def filtered(prompts, most=None):
    """With a model whose odds of refusal are exp(score)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            selection,
            "next_token_logits",
            lambda model, texts: torch.tensor([[float(t), 0.0] for t in texts]),
        )
        return selection.filter_by_refusal(None, prompts, [0], most)


def ids(prompts):
    return [p.id for p in prompts]


def test_harmful_prompts_that_are_refused_and_harmless_ones_that_are_not_are_kept():
    kept, counts = filtered(asked([2.0, -1.0, 0.5, 3.0], [-2.0, 1.0, -0.1]))
    assert ids(kept["harmful"]) == ["harmful-000", "harmful-002", "harmful-003"]
    assert ids(kept["harmless"]) == ["harmless-000", "harmless-002"]
    assert [(c["class"], c["n"], c["used"]) for c in counts] == [
        ("harmful", 4, 3),
        ("harmless", 3, 2),
    ]
    assert [c["refused"] for c in counts] == [3 / 4, 1 / 3]
    assert all(c["low"] < c["refused"] < c["high"] for c in counts)


def test_a_class_without_a_prompt_or_without_one_to_keep_is_counted_as_such():
    kept, counts = filtered(asked([-1.0, -2.0], []), most=5)
    assert kept == {"harmful": [], "harmless": []}
    assert counts[0]["refused"] == 0.0
    assert (counts[1]["n"], counts[1]["used"]) == (0, 0)


def test_a_score_that_is_no_number_keeps_a_prompt_in_neither_class():
    kept, _ = filtered(asked([NAN, 1.0], [NAN, -1.0]))
    assert (ids(kept["harmful"]), ids(kept["harmless"])) == (["harmful-001"], ["harmless-001"])


@given(st.integers(1, 80), st.integers(1, 40))
@settings(deadline=None, max_examples=80)
def test_of_many_prompts_so_many_are_taken_evenly_over_all_of_them(count, most):
    kept, [harmful, _] = filtered(asked([1.0] * count, []), most)
    at = [int(p.id[-3:]) for p in kept["harmful"]]
    assert len(at) == harmful["used"] == min(count, most)
    assert at == sorted(set(at))
    # Every stretch of the order given has its share, up to one prompt.
    for start in range(0, count, 10):
        share = sum(start <= i < start + 10 for i in at)
        assert abs(share - len(at) * (min(start + 10, count) - start) / count) <= 1.001


@pytest.fixture(scope="module")
def prompts():
    chosen = sorted(load_prompts(), key=lambda p: p.id)[::81]
    return {label: [p for p in chosen if p.label == label] for label in ("harmful", "harmless")}


def test_a_fitted_direction_is_the_difference_of_the_class_means(tiny_llama, prompts):
    positions = range(-len(tiny_llama.template.post_ids), 0)
    states = {
        label: capture(tiny_llama, [p.prompt for p in of], list(positions)).states
        for label, of in prompts.items()
    }
    expected = states["harmful"].double().mean(1) - states["harmless"].double().mean(1)
    found = selection.fit_directions(tiny_llama, prompts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def scorer(tiny_llama, prompts):
    return selection.Scorer.on(tiny_llama, prompts, TOKENS)


def test_each_row_is_what_its_direction_does_alone(tiny_llama, prompts, scorer):
    vectors = 3 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    vectors[1] = 0
    texts = {label: [p.prompt for p in of] for label, of in prompts.items()}
    clean = next_token_logits(tiny_llama, texts["harmless"])
    rows = list(scorer.rows(2, dict(zip((-3, -2, -1), vectors, strict=True))))
    assert [(r["layer"], r["pos"]) for r in rows] == [(2, -3), (2, -2), (2, -1)]
    assert [r["token"] for r in rows] == list(tiny_llama.template.tokens[-3:])
    for row, vector in zip(rows, vectors, strict=True):
        ablation = DirectionalAblation(torch.nn.functional.normalize(vector, dim=0)[None])
        logits = {of: next_token_logits(tiny_llama, texts[of], ablation) for of in texts}
        added = next_token_logits(tiny_llama, texts["harmless"], ActivationAddition(vector, 2))
        expected = {
            "ablated": refusal_score(logits["harmful"], TOKENS),
            "added": refusal_score(added, TOKENS),
            "kl": kl_divergence(clean, logits["harmless"]),
        }
        for name, values in expected.items():
            assert row[name] == pytest.approx(values.tolist(), abs=1e-4)
        assert row["norm"] == pytest.approx(float(vector.norm()))
    assert rows[1]["kl"] == pytest.approx([0] * len(clean), abs=1e-6)


def test_a_candidate_that_breaks_the_numbers_is_kept_as_a_row_and_never_chosen(scorer, tmp_path):
    vectors = torch.stack([torch.full((64,), 1e38), torch.ones(64)])
    journal = Journal(tmp_path / "progress.jsonl", {})
    rows = journal.add("1", scorer.rows(1, dict(zip((-2, -1), vectors, strict=True))))
    rows = [grid.averaged(row) for row in rows]
    assert [row["pos"] for row in rows] == [-2, -1]
    chosen = choose([row | {"kl": 0.0} for row in rows], 6)
    assert chosen is None or chosen["pos"] == -1


def candidate(layer=0, **values):
    return {"layer": layer, "pos": -1, "ablated": -1.0, "added": 1.0, "kl": 0.01, "norm": 1.0} | (
        values
    )


def test_a_choice_is_in_our_numbering_and_of_the_first_four_fifths_of_what_enters_a_block():
    rows = [candidate(layer, ablated=-float(layer)) for layer in range(10)]
    before = [dict(row) for row in rows]
    # What enters blocks 0 to 7 is, after the embedding, our layers 0 to 6.
    assert choose(rows, 10) == candidate(6, ablated=-6.0)
    assert rows == before


@pytest.mark.parametrize(
    "worse", [{"norm": 0.0}, {"norm": NAN}, {"kl": 0.2}, {"added": -0.1}, {"ablated": NAN}]
)
def test_a_candidate_without_a_direction_or_outside_the_rule_is_never_chosen(worse):
    bad = candidate(2, **({"ablated": -9.0} | worse))
    assert choose([bad], 10) is None
    assert choose([bad, candidate(3)], 10) == candidate(3)
    assert choose([], 10) is None


def unit_row(seed, rank=1):
    return orthonormal(torch.randn(rank, 64, generator=torch.Generator().manual_seed(seed)))


def test_a_stack_holds_the_vectors_in_order_and_gives_each_row_its_own():
    ablations = [DirectionalAblation(unit_row(i, 2), 0.5, (1, 2)) for i in range(3)]
    together = stacked(ablations)
    assert together.sets == 3
    assert (together.alpha, together.layers) == (0.5, (1, 2))
    assert torch.equal(together.take([2, 0, 2]).basis[0], ablations[2].basis)
    additions = [ActivationAddition(unit_row(i)[0], 1, -1.0) for i in range(3)]
    taken = stacked(additions).take([1])
    assert torch.equal(taken.vector[0], additions[1].vector)
    assert (taken.layer, taken.coeff, taken.sets) == (1, -1.0, 1)
    assert ablations[0].take([0, 0]) is ablations[0]


ONE = DirectionalAblation(unit_row(0))
ADDED = ActivationAddition(unit_row(0)[0], 1)


@dataclasses.dataclass(frozen=True)
class Other(DirectionalAblation):
    """Of another kind, if of the same vectors."""


@pytest.mark.parametrize(
    "unlike",
    [
        [ONE, ADDED],
        [ADDED, ONE],
        [ONE, dataclasses.replace(ONE, alpha=0.5)],
        [ONE, dataclasses.replace(ONE, layers=(1,))],
        [ONE, DirectionalAblation(unit_row(0, 2))],
        [ONE, Other(ONE.basis)],
        [ADDED, dataclasses.replace(ADDED, layer=2)],
        [ADDED, dataclasses.replace(ADDED, coeff=-1.0)],
        [ONE, stacked([ONE, ONE])],
        [stacked([ONE, ONE]), stacked([ONE, ONE])],
    ],
)
def test_what_differs_in_more_than_its_vectors_cannot_be_stacked(unlike):
    assert stacked(unlike) is None
