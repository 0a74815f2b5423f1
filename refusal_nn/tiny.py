"""Tiny random models of every family, with a real byte-pair tokenizer and a chat template: for
tests and dry runs.

They say nothing about refusal. They have the exact architecture class of their family, so whatever
is true of tracing, ablation and padding on them is true of the code.
"""

from __future__ import annotations

import functools

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from refusal_nn.errors import InputError
from refusal_nn.prompts import load_prompts

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a small "
    "model.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "<|begin|>{% for m in messages %}<|header|>{{ m['role'] }}<|end_header|>\n\n{{ m['content'] | "
    "trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|end_header|>", "<|eot|>")
# Family: configuration class, template, and what the configuration needs beyond the common sizes.
TINY = {
    "llama": ("LlamaConfig", HEADERS, {}),
    "qwen2": ("Qwen2Config", CHATML, {}),
    "qwen3": ("Qwen3Config", CHATML, {"head_dim": 16}),
    "gemma": ("GemmaConfig", HEADERS, {"head_dim": 16}),
    "gemma2": ("Gemma2Config", HEADERS, {"head_dim": 16, "sliding_window": 24}),
    "phi3": ("Phi3Config", CHATML, {}),
    "mistral": ("MistralConfig", CHATML, {}),
    "olmo2": ("Olmo2Config", CHATML, {}),
    "gemma3": ("Gemma3TextConfig", HEADERS, {"head_dim": 16, "sliding_window": 128}),
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def build(
    family: str, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A random model of 6 blocks of width 64 with seed 0, and its tokenizer. Raises InputError for
    an unknown family."""
    if family not in TINY:
        raise InputError(
            f"unknown model tiny-{family}; choose {', '.join(f'tiny-{name}' for name in TINY)}"
        )
    config_class, template, extra = TINY[family]
    tokenizer = _tokenizer(template)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(transformers, config_class)(vocab_size=len(tokenizer), **SIZES, **ids, **extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            # The default scale of 0.02 would leave the stream all but unchanged by the blocks, and
            # every test blind.
            if parameter.dim() > 1 and "embed" not in name:
                parameter.data.normal_(std=parameter.shape[1] ** -0.5)
            elif "norm" in name:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    return _cast(model, dtype), tokenizer


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    # Parameters only: rotary frequencies are buffers that every loader keeps in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@functools.cache
def _trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((p.prompt for p in load_prompts()), trainer)
    return tokenizer


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    begin, end = ("<|im_start|>", "<|im_end|>") if template == CHATML else ("<|begin|>", "<|eot|>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained(),
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        padding_side="left",
    )
    tokenizer.chat_template = template
    return tokenizer
