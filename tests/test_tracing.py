"""Capture equals one plain forward pass per prompt, however it is batched, in every family."""

import dataclasses

import pytest
import torch

from refusal_nn import passes
from refusal_nn.errors import ModelError
from refusal_nn.feeding import tokens_to_run
from refusal_nn.loading import load
from refusal_nn.tracing import capture, next_token_logits

POSITIONS = (-1, -3, -9)


def reference(model, texts):
    """(layer, prompt, pos, d_model) by Hugging Face's own hidden states, one prompt at a time."""
    found = []
    for ids in model.template.render(texts):
        with torch.no_grad():
            out = model.module(torch.tensor([ids]), output_hidden_states=True)
        found.append(torch.stack([h[0, list(POSITIONS)].float() for h in out.hidden_states[1:]]))
    return torch.stack(found, 1)


def relative(a, b):
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


def test_capture_equals_single_passes_but_for_the_normed_last_entry(tiny_model, texts):
    states, plain = capture(tiny_model, texts, POSITIONS).states, reference(tiny_model, texts)
    assert relative(states[:-1], plain[:-1]) < 1e-4
    # The last entry of hidden_states has been through the final norm: not the residual stream.
    with torch.no_grad():
        normed = tiny_model.module.model.norm(states[-1])
    assert relative(normed, plain[-1]) < 1e-4
    assert relative(states[-1], plain[-1]) > 0.1


@pytest.mark.parametrize("budget", [1, 100, 100_000])
@pytest.mark.parametrize("share", [True, False])
def test_capture_does_not_depend_on_batches_or_the_shared_prefix(tiny_model, texts, budget, share):
    plain = capture(tiny_model, texts, POSITIONS, token_budget=1, share_prefix=False).states
    other = capture(tiny_model, texts, POSITIONS, token_budget=budget, share_prefix=share).states
    assert relative(other, plain) < 1e-4


def test_capture_does_not_depend_on_the_order_of_prompts(tiny_llama, texts):
    there, back = (capture(tiny_llama, t).states for t in (texts, texts[::-1]))
    assert relative(back.flip(1), there) < 1e-5


def test_the_prefix_is_really_shared_where_the_window_allows(tiny_model, texts, monkeypatch):
    prefixes = []
    original = passes.prefix_cache
    monkeypatch.setattr(passes, "prefix_cache", lambda s: prefixes.append(s.prefix) or original(s))
    capture(tiny_model, texts)
    longest = max(map(len, tiny_model.template.render(texts)))
    assert bool(prefixes) == (longest <= tiny_model.window)


def test_streamed_means_are_the_means_of_the_states(tiny_model, texts):
    post = range(-len(tiny_model.template.tokens), 0)
    groups = ["a" if i % 3 else "b" for i in range(len(texts))]
    whole = capture(tiny_model, texts, list(post), groups=groups, token_budget=60)
    assert whole.counts == {"b": len(texts[::3]), "a": len(texts) - len(texts[::3])}
    for name, mean in whole.means.items():
        members = [i for i, g in enumerate(groups) if g == name]
        torch.testing.assert_close(mean, whole.states[:, members].double().mean(1))
        assert mean.dtype == torch.float64


def test_at_gives_the_states_of_one_position(tiny_llama, texts):
    acts = capture(tiny_llama, texts, (-2, -1))
    assert torch.equal(acts.at(-2), acts.states[:, :, 0])
    assert acts.at(-1).shape == (tiny_llama.n_layers, len(texts), tiny_llama.d_model)


@pytest.mark.parametrize("positions", [(0,), (3,), (-1, 0), (-5000,)])
def test_positions_that_do_not_count_from_the_end_are_refused(tiny_llama, texts, positions):
    with pytest.raises(ValueError, match="count from the end"):
        capture(tiny_llama, texts, positions)


def test_capture_never_runs_the_head(tiny_model, texts):
    calls = []
    handle = tiny_model.module.lm_head.register_forward_hook(lambda *_: calls.append(1))
    capture(tiny_model, texts)
    assert not calls
    next_token_logits(tiny_model, texts[:1])
    handle.remove()
    assert calls


def test_progress_counts_the_tokens_that_were_announced(tiny_llama, texts):
    done = []
    capture(tiny_llama, texts, token_budget=None, on_batch=done.append)
    assert sum(done) == tokens_to_run(tiny_llama, texts)


def test_next_token_logits_equal_single_passes(tiny_model, texts):
    logits = next_token_logits(tiny_model, texts)
    for row, ids in zip(logits, tiny_model.template.render(texts), strict=True):
        with torch.no_grad():
            single = tiny_model.module(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(row, single, atol=1e-4, rtol=1e-4)


def test_activations_that_overflow_are_stopped_and_named(texts):
    model = load("tiny-llama", dtype="float32")
    model.module.model.layers[3].mlp.down_proj.weight.data.mul_(1e38)
    with pytest.raises(ModelError, match=r"after block 3 are not finite in float32, of prompts p"):
        capture(model, texts, names=[f"p{i}" for i in range(len(texts))])


def test_captured_states_share_no_storage_with_the_model_and_need_no_gradient(tiny_llama, texts):
    acts = capture(tiny_llama, texts)
    assert not acts.states.requires_grad
    assert acts.states.dtype == torch.float32
    assert dataclasses.is_dataclass(acts)
