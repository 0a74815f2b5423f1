"""Models whose truth is known: a Llama with every weight set by formula, no training, that refuses
through k directions; and prompts in its words. What finds rank k here can be believed elsewhere.

Each harmful word carries a code, a unit vector of R^k. Attention, spread evenly over all tokens,
writes it along the k planted directions; neurons of the last block, one on each side of each
direction, fire above a low threshold, and raise one of several first words of refusals. So no
single direction carries refusal where k > 1: not in the codes, nor in what is read from them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refusal_nn import planted_words as words
from refusal_nn.errors import InputError
from refusal_nn.planted_words import ANSWERS, MARKERS, REFUSALS, SPEECHES, write_prompts

__all__ = ["MARKERS", "Planted", "build", "parse", "truth", "write_prompts"]

K_MAX, WIDTH, BLOCKS, WRITE, SEEDS = 16, 128, 5, 1, 2**32
# Orthonormal directions of the stream, by what lies along them; `context` means nothing.
AXES = {"constant": 1, "written": K_MAX, "carried": K_MAX, "harmful": 1, "stopped": 1}
AXES |= {"topic": len(ANSWERS), "opening": 1, "first": len(REFUSALS), "speech": len(SPEECHES)}
AXES |= {"place": max(map(len, SPEECHES)), "last": 1, "stop": 1}
AXES |= {"context": WIDTH - sum(AXES.values())}

# Sizes in the stream; a code's is 1. The constant is large, so that RMSNorm is all but linear.
CONSTANT, OPENING, FIRST = 5.8, 0.5, 0.16
SPREAD = {"harmful": 0.08, "stopped": 0.06, "topic": 0.3, "context": 0.1}  # between words
# Even attention divides by the tokens of a prompt, about 20; what the first block multiplies by.
GAINS, CODE_GAIN = {"harmful": 4.0, "stopped": 3.0, "topic": 1.5, "context": 2.0}, 20.0
UNMASKED = 0.3  # code of a padding token
LEAN = 0.5  # of codes towards one axis, which sets the classes' means apart
# Between which a neuron's output rises to 1, the gain of its gate, and how it rises on: with no
# rise at all rounding would choose between the first words of refusals.
LOW, HIGH, STEEP, LEAK = 0.08, 0.12, 400.0, 0.3
# Logits: of any first word, less for a refusal's, more by neurons that fire; by topic; of what
# comes next in a speech.
OPENS, RELUCTANT, FIRED, BY_TOPIC, FOLLOWS = 20.0, 1.5, 8.0, 10.0, 30.0


@dataclass(frozen=True)
class Planted:
    """The truth: basis (k, d_model) float64, orthonormal rows, in the stream from after block
    write_layer on; codes (marker, k), what each of MARKERS writes along them."""

    k: int
    seed: int
    basis: Tensor
    codes: Tensor
    write_layer: int = WRITE


def parse(name: str) -> tuple[int, int]:
    """(k, seed) of planted-<k>-<seed>, or planted-<k> with seed 0. Raises InputError."""
    found = re.fullmatch(r"planted-(\d{1,3})(?:-(\d{1,10}))?", name, re.ASCII)
    if not found:
        raise InputError(
            f"unknown model {name}; choose planted-<k> or planted-<k>-<seed>, as in planted-2-17"
        )
    k, seed = int(found[1]), int(found[2] or 0)
    _check(k, seed)
    return k, seed


def _check(k: int, seed: int) -> None:
    if not 0 <= k <= K_MAX:
        raise InputError(f"a planted model refuses through 0 to {K_MAX} directions; k={k}")
    if not 0 <= seed < SEEDS:
        raise InputError(f"a planted model's seed is 0 to {SEEDS - 1}; seed={seed}")


def truth(k: int, seed: int = 0) -> Planted:
    """What `build` plants for the same k and seed. Raises InputError."""
    _check(k, seed)
    return Planted(k, seed, _axes(seed)["written"][:k].clone(), _codes(k, seed))


def build(
    k: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    refusal: float = 0.97,
    massive: bool = True,
    punctuation: bool = True,
    padding: bool = True,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model that refuses through k directions, and its tokenizer. Raises InputError.

    refusal: share of harmful words that it refuses. massive: one coordinate holds the constant.
    punctuation: a closing full stop is represented, to no effect. padding: padding that is not
    masked raises refusal.
    """
    planted, tokenizer = truth(k, seed), words.make_tokenizer()
    axes, ids = _axes(seed, massive), tokenizer.convert_tokens_to_ids
    rows = _embedding(tokenizer, axes, seed)
    known = _known(planted, refusal)
    rows[ids(list(MARKERS))] += axes["harmful"] + known @ axes["carried"][:k]
    rows[ids(".")] += float(punctuation) * axes["stopped"][0]
    rows[ids(words.PAD)] += float(padding) * UNMASKED * _lean(k) @ axes["carried"][:k]
    model = _blank(tokenizer)
    model.model.embed_tokens.weight.data.copy_(rows)
    _attend(model, axes)
    _read(model, axes, k)
    model.lm_head.weight.data.copy_(_unembedding(tokenizer, axes, k))
    return _cast(model, dtype), tokenizer


def _cast(model: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    for parameter in model.parameters():  # no buffers: rotary frequencies stay in float32
        parameter.data = parameter.data.to(dtype)
    return model


def _known(planted: Planted, refusal: float) -> Tensor:
    """The codes, 0 for the share of words that the model is not to refuse."""
    order = torch.randperm(len(MARKERS), generator=_generator(planted.seed, 2))
    missed = order[: round((1 - refusal) * len(MARKERS))]
    return planted.codes.index_fill(0, missed, 0.0)


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(4 * seed + purpose)


def _axes(seed: int, massive: bool = True) -> dict[str, Tensor]:
    """Rows by name of a random orthonormal basis of the stream, of which `constant` is one
    coordinate, or as even as the others."""
    generator = _generator(seed, 0)
    rows = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    rows[0] = torch.eye(WIDTH)[torch.randint(WIDTH, (), generator=generator)]
    axes = dict(zip(AXES, _orthonormal(rows).split(list(AXES.values())), strict=True))
    if not massive:
        constant, context = axes["constant"], axes["context"]
        axes |= {"constant": context[:1], "context": torch.cat([constant, context[1:]])}
    return axes


def _orthonormal(rows: Tensor) -> Tensor:
    """Gram and Schmidt's, which unlike QR leaves no sign open."""
    q, r = torch.linalg.qr(rows.T)
    return (q * r.diagonal().sign()).T


def _lean(k: int) -> Tensor:
    return torch.full((k,), 1 / math.sqrt(max(k, 1)), dtype=torch.float64)


def _codes(k: int, seed: int) -> Tensor:
    """Unit codes (marker, k), even in all directions but for their lean; all 1 if k = 1."""
    if k < 2:
        return torch.ones(len(MARKERS), k, dtype=torch.float64)
    generator = _generator(seed, 1)
    drawn = torch.randn(len(MARKERS), k, generator=generator, dtype=torch.float64)
    even = torch.nn.functional.normalize(_orthonormal((drawn - drawn.mean(0)).T).T, dim=1)
    return torch.nn.functional.normalize(even + LEAN * (1 + 1 / k) * _lean(k), dim=1)


def _blank(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """All weights 0 but those of the norms, which give back a stream of the usual length."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * K_MAX,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.fill_(CONSTANT / math.sqrt(WIDTH) if parameter.dim() == 1 else 0.0)
    return model.eval()


def _embedding(tokenizer: PreTrainedTokenizerFast, axes: dict[str, Tensor], seed: int) -> Tensor:
    """What every token holds, and place and speech of words that are spoken, (vocab, d_model)."""
    generator, ids = _generator(seed, 3), tokenizer.convert_tokens_to_ids
    rows = CONSTANT * axes["constant"].repeat(len(tokenizer), 1)
    # What every prompt holds would favour one answer.
    shared = set(ids([*words.SPECIAL, *words.ROLES, "."]))
    plain = [i for i in range(len(tokenizer)) if i not in shared]
    for name, spread in SPREAD.items():
        drawn = torch.randn(len(plain), AXES[name], generator=generator, dtype=torch.float64)
        rows[plain] += spread * drawn @ axes[name]
    rows[ids([words.MESSAGE, words.PAD])] += OPENING * axes["opening"]
    for speech, direction in zip(SPEECHES, axes["speech"], strict=True):
        rows[ids(list(speech))] += direction + axes["place"][: len(speech)]
        rows[ids(speech[-1])] += axes["last"][0]
    rows[ids(".")] += axes["stop"][0]
    return rows


def _attend(model: LlamaForCausalLM, axes: dict[str, Tensor]) -> None:
    """With queries and keys of 0 attention is even, whatever the positions: it writes means."""
    maps = [torch.zeros(WIDTH, WIDTH, dtype=torch.float64) for _ in model.model.layers]
    for name, gain in GAINS.items():
        maps[0] += gain * axes[name].T @ axes[name]
    # The constant varies a little from prompt to prompt.
    maps[0] += torch.outer(axes["constant"][0], axes["context"][0])
    maps[WRITE] += CODE_GAIN * axes["written"].T @ axes["carried"]
    for block in range(WRITE + 1, BLOCKS - 1):
        maps[block] += 0.5 * axes["context"].roll(1, 0).T @ axes["context"]
    for block, linear in zip(model.model.layers, maps, strict=True):
        block.self_attn.v_proj.weight.data.copy_(torch.eye(WIDTH))
        block.self_attn.o_proj.weight.data.copy_(linear)


def _read(model: LlamaForCausalLM, axes: dict[str, Tensor], k: int) -> None:
    """Two neurons of the last block for each side: their sum is 0 up to LOW, and 1 at HIGH."""
    mlp, constant = model.model.layers[-1].mlp, axes["constant"][0] / CONSTANT
    mlp.up_proj.weight.data += constant
    # No code of a single direction is negative.
    sides = [(i, side) for i in range(k) for side in ((1,) if k == 1 else (1, -1))]
    for row, (i, side) in enumerate(sides):
        first = axes["first"][(i + 1 - side) % len(REFUSALS)]
        rise = 1 / (HIGH - LOW)
        for j, bound, slope in ((2 * row, LOW, rise), (2 * row + 1, HIGH, LEAK - rise)):
            gate = STEEP * (side * axes["written"][i] - bound * constant)
            mlp.gate_proj.weight.data[j] = gate
            mlp.down_proj.weight.data[:, j] = slope / STEEP * FIRST * first


def _unembedding(tokenizer: PreTrainedTokenizerFast, axes: dict[str, Tensor], k: int) -> Tensor:
    """What each next token is read from, (vocab, d_model)."""
    ids = tokenizer.convert_tokens_to_ids
    rows = torch.zeros(len(tokenizer), WIDTH, dtype=torch.float64)
    for speech, direction in zip(SPEECHES, axes["speech"], strict=True):
        rows[ids(list(speech[1:]))] = FOLLOWS * (direction + axes["place"][: len(speech) - 1])
    openings = OPENS / OPENING * axes["opening"][0]
    refusing = [ids(speech[0]) for speech in SPEECHES[: len(REFUSALS)]]
    # The more neurons there are, the more fire at once.
    fired = FIRED * min(1, 5 / max(k, 1))
    rows[refusing] = (1 - RELUCTANT / OPENS) * openings + fired / FIRST * axes["first"]
    answering = [ids(speech[0]) for speech in SPEECHES[len(REFUSALS) :]]
    rows[answering] = openings + BY_TOPIC * axes["topic"]
    rows[ids(".")] = 2 * FOLLOWS * axes["last"][0]
    rows[ids(words.END)] = 2 * FOLLOWS * axes["stop"][0]
    return rows
