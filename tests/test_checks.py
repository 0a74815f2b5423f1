"""The self-test passes on sound models and stops on each fault it is there for."""

import dataclasses

import numpy as np
import pytest
import torch

from refusal_nn import batching, checks, loading, passes
from refusal_nn.errors import ModelError
from refusal_nn.loading import load
from refusal_nn.models import PRE_NORM, SANDWICH_NORM
from refusal_nn.tracing import next_token_logits


def test_every_family_passes_in_float32(tiny_model):
    found = tiny_model.self_test
    assert found["batch_error"] < 1e-5
    assert found["prefix_error"] < 1e-5
    assert found["ablation_residue"] < 1e-6
    assert found["noop_identical"] is True
    assert tiny_model.shares_prefix


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_bfloat16_passes_within_its_own_tolerance(family):
    found = load(f"tiny-{family}", dtype="bfloat16").self_test
    assert found["ablation_residue"] <= 1.6e-2
    assert found["precision"]["cosine_late"] > 0.999


def test_a_batch_without_its_mask_is_stopped(tiny_llama, monkeypatch):
    original = batching.Batch.inputs

    def unmasked(self, device):
        inputs = original(self, device)
        return inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}

    monkeypatch.setattr(batching.Batch, "inputs", unmasked)
    with pytest.raises(ModelError, match="padding or positions are wrong"):
        checks.self_tested(tiny_llama)


def test_right_padding_is_stopped(tiny_llama, monkeypatch):
    original = batching.batched

    def right(*arguments):
        for batch in original(*arguments):
            keep = batch.attention_mask[:, -batch.input_ids.shape[1] :].bool()
            rows = [
                torch.cat([ids[k], ids[~k]]) for ids, k in zip(batch.input_ids, keep, strict=True)
            ]
            yield dataclasses.replace(batch, input_ids=torch.stack(rows))

    monkeypatch.setattr("refusal_nn.feeding.batched", right)
    with pytest.raises(ModelError, match="padding or positions are wrong"):
        checks.self_tested(tiny_llama)


def test_write_sites_of_the_wrong_family_are_stopped():
    # Gemma 2 adds to the stream after a norm: ablating what goes into the norm is not enough.
    sandwich = load("tiny-gemma2", dtype="float32")
    assert sandwich.family == SANDWICH_NORM
    with pytest.raises(ModelError, match="write sites"):
        checks.self_tested(dataclasses.replace(sandwich, family=PRE_NORM))


def test_a_prefix_cache_that_changes_the_logits_is_not_used(tiny_llama, monkeypatch):
    original = passes.prefix_cache

    def wrong(shared):
        cache = original(shared)
        cache.layers[0].values.mul_(-1)
        return cache

    monkeypatch.setattr(passes, "prefix_cache", wrong)
    assert not checks.self_tested(tiny_llama).shares_prefix


def test_a_refused_precision_leaves_the_model_bit_identical(texts, monkeypatch):
    exact = load("tiny-qwen2", dtype="float32")
    monkeypatch.setattr(loading, "computes_bfloat16", lambda device: True)
    monkeypatch.setattr(loading, "FAITHFUL", 1.1)
    refused = load("tiny-qwen2", device="cpu")
    assert refused.dtype == torch.float32
    assert torch.equal(next_token_logits(refused, texts), next_token_logits(exact, texts))


def test_rotary_frequencies_stay_in_float32_when_weights_are_narrowed():
    model = load("tiny-llama", dtype="bfloat16").module
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_precision_loss_is_one_minus_nothing_for_equal_directions():
    exact = np.eye(4, 9)
    loss = checks.precision_loss(exact, exact[[0, 1, 3, 2]])
    assert loss["cosine_by_layer"] == [1, 1, 0, 0]
    assert (loss["cosine_early"], loss["cosine_late"]) == (0, 0)


def test_a_loss_that_does_not_fit_in_memory_is_said_not_guessed(monkeypatch):
    monkeypatch.setattr(loading, "free_bytes", lambda device: 0)
    model = load("tiny-llama", dtype="bfloat16")
    assert any("was not measured" in note for note in model.notes)
