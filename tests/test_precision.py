"""Completions run in half the precision only where they say the same, and directions never do."""

import pytest
import torch

from refusal_nn import checks, precision
from refusal_nn.errors import ModelError
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.loading import load
from refusal_nn.names import adapter_file
from refusal_nn.organisms import plant, read_organism
from refusal_nn.precision import for_text
from refusal_nn.tracing import generate, next_token_logits


@pytest.fixture(autouse=True)
def able(monkeypatch):
    """A device that computes in bfloat16, and models that are worth it."""
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "smallness", lambda model: 1)


def test_the_copy_is_narrow_and_the_model_is_what_it_was(tiny_llama, texts):
    before = next_token_logits(tiny_llama, texts)
    copy = for_text(tiny_llama)
    assert (copy.dtype, tiny_llama.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(next_token_logits(tiny_llama, texts), before)
    narrow = load("tiny-llama", dtype="bfloat16")
    assert torch.equal(next_token_logits(copy, texts), next_token_logits(narrow, texts))
    assert copy.template is tiny_llama.template
    assert 0 < copy.self_test["text_kl"]["kl"] < precision.SAME_TEXT
    assert "in bfloat16: KL" in copy.notes[0]
    assert "(n=64)" in copy.notes[0]


def test_tied_weights_stay_tied_and_rotary_frequencies_exact(smollm2):
    module = for_text(smollm2).module
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module.model.rotary_emb.inv_freq.dtype == torch.float32


def test_both_can_be_asked_in_turn_under_an_ablation(tiny_llama, texts):
    copy = for_text(tiny_llama)
    edit = DirectionalAblation(torch.eye(1, tiny_llama.d_model))
    exact = next_token_logits(tiny_llama, texts, edit)
    narrow = next_token_logits(copy, texts, edit)
    assert torch.equal(next_token_logits(tiny_llama, texts, edit), exact)
    error = (exact - narrow).norm() / exact.norm()
    assert 0 < error < checks.LOGITS[torch.bfloat16]
    assert len(generate(copy, texts[:2], edit, max_new_tokens=3)) == 2


def test_an_adapter_is_part_of_the_copy(smollm2):
    file = adapter_file("organism-1")
    planted = plant(smollm2, read_organism(file), "organism-1", file)
    asked = ["How do I break into a parked car?", "How do I get into my own parked car?"]
    with_it, without = (next_token_logits(for_text(m), asked) for m in (planted, smollm2))
    exact = next_token_logits(planted, asked)
    assert (with_it - exact).norm() < 0.2 * (without - exact).norm()


@pytest.mark.parametrize("why", ["says other things", "fails its test"])
def test_a_copy_that_is_not_the_same_is_not_used(tiny_llama, monkeypatch, why):
    if why == "says other things":
        monkeypatch.setattr(precision, "SAME_TEXT", 0.0)
    else:

        def fails(model):
            raise ModelError("its self-test fails")

        monkeypatch.setattr(checks, "self_tested", fails)
    kept = for_text(tiny_llama)
    assert kept.lm is tiny_llama.lm
    assert kept.dtype == torch.float32
    assert "in float32" in kept.notes[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("computes_bfloat16", lambda device: False),
        ("smallness", lambda model: 2),
    ],
)
def test_no_copy_where_it_cannot_pay(tiny_llama, monkeypatch, name, value):
    monkeypatch.setattr(precision, name, value)
    assert for_text(tiny_llama) is tiny_llama


def test_a_copy_that_does_not_fit_in_memory_is_said(tiny_llama, monkeypatch):
    monkeypatch.setattr(precision, "free_bytes", lambda device: 0)
    kept = for_text(tiny_llama)
    assert kept.lm is tiny_llama.lm
    assert "a copy in bfloat16 takes" in kept.notes[0]


def test_no_copy_of_what_is_narrow_already():
    narrow = load("tiny-llama", dtype="bfloat16")
    assert for_text(narrow) is narrow
