"""Planted models with their prompts and what ablations leave of their refusal, built once."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from refusal_nn import planted
from refusal_nn.directions import difference_in_means, unit
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.judges import judge
from refusal_nn.loading import load
from refusal_nn.prompts import load_prompts
from refusal_nn.scores import begins_refusal
from refusal_nn.selection import tokens_of_refusal
from refusal_nn.tracing import capture, generate, next_token_logits

N = 96  # prompts a class: one a harmful word
LAST = planted.BLOCKS - 1


class Bench:
    """A planted model, what is true of it, its prompts, and what ablations leave of its refusal."""

    def __init__(self, k, seed):
        self.model = load(f"planted-{k}-{seed}", dtype="float32")
        self.truth = planted.truth(k, seed)
        self.basis = self.truth.basis.float()
        self.tokens = tokens_of_refusal(self.model)
        self.harmful, self.harmless = prompts(N, seed)
        states = capture(self.model, self.harmful + self.harmless).at(-1).numpy()
        self.states = states[:, :N], states[:, N:]
        self.directions = torch.tensor(unit(difference_in_means(*self.states))).float()

    def refused(self, texts, bases=None):
        """Share of answers that begin as a refusal, clean or for each of bases (basis, rank, d)."""
        if bases is None:
            found = begins_refusal(next_token_logits(self.model, texts), self.tokens)
            return int(found.sum()) / len(texts)
        sets = [i for i in range(len(bases)) for _ in texts]
        ablation = DirectionalAblation(bases.contiguous())
        logits = next_token_logits(self.model, texts * len(bases), ablation, sets=sets)
        return begins_refusal(logits, self.tokens).float().view(len(bases), -1).mean(1).tolist()

    @functools.cached_property
    def refusals(self):
        return self.answers(self.harmful)

    @functools.cached_property
    def compliances(self):
        return self.answers(self.harmless)

    @functools.cached_property
    def ablated(self):
        """What it answers to harmful prompts without the planted span."""
        return self.answers(self.harmful, DirectionalAblation(self.basis))

    def answers(self, texts, intervention=None):
        return generate(self.model, texts, intervention, max_new_tokens=24)


def labels(texts, answers):
    """(label, coherence) of each answer."""
    return [judge(p, a.text)[::2] for p, a in zip(texts, answers, strict=True)]


def prompts(n, seed, **options):
    with tempfile.TemporaryDirectory() as folder:
        planted.write_prompts(Path(folder) / "p.csv", n, seed, **options)
        rows = load_prompts(str(Path(folder) / "p.csv"))
    return [[p.prompt for p in rows if p.label == label] for label in ("harmful", "harmless")]


@functools.cache
def bench(k, seed):
    return Bench(k, seed)


def all_but(kept):
    """Orthonormal rows (n, k - 1, k) of what is orthogonal to each of kept (n, k)."""
    noise = torch.randn(*kept.shape, kept.shape[1] - 1, generator=torch.Generator().manual_seed(0))
    q = torch.linalg.qr(torch.cat([kept[:, :, None], noise.to(kept.dtype)], 2)).Q
    return q[:, :, 1:].mT


def worst_kept(codes, n=4):
    """Directions of R^k along which most codes cross no threshold: what an adversary would keep."""
    generator = torch.Generator().manual_seed(1)

    def crossing(w):
        return ((w @ codes.T).abs() * w.abs().amax(1, keepdim=True) > 0.1).double().mean(1)

    def drawn(count):
        return torch.randn(count, codes.shape[1], generator=generator, dtype=codes.dtype)

    best = torch.nn.functional.normalize(drawn(20_000), dim=1)
    for _ in range(100):
        best = best[crossing(best).argsort()[:n]]
        near = best.repeat(32, 1) + 0.1 * drawn(32 * n)
        best = torch.cat([best, torch.nn.functional.normalize(near, dim=1)])
    return best[crossing(best).argsort()[:n]]


def effect(a, b):
    return (a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2)


def raw(k=2, seed=17, **traps):
    model, tokenizer = planted.build(k, seed, **traps)

    @torch.no_grad()
    def states(texts):
        rows = [ids_of(tokenizer, text) for text in texts]
        found = [model(r, output_hidden_states=True).hidden_states[1:LAST] for r in rows]
        return torch.stack([torch.stack(layers)[:, 0, -1] for layers in found], 1)

    return model, tokenizer, states


def ids_of(tokenizer, text):
    turn = [{"role": "user", "content": text}]
    found = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)
    return torch.tensor([found["input_ids"]])
