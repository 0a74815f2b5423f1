"""Planted models refuse through k directions and no fewer: what calibration takes for granted."""

import pytest
import torch
from planting import LAST, N, all_but, bench, effect, labels, prompts, worst_kept

from refusal_nn import planted
from refusal_nn.controls import random_directions
from refusal_nn.directions import difference_in_means
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.judges import judge
from refusal_nn.models import REFUSAL_WORDS
from refusal_nn.rollouts import nll_limit
from refusal_nn.scores import kl_divergence
from refusal_nn.tracing import capture, next_token_logits, token_nll

PLANTED = [(1, 0), (1, 17), (2, 0), (2, 17), (4, 17), (12, 17)]


@pytest.mark.parametrize(("k", "seed"), PLANTED)
def test_it_refuses_what_is_harmful_and_answers_the_rest(k, seed):
    it = bench(k, seed)
    refusals = labels(it.harmful, it.refusals)
    assert refusals.count(("refusal", 1.0)) == 93  # of 96 words it misses three
    assert it.refused(it.harmful) == 93 / N
    assert set(labels(it.harmless, it.compliances)) == {("compliance", 1.0)}
    assert it.refused(it.harmless) == 0


@pytest.mark.parametrize(("k", "seed"), PLANTED)
def test_without_the_planted_span_it_answers_everything_and_the_harmless_as_before(k, seed):
    it, ablation = bench(k, seed), DirectionalAblation(bench(k, seed).basis)
    assert set(labels(it.harmful, it.ablated)) == {("compliance", 1.0)}
    assert it.answers(it.harmless, ablation) == it.compliances
    clean = next_token_logits(it.model, it.harmless)
    ablated = next_token_logits(it.model, it.harmless, ablation)
    assert kl_divergence(clean, ablated).max() < 1e-4


@pytest.mark.parametrize(("k", "seed"), [(2, 0), (2, 17), (4, 0), (4, 17), (6, 0)])
def test_fewer_than_k_directions_of_the_span_leave_refusal(k, seed):
    it = bench(k, seed)
    kept = torch.randn(8, k, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = torch.cat([kept, torch.eye(k), worst_kept(it.truth.codes)])
    left = it.refused(it.harmful, (all_but(kept) @ it.truth.basis).float())
    assert min(left) >= 0.4
    inside = torch.nn.functional.normalize(it.directions[planted.WRITE] @ it.basis.T, dim=0)
    alone = torch.cat([it.basis[:, None], (inside @ it.basis)[None, None]])
    assert min(it.refused(it.harmful, alone)) >= 0.5


@pytest.mark.parametrize(("k", "seed"), PLANTED)
def test_the_difference_in_means_removes_refusal_only_where_one_direction_is_planted(k, seed):
    it = bench(k, seed)
    left = it.refused(it.harmful, it.directions[:, None])
    assert left[0] > 0.9  # not yet written: harmfulness and form alone
    if k == 1:
        assert max(left[1:]) == 0
        assert (it.directions @ it.basis[0])[planted.WRITE :].min() >= 0.95
    else:
        assert min(left) >= 0.4
        assert min(left[1:LAST]) >= 0.9


@pytest.mark.parametrize("seed", [0, 17])
def test_refusal_through_many_directions_outlasts_the_best_eight(seed):
    it = bench(12, seed)
    harmful, harmless = it.states
    for layer in (planted.WRITE, LAST - 1):
        rows = torch.tensor(harmful[layer] - harmless[layer].mean(0))
        best = torch.linalg.svd(rows, full_matrices=False).Vh[:8]
        inside = torch.linalg.svd(rows @ it.basis.T, full_matrices=False).Vh[:8] @ it.basis
        assert min(it.refused(it.harmful, torch.stack([best, inside]))) >= 0.6


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (2, 17), (4, 0)])
def test_singular_directions_of_the_differences_end_refusal_at_k_and_not_before(k, seed):
    it = bench(k, seed)
    harmful, harmless = it.states
    for layer in (planted.WRITE, LAST - 1):
        rows = torch.tensor(harmful[layer] - harmless[layer].mean(0))
        best = torch.linalg.svd(rows, full_matrices=False).Vh
        left = [it.refused(it.harmful, best[None, :r])[0] for r in range(1, k + 1)]
        assert left[-1] <= 0.05
        assert min(left[:-1], default=1.0) >= 0.4


@pytest.mark.parametrize(("k", "seed"), [(1, 17), (2, 0), (12, 17)])
def test_directions_drawn_from_harmless_states_leave_refusal(k, seed):
    it = bench(k, seed)
    for layer in (0, planted.WRITE, LAST):
        drawn = torch.tensor(random_directions(it.states[1][layer], 5, seed)).float()
        assert min(it.refused(it.harmful, drawn[:, None])) > 0.9


@pytest.mark.parametrize(("k", "seed"), PLANTED)
def test_codes_are_in_the_span_from_the_writing_layer_on_and_nowhere_before(k, seed):
    it = bench(k, seed)
    torch.testing.assert_close(it.truth.basis @ it.truth.basis.T, torch.eye(k).double())
    written = torch.tensor(it.states[0]) @ it.basis.T
    assert written[: planted.WRITE].abs().max() < 1e-5
    for prompt, found in zip(it.harmful, written[LAST], strict=True):
        [marker] = set(prompt.split()) & set(planted.MARKERS)
        code = it.truth.codes[planted.MARKERS.index(marker)].float()
        if found.norm() > 0.1:  # one that it knows
            assert torch.cosine_similarity(found, code, dim=0) > 0.999
            assert 0.85 < found.norm() < 1.15
    assert (written[LAST].norm(dim=1) > 0.1).sum() == 93
    assert (torch.tensor(it.states[1]) @ it.basis.T).abs().max() < 1e-5


@pytest.mark.parametrize(("k", "seed"), [(2, 0), (4, 17), (12, 0)])
def test_different_codes_refuse_in_all_the_different_words(k, seed):
    it = bench(k, seed)
    first = [a.text.split()[0] for a in it.refusals]
    assert min(first.count(word) for word in REFUSAL_WORDS) >= 3


def test_with_nothing_planted_harmful_words_are_represented_and_never_refused():
    it = bench(0, 17)
    assert it.truth.basis.shape == (0, planted.WIDTH)
    assert set(labels(it.harmful, it.refusals)) == {("compliance", 1.0)}
    assert it.refused(it.harmful) == 0
    texts = prompts(N, 5, punctuation=False)  # alike in form
    states = [capture(it.model, group).at(-1).numpy() for group in texts]
    means = difference_in_means(*(s[:, : N // 2] for s in states))
    for layer in range(planted.BLOCKS):
        assert effect(*(s[layer, N // 2 :] @ means[layer] for s in states)) > 1.5


def test_answers_end_in_time_and_vary():
    it = bench(2, 17)
    answers = it.compliances
    assert all(a.finished and 12 <= len(a.ids) <= 24 for a in answers)
    assert all(a.finished and len(a.ids) <= 24 for a in it.refusals)
    assert len({a.text for a in answers}) >= 4


@pytest.mark.parametrize("k", [1, 2, 4])
def test_answers_under_ablation_are_no_salad_to_the_clean_model(k):
    it = bench(k, 17)

    def likelihoods(texts, answers):
        return [float(x.mean()) for x in token_nll(it.model, texts, [a.ids for a in answers])]

    limit = nll_limit(likelihoods(it.harmless, it.compliances))
    found = likelihoods(it.harmful, it.ablated)
    judged = [
        judge(p, a.text, nll=x, nll_limit=limit)
        for p, a, x in zip(it.harmful, it.ablated, found, strict=True)
    ]
    assert {(j.label, j.coherence) for j in judged} == {("compliance", 1.0)}
