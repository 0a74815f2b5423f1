"""Each line of the benchmark: the package's way and another, and whether they give the same."""

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize

from benchmarks import causal_comparisons, plain
from benchmarks.measured import Row, both, peak_flops, seconds
from refusal_nn import passes, prompts, statistics
from refusal_nn.feeding import plan
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.prompts import LABELS
from refusal_nn.selection import evenly, fit_directions
from refusal_nn.tracing import capture, generate


class Bench:
    """A model, and so many of the bundled prompts."""

    def __init__(self, model, count, tokens, layers):
        self.model, self.tokens, self.some = model, tokens, layers
        every = prompts.load_prompts()
        self.prompts = {c: evenly([p for p in every if p.label == c], count // 2) for c in LABELS}
        self.texts = [p.prompt for c in LABELS for p in self.prompts[c]]
        self.few = {c: [p.prompt for p in evenly(self.prompts[c], 32)] for c in LABELS}
        self.post = list(range(-len(model.template.post_ids), 0))

    def layers(self):
        """Some, evenly: what each of all would cost is the same."""
        n = self.model.n_layers
        return [i * n // self.some for i in range(self.some)]

    def directions(self):
        return fit_directions(self.model, {c: self.prompts[c][:64] for c in LABELS})


def row_capture(b):
    """All layers, all prompts, the difference in means at every position after the instruction."""
    groups = [c for c in LABELS for _ in b.prompts[c]]

    def ours():
        found = capture(b.model, b.texts, groups=groups).means
        return found["harmful"] - found["harmless"]

    def theirs():
        one, two = (plain.means(b.model, [p.prompt for p in b.prompts[c]], b.post) for c in LABELS)
        return one - two

    mine, other, ratio, a, z = both(ours, theirs, 2)
    cosine = cosine_similarity(a, z, dim=-1)[len(a) // 4 :]
    note = f"least cosine of directions from layer L/4 on {cosine.min():.7f}"
    yield Row(f"capture, {len(b.texts)} prompts", "plain hooks", mine, other, ratio, "≥ 3", note)
    few = b.texts[:: max(len(b.texts) // 32, 1)]
    taken, _ = seconds(lambda: plain.layer_by_layer(b.model, few, b.layers()[:4]))
    loop = taken / len(few) / 4 * len(b.texts) * b.model.n_layers
    note = f"{len(few)} prompts at 4 layers measured, the rest by rule of three"
    yield Row("capture", "a pass per prompt and layer", mine, loop, loop / mine, "≥ 100", note)
    peak, work = peak_flops(b.model), _flops(b)
    note = f"{work / 1e9:.0f} GFLOP of matrix products at {peak / 1e9:.0f} GFLOP/s"
    yield Row(
        "capture", "the same products at peak", mine, work / peak, mine * peak / work, "≤ 1.6", note
    )


def _flops(b):
    """Of the decoder's matrix products over all tokens but the shared prefix and pads."""
    ids = b.model.template.render(b.texts)
    prefix = plan(b.model, ids, len(b.post)).prefix
    tokens = sum(len(row) - len(prefix) for row in ids) + len(prefix)
    weights = sum(
        m.weight.numel()
        for name, m in b.model.module.named_modules()
        if isinstance(m, torch.nn.Linear) and "lm_head" not in name
    )
    return 2 * weights * tokens


def row_hooks(b):
    """nnsight over plain hooks on the same batches."""
    texts = b.texts[:: max(len(b.texts) // 128, 1)]
    todo = plan(b.model, b.model.template.render(texts), len(b.post))
    shared = passes.Shared.of(b.model, None, todo.prefix).cached()

    def by_hooks():
        return [plain.states(b.model, shared, feed, b.post) for feed in todo.feeds]

    def ours():
        return [passes.states(shared, feed, b.post) for feed in todo.feeds]

    mine, other, ratio, one, two = both(ours, by_hooks, 5)
    worst = max(float((x - y).abs().max()) for x, y in zip(one, two, strict=True))
    note = f"greatest difference {worst:.1e}"
    yield Row("nnsight, capture", "hooks, same batches", mine, other, 1 / ratio, "≤ 1.05", note)
    yield from _generation(b)


def _generation(b):
    unit = normalize(b.directions()[b.model.n_layers // 2, -1], dim=0)[None]
    texts = b.few["harmful"]

    def ours():
        edit = DirectionalAblation(unit)
        every = {"max_new_tokens": b.tokens, "chunk": b.tokens, "share_prefix": False}
        return [c.ids for c in generate(b.model, texts, edit, token_budget=10**9, **every)]

    def theirs():
        return plain.complete(b.model, texts, b.tokens, plain.ablating(b.model, unit))

    mine, other, ratio, one, two = both(ours, theirs, 3)
    same = sum(x == y for x, y in zip(one, two, strict=True))
    note = f"{same} of {len(one)} completions the same"
    yield Row(
        "nnsight, ablated generation", "hooks, same batch", mine, other, 1 / ratio, "≤ 1.10", note
    )


def row_statistics(b):
    """28 x 512 x 1536, 1,000 permutations; theirs refits every fold of every permutation."""
    layers, n, width, draws = 28, 256, 1536, 1000
    data = np.random.default_rng(0).standard_normal((2, layers, n, width)).astype(np.float32)
    mine, _ = seconds(lambda: statistics.validate_layers(*data, permutations=draws))
    x, few = np.concatenate(list(data), 1), 2
    taken, _ = seconds(lambda: [_refitted(x, n, seed) for seed in range(few)])
    whole = taken / few * draws
    note = f"{few} of {draws} permutations refitted; ours with jackknife and intervals"
    yield Row("validate's statistics", "the naive refit", mine, whole, whole / mine, "≥ 50", note)


def _refitted(x, n, seed, folds=5):
    """Cross-fitted d at every layer for one permutation of the labels."""
    order = np.random.default_rng(seed).permutation(2 * n)
    harmful = np.isin(np.arange(2 * n), order[:n])
    fold = np.arange(2 * n) % folds
    scores = np.empty(x.shape[:2])
    for k in range(folds):
        fit = fold != k
        one, two = x[:, fit & harmful].mean(1), x[:, fit & ~harmful].mean(1)
        unit = (one - two) / np.linalg.norm(one - two, axis=-1, keepdims=True)
        scores[:, ~fit] = np.einsum("lnd,ld->ln", x[:, ~fit], unit)
    a, z = scores[:, harmful], scores[:, ~harmful]
    return (a.mean(1) - z.mean(1)) / np.sqrt((a.var(1, ddof=1) + z.var(1, ddof=1)) / 2)


ROWS = {
    "capture": row_capture,
    "select": causal_comparisons.row_select,
    "sweep": causal_comparisons.row_sweep,
    "hooks": row_hooks,
    "statistics": row_statistics,
}
