"""A real NDIF server on this machine (`make test-ndif` starts one), trusted or sandboxed: what it
gives is what this machine gives."""

import pytest
import torch

from refusal_nn import prompts
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.loading import load
from refusal_nn.ndif import Remote
from refusal_nn.tracing import capture, generate, next_token_logits, token_nll

TEXTS = [p.prompt for p in prompts.load_prompts()[::40]]
NEW = 12


@pytest.fixture(scope="module", params=["smollm2", "organism-1"])
def both(request, tmp_path_factory):
    jobs = tmp_path_factory.mktemp("jobs")
    here = load(request.param, dtype="float32", device="cpu")
    return here, load(request.param, remote=Remote(jobs))


def ablation(model, sets):
    basis = torch.randn(sets, 1, model.d_model, generator=torch.Generator().manual_seed(1))
    return DirectionalAblation(torch.nn.functional.normalize(basis, dim=-1))


def test_capture_is_the_same(both):
    one, two = (capture(model, TEXTS, (-1, -3)) for model in both)
    assert (one.states - two.states).norm() / one.states.norm() < 1e-4
    torch.testing.assert_close(one.means["all"], two.means["all"], atol=1e-3, rtol=1e-4)


def test_ablated_generation_is_the_same_token_for_token(both):
    edit = ablation(both[0], len(TEXTS))
    one, two = (generate(model, TEXTS, edit, max_new_tokens=NEW, chunk=5) for model in both)
    assert [c.ids for c in one] == [c.ids for c in two]


def test_logits_and_likelihoods_are_the_same(both):
    one, two = (next_token_logits(model, TEXTS) for model in both)
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)
    ids = [c.ids for c in generate(both[0], TEXTS, max_new_tokens=NEW)]
    for a, b in zip(*(token_nll(model, TEXTS, ids) for model in both), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
