"""Qwen-1 chat models (Qwen-1.8B-Chat) as Qwen2 models: the same function by other names.

Their repositories bring code of their own, which is not run, and transformers has no class for
them. Weights are renamed, the fused projection is cut in three; the tiktoken vocabulary becomes a
fast tokenizer. Exact within the trained length: what Qwen-1 does beyond it (logn attention, dynamic
NTK) is not done.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.convert_slow_tokenizer import bytes_to_unicode

from refusal_nn.errors import ModelError
from refusal_nn.files import write_text

KIND = "qwen"  # config.model_type
FILES = ("config.json", "qwen.tiktoken", "*.safetensors")
MARK = "converted.txt"
RECIPE = 1  # another number: folders made before are made again
NAMES = {
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    # Qwen-1 computes w1(x) silu(w2(x)): the gate is the second.
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}
OUTSIDE = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
# As the model's own `chat` writes a conversation; its own system prompt stands where none is given.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def is_qwen1(folder: Path) -> bool:
    """Whether a folder holds a Qwen-1 model."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return about.get("model_type") == KIND
    except (OSError, ValueError, AttributeError):  # read again, and complained of, by transformers
        return False


def convert(source: Path, folder: Path, made_of: str) -> Path:
    """A Qwen-1 folder as a folder of Qwen2's architecture, made once, marked with `made_of` last.

    Reads safetensors alone. Raises ModelError where a weight is missing or unknown.
    """
    mark, label = folder / MARK, f"{made_of}, as Qwen2 by recipe {RECIPE}"
    if mark.is_file() and mark.read_text(encoding="utf-8") == label:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    config = qwen2_config(json.loads((source / "config.json").read_text(encoding="utf-8")))
    own = tokenizer(source / "qwen.tiktoken")
    own.save_pretrained(folder)
    ends = own.convert_tokens_to_ids(list(SPECIAL[:3]))
    GenerationConfig(eos_token_id=ends, pad_token_id=ends[0]).save_pretrained(folder)
    weights = qwen2_weights(_read(source), config.num_hidden_layers)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    write_text(mark, label)
    return folder


def _read(source: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def qwen2_config(about: Mapping[str, object]) -> Qwen2Config:
    """The configuration of the same model as Qwen2. Raises ModelError where there is none."""
    heads = about["num_attention_heads"]
    if about["kv_channels"] * heads != about["hidden_size"] or not about.get("no_bias", True):
        raise ModelError("this Qwen-1 model has heads or biases that Qwen2 has no place for")
    return Qwen2Config(
        vocab_size=about["vocab_size"],
        hidden_size=about["hidden_size"],
        # Of both halves of the gated MLP together.
        intermediate_size=about["intermediate_size"] // 2,
        num_hidden_layers=about["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=about["seq_length"],
        rms_norm_eps=about["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(about["rotary_emb_base"])},
        tie_word_embeddings=bool(about.get("tie_word_embeddings", False)),
        architectures=["Qwen2ForCausalLM"],
    )


def qwen2_weights(weights: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """The same weights by Qwen2's names. Raises ModelError where one is missing or unknown."""
    names = dict(OUTSIDE)
    fused = {}
    for i in range(n_layers):
        ours, theirs = f"transformer.h.{i}.", f"model.layers.{i}."
        names |= {ours + old: theirs + new for old, new in NAMES.items()}
        for kind in ("weight", "bias"):
            fused[f"{ours}attn.c_attn.{kind}"] = [
                f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"
            ]
    # Frequencies of the rotation are computed, though some checkpoints store them.
    there = {name for name in weights if not name.endswith("rotary_emb.inv_freq")}
    wrong = there ^ (set(names) | set(fused))
    if wrong:
        raise ModelError(f"weights missing or unknown in this Qwen-1 model: {sorted(wrong)[:4]}")
    made = {new: weights[old] for old, new in names.items()}
    for old, parts in fused.items():
        # Copies: a file of safetensors holds no two names for one storage.
        made |= dict(zip(parts, (w.clone() for w in weights[old].chunk(3)), strict=True))
    return made


def tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """A fast tokenizer of a tiktoken file (a token in base64 and its rank a line)."""
    lines = vocabulary.read_bytes().splitlines()
    pairs = (line.split() for line in lines if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    letters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    # tiktoken joins the two neighbours whose union has the least rank, however each came about.
    merges = [
        (written(token[:cut]), written(token[cut:]))
        for token in sorted(ranks, key=ranks.get)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocab = {written(token): rank for token, rank in ranks.items()}
    made = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        padding_side="left",
    )
