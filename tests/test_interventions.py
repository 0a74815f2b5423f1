"""The algebra of directional ablation, and that it reaches every write of every family."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_nn.interventions import DirectionalAblation, orthonormal, project_out
from refusal_nn.tracing import next_token_logits, shares


def random_basis(rank, width, seed=0):
    return orthonormal(torch.randn(rank, width, generator=torch.Generator().manual_seed(seed)))


@given(st.integers(1, 6), st.integers(8, 40), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_projection_leaves_nothing_in_the_span_and_is_idempotent(rank, width, seed):
    basis = random_basis(rank, width, seed)
    x = 10 * torch.randn(7, width, generator=torch.Generator().manual_seed(seed + 1))
    once = project_out(x, basis)
    assert (once @ basis.T).abs().max() <= 1e-5 * x.norm()
    torch.testing.assert_close(project_out(once, basis), once)
    # What is orthogonal to the span is left alone.
    torch.testing.assert_close(once + (x @ basis.T) @ basis, x)


@given(st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_projection_depends_on_the_span_not_on_the_basis(rank, seed):
    basis = random_basis(rank, 16, seed)
    turn = random_basis(rank, rank, seed + 1)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        project_out(x, turn @ basis), project_out(x, basis), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        project_out(x, basis.flip(0)), project_out(x, basis), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_changes_no_bit_and_half_leaves_half(dtype):
    basis, x = random_basis(2, 32), torch.randn(9, 32).to(dtype)
    assert torch.equal(project_out(x, basis, alpha=0.0), x)
    left = project_out(x, basis, alpha=0.5).float() @ basis.T
    torch.testing.assert_close(left, 0.5 * x.float() @ basis.T, atol=2e-2, rtol=2e-2)


def test_dependent_vectors_have_no_orthonormal_basis():
    with pytest.raises(ValueError, match="dependent"):
        orthonormal(torch.tensor([[1.0, 0, 0], [2.0, 0, 0]]))
    with pytest.raises(ValueError, match="dependent"):
        orthonormal(torch.zeros(1, 4))


def test_ablation_leaves_no_component_along_the_basis_in_any_family(tiny_model, texts):
    basis = random_basis(3, tiny_model.d_model)
    left = shares(tiny_model, texts, basis, DirectionalAblation(basis))
    assert left.shape[1] == tiny_model.n_layers
    assert left.max() <= 1e-5
    assert shares(tiny_model, texts, basis).min(dim=0).values.max() > 1e-3


def test_ablation_equals_plain_torch_hooks_in_any_family(tiny_model, texts):
    basis = random_basis(2, tiny_model.d_model)
    traced = next_token_logits(tiny_model, texts, DirectionalAblation(basis))
    module = tiny_model.module

    def edit(_, __, out):
        if isinstance(out, tuple):
            return (project_out(out[0], basis), *out[1:])
        return project_out(out, basis)

    family, handles = tiny_model.family, [module.model.embed_tokens.register_forward_hook(edit)]
    for block in module.model.layers:
        for name in (family.attention_write, family.mlp_write):
            handles.append(getattr(block, name).register_forward_hook(edit))
    try:
        for i, ids in enumerate(tiny_model.template.render(texts)):
            with torch.no_grad():
                hooked = module(torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(traced[i], hooked, atol=1e-4, rtol=1e-4)
    finally:
        for handle in handles:
            handle.remove()


def test_ablation_changes_the_logits_and_not_the_model(tiny_llama, texts):
    before, weights = (
        next_token_logits(tiny_llama, texts),
        copy.deepcopy(tiny_llama.module.state_dict()),
    )
    ablated = next_token_logits(tiny_llama, texts, DirectionalAblation(random_basis(4, 64)))
    assert (ablated - before).abs().max() > 0.05
    assert torch.equal(next_token_logits(tiny_llama, texts), before)
    for name, value in tiny_llama.module.state_dict().items():
        assert torch.equal(value, weights[name])
