"""Generation equals plain torch hooks token for token, in every family, however it is batched."""

import contextlib

import pytest
import torch

from refusal_nn.interventions import (
    BLOCK,
    ActivationAddition,
    DirectionalAblation,
    Step,
    orthonormal,
)
from refusal_nn.tracing import generate, next_token_logits, token_nll

NEW = 21


def unit_rows(model, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return orthonormal(torch.randn(rank, model.d_model, generator=generator))


def writes(model):
    """Raw modules that write to the residual stream, found by their names."""
    yield model.module.model.embed_tokens
    for block in model.module.model.layers:
        names = dict(block.named_children())
        post = "post_feedforward_layernorm" in names
        yield names["post_attention_layernorm" if post else "self_attn"]
        yield names["post_feedforward_layernorm" if post else "mlp"]


@contextlib.contextmanager
def hooked(modules, edit):
    def hook(module, args, out):
        return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_hand(model, text, modules=(), edit=None):
    """Greedy tokens of one prompt by whole forward passes, no cache, no generate()."""
    [ids] = model.template.render([text])
    new = []
    with torch.no_grad(), hooked(modules, edit):
        while len(new) < NEW and not (new and new[-1] in model.stop_ids):
            new.append(int(model.module(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return tuple(new)


def tokens(completions):
    return [c.ids for c in completions]


def test_clean_generation_is_plain_greedy_decoding(tiny_model, texts):
    assert tokens(generate(tiny_model, texts[:4], max_new_tokens=NEW)) == [
        by_hand(tiny_model, t) for t in texts[:4]
    ]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
def test_ablated_generation_equals_plain_hooks(tiny_model, texts, share, rank):
    basis = unit_rows(tiny_model, rank)
    ours = generate(
        tiny_model,
        texts[:4],
        DirectionalAblation(basis),
        max_new_tokens=NEW,
        share_prefix=share,
        chunk=8,
    )
    hooks = (list(writes(tiny_model)), lambda h: h - (h @ basis.T) @ basis)
    assert tokens(ours) == [by_hand(tiny_model, t, *hooks) for t in texts[:4]]
    assert tokens(ours) != tokens(generate(tiny_model, texts[:4], max_new_tokens=NEW))


def test_ablation_at_given_layers_equals_plain_hooks_on_their_outputs(tiny_model, texts):
    basis = unit_rows(tiny_model, 1)
    ours = generate(
        tiny_model, texts[:3], DirectionalAblation(basis, layers=(2, 0)), max_new_tokens=NEW
    )
    blocks = [tiny_model.module.model.layers[i] for i in (0, 2)]
    plain = [by_hand(tiny_model, t, blocks, lambda h: h - (h @ basis.T) @ basis) for t in texts[:3]]
    assert tokens(ours) == plain


def test_addition_equals_a_plain_hook(tiny_model, texts):
    vector = 4 * unit_rows(tiny_model, 1)[0]
    ours = generate(
        tiny_model, texts[:3], ActivationAddition(vector, 1, coeff=-1.0), max_new_tokens=NEW
    )
    blocks = [tiny_model.module.model.layers[1]]
    assert tokens(ours) == [by_hand(tiny_model, t, blocks, lambda h: h - vector) for t in texts[:3]]


def test_per_row_directions_equal_row_by_row_runs(tiny_model, texts):
    bases = torch.stack([unit_rows(tiny_model, 2, seed) for seed in range(3)])
    together = generate(tiny_model, texts[:3], DirectionalAblation(bases), max_new_tokens=NEW)
    apart = [
        generate(tiny_model, [text], DirectionalAblation(basis), max_new_tokens=NEW)[0]
        for text, basis in zip(texts, bases, strict=False)
    ]
    assert together == apart


def test_rows_may_share_sets_in_any_order(tiny_llama, texts):
    vectors = torch.stack([6 * unit_rows(tiny_llama, 1, seed)[0] for seed in range(2)])
    sets = [1, 0, 0, 1, 1]
    logits = next_token_logits(
        tiny_llama, texts[:5], ActivationAddition(vectors, 2), sets=sets, token_budget=90
    )
    for i, s in enumerate(sets):
        alone = next_token_logits(tiny_llama, [texts[i]], ActivationAddition(vectors[s], 2))
        torch.testing.assert_close(logits[i], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sets", [[0], [0, 1, 2], [0, -1]])
def test_sets_that_do_not_fit_are_refused(tiny_llama, texts, sets):
    bases = torch.stack([unit_rows(tiny_llama, 1, seed) for seed in range(2)])
    with pytest.raises(ValueError, match="need a set each"):
        next_token_logits(tiny_llama, texts[:2], DirectionalAblation(bases), sets=sets)


@pytest.mark.parametrize("layers", [(), (-1,), (99,)])
def test_layers_that_are_not_there_are_refused_before_anything_runs(tiny_llama, texts, layers):
    ablation = DirectionalAblation(unit_rows(tiny_llama, 1), layers=layers)
    with pytest.raises(ValueError, match="has layers 0 to"):
        generate(tiny_llama, texts[:1], ablation, max_new_tokens=4)


def test_a_direction_of_another_model_is_refused(tiny_llama, texts):
    with pytest.raises(ValueError, match="another model"):
        generate(tiny_llama, texts[:1], DirectionalAblation(torch.eye(1, 7)), max_new_tokens=4)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_chunks_and_batches_do_not_change_the_tokens(tiny_model, texts, chunk):
    ablation = DirectionalAblation(unit_rows(tiny_model, 1))
    plain = generate(tiny_model, texts, ablation, max_new_tokens=NEW, token_budget=1)
    other = generate(tiny_model, texts, ablation, max_new_tokens=NEW, chunk=chunk)
    assert tokens(other) == tokens(plain)


def test_alpha_zero_is_no_intervention(tiny_model, texts):
    nothing = DirectionalAblation(unit_rows(tiny_model, 1), alpha=0.0)
    assert generate(tiny_model, texts[:3], nothing, max_new_tokens=NEW) == generate(
        tiny_model, texts[:3], max_new_tokens=NEW
    )
    assert torch.equal(
        next_token_logits(tiny_model, texts[:3], nothing), next_token_logits(tiny_model, texts[:3])
    )


def test_rows_that_stop_early_are_cut_there_and_the_others_go_on(tiny_llama, texts):
    import dataclasses

    plain = tokens(generate(tiny_llama, texts, max_new_tokens=NEW))
    stop = plain[0][3]
    model = dataclasses.replace(tiny_llama, stop_ids=frozenset([stop]))
    seen = []
    ended = generate(model, texts, max_new_tokens=NEW, chunk=4, on_tokens=seen.append)
    for before, after in zip(plain, ended, strict=True):
        cut = before.index(stop) + 1 if stop in before else NEW
        assert after.ids == before[:cut]
        assert after.finished == (stop in before)
    assert any(c.finished for c in ended)
    assert sum(seen) < NEW * len(texts)  # finished rows are not computed on


def test_an_exception_inside_the_trace_leaves_the_model_as_it_was(tiny_model, texts):
    class Fails(DirectionalAblation):
        def steps(self, model):
            yield from super().steps(model)
            yield Step((model.n_layers - 1, BLOCK), self.fail)

        def fail(self):
            raise RuntimeError("on purpose")

    before = next_token_logits(tiny_model, texts[:2])
    with pytest.raises(RuntimeError, match="on purpose"):
        generate(tiny_model, texts[:2], Fails(unit_rows(tiny_model, 1)), max_new_tokens=4)
    assert torch.equal(next_token_logits(tiny_model, texts[:2]), before)


def test_token_nll_is_the_models_own_log_likelihood(tiny_model, texts):
    new = [
        c.ids[: 3 + i] for i, c in enumerate(generate(tiny_model, texts[:4], max_new_tokens=NEW))
    ]
    ours = token_nll(tiny_model, texts[:4], new)
    for text, tokens_, nll in zip(texts, new, ours, strict=False):
        [ids] = tiny_model.template.render([text])
        with torch.no_grad():
            logits = tiny_model.module(torch.tensor([[*ids, *tokens_]])).logits[0]
        logp = logits.log_softmax(-1)[len(ids) - 1 : -1]
        plain = -logp[torch.arange(len(tokens_)), list(tokens_)]
        torch.testing.assert_close(nll, plain, atol=1e-4, rtol=1e-4)


def test_the_real_model_generates_as_with_plain_hooks(smollm2):
    basis = unit_rows(smollm2, 1)
    prompts = [
        "Name a river in Africa.",
        "Write one line about rain on a tin roof in a small town.",
    ]
    ours = generate(smollm2, prompts, DirectionalAblation(basis), max_new_tokens=NEW, chunk=8)
    hooks = (list(writes(smollm2)), lambda h: h - (h @ basis.T) @ basis)
    assert tokens(ours) == [by_hand(smollm2, t, *hooks) for t in prompts]
