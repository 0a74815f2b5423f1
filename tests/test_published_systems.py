"""The rows of the published systems: each, as far as it can be shown without its weights."""

import pytest
import torch
from chats import SHAPES, saved

from refusal_nn.interventions import DirectionalAblation
from refusal_nn.loading import load
from refusal_nn.models import FAMILIES, MODELS, REFUSAL_WORDS
from refusal_nn.tracing import capture, generate, shares

LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "tie_word_embeddings": True,
}
# Alias: Hub id, architecture, what its configuration has beyond the tiny one's. qwen1 is read as
# what stands here; that it is the same model, test_qwen1 shows.
SYSTEMS = {
    "qwen": ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen/Qwen3-1.7B", "Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen1": ("Qwen/Qwen-1_8B-Chat", "Qwen2Config", {"num_key_value_heads": 4}),
    "gemma2b": ("google/gemma-2b-it", "GemmaConfig", {"head_dim": 16, "num_key_value_heads": 1}),
    "phi3": ("microsoft/Phi-3-mini-4k-instruct", "Phi3Config", {"sliding_window": 300}),
    "llama1b": ("meta-llama/Llama-3.2-1B-Instruct", "LlamaConfig", LLAMA3),
    "llama3b": ("meta-llama/Llama-3.2-3B-Instruct", "LlamaConfig", LLAMA3),
    "llama8b": (
        "meta-llama/Llama-3.1-8B-Instruct",
        "LlamaConfig",
        LLAMA3 | {"tie_word_embeddings": False},
    ),
}


def form_of(alias):
    return next(shape for names, shape in SHAPES.items() if alias in names.split(", "))


def test_every_published_system_has_a_row():
    assert {alias: MODELS[alias].repo for alias in SYSTEMS} == {
        alias: repo for alias, (repo, _, _) in SYSTEMS.items()
    }
    # Arditi et al. 2024 where they have the model, else the words most refusals begin with.
    words = {alias: MODELS[alias].refusal_words for alias in SYSTEMS}
    assert words["qwen1"] == ("I", "As")
    assert words["gemma2b"] == ("I",)
    assert words["llama8b"] == ("I",)
    assert words["phi3"] == REFUSAL_WORDS


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request, tmp_path_factory):
    """Alias, and a tiny random model of its architecture with its form of template."""
    _, config_class, extra = SYSTEMS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    path = saved(folder, form_of(request.param)[0], config_class, extra)
    return request.param, load(path, dtype="float32")


def test_a_system_of_its_architecture_and_template_has_every_invariant(system, texts):
    alias, model = system
    assert model.module.config.model_type in FAMILIES
    assert model.self_test["batch_error"] < 1e-5
    assert model.self_test["prefix_error"] < 1e-5
    assert model.lm.tokenizer.decode(model.template.render(["hi"])[0]) == form_of(alias)[1]
    assert model.template.post_ids[0] in model.stop_ids
    states, ids = capture(model, texts[:3]).states, model.template.render(texts[:3])
    for i, row in enumerate(ids):
        with torch.no_grad():
            hidden = model.module(torch.tensor([row]), output_hidden_states=True).hidden_states
        plain = torch.stack([h[0, -1] for h in hidden[1:-1]])
        torch.testing.assert_close(states[:-1, i, 0], plain, rtol=1e-3, atol=1e-4)
    basis = torch.eye(model.d_model)[:2]
    assert shares(model, texts[:3], basis, DirectionalAblation(basis)).max() < 1e-5


def test_its_batched_completions_are_those_of_single_prompts(system, texts):
    _, model = system
    done = generate(model, texts[:3], max_new_tokens=6)
    for row, completion in zip(model.template.render(texts[:3]), done, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            for _ in completion.ids:
                best = model.module(ids, use_cache=False).logits[0, -1].argmax()
                ids = torch.cat([ids, best[None, None]], 1)
        assert tuple(ids[0, len(row) :].tolist()) == completion.ids
