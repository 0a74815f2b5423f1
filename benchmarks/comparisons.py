"""Each line of the benchmark: the package's way and another, and whether they give the same."""

import tempfile
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch.nn.functional import cosine_similarity, normalize

from benchmarks import plain
from benchmarks.measured import Row, both, peak_flops, seconds
from experiments import select, sweep
from refusal_nn import passes, prompts, statistics
from refusal_nn.directions import choose
from refusal_nn.effects import effects
from refusal_nn.feeding import plan
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.journal import Journal
from refusal_nn.judges import judge
from refusal_nn.prompts import LABELS
from refusal_nn.rollouts import Job, Rollout, packs
from refusal_nn.scores import kl_divergence, refusal_score
from refusal_nn.selection import evenly, fit_directions, scorers, tokens_of_refusal
from refusal_nn.tracing import capture, generate, next_token_logits


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


def row_select(b):
    """Every position of some layers ablated and added, 32 prompts a class: each costs the same."""
    tokens, directions = tokens_of_refusal(b.model), b.directions()
    asked = {c: evenly(b.prompts[c], 32) for c in LABELS}

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            rounds = scorers(b.model, asked, tokens, 0)
            found = select.scored(rounds, directions[b.layers()], Journal(Path(folder) / "j", {}))
        return [row | {"layer": b.layers()[row["layer"]]} for row in found]

    def theirs():
        clean = plain.last_logits(b.model, b.few["harmless"], plain.planted(b.model))
        return [
            _scored(b, directions[layer, pos], layer, pos, tokens, clean)
            for layer in b.layers()
            for pos in b.post
        ]

    mine, rows = seconds(ours)
    taken, other = seconds(theirs)
    same = {(r["layer"], r["pos"]): r for r in rows}
    rank = {
        k: scipy.stats.spearmanr(
            [r[k] for r in other], [same[r["layer"], r["pos"]][k] for r in other]
        )[0]
        for k in ("ablated", "added", "kl")
    }
    note = "Spearman " + ", ".join(f"{k} {v:.4f}" for k, v in rank.items())
    both_ = [choose(found, b.model.n_layers) for found in (rows, other)]
    note += f"; chosen {[c and (c['layer'], c['pos']) for c in both_]}"
    work = f"select, {len(rows)} candidates"
    yield Row(work, "one candidate at a time", mine, taken, taken / mine, "≥ 4", note)


def _scored(b, vector, layer, pos, tokens, clean):
    ablating = plain.ablating(b.model, normalize(vector, dim=0)[None])
    harmful, harmless = (plain.last_logits(b.model, b.few[c], ablating) for c in LABELS)
    added = plain.last_logits(b.model, b.few["harmless"], plain.adding(b.model, vector, layer))
    return {
        "layer": layer,
        "pos": pos,
        "norm": float(vector.norm()),
        "ablated": float(refusal_score(harmful, tokens).mean()),
        "added": float(refusal_score(added, tokens).mean()),
        "kl": float(kl_divergence(clean, harmless).mean()),
    }


def row_sweep(b):
    """Each layer's direction ablated, 32 harmful prompts completed; theirs at a few layers, alone
    and with all else that a row of ours is made of."""
    directions, asked = b.directions()[:, -1], evenly(b.prompts["harmful"], 32)
    units = normalize(directions, dim=-1)
    arms = {str(i): DirectionalAblation(units[i][None]) for i in range(b.model.n_layers)}
    rollout = Rollout(b.model, tokens_of_refusal(b.model), b.tokens, 10.0)
    edits = [plain.ablating(b.model, units[i][None]) for i in b.layers()]

    def theirs():
        return [plain.complete(b.model, b.few["harmful"], b.tokens, edit) for edit in edits]

    mine, (rows, out) = seconds(lambda: _swept(rollout, arms, asked, b.few["harmless"]))
    taken, found = seconds(theirs)
    once, clean = seconds(
        lambda: plain.last_logits(b.model, b.few["harmless"], plain.planted(b.model))
    )
    more, _ = seconds(lambda: [_measure(b, clean, *x) for x in zip(edits, found, strict=True)])
    whole, same = (t * b.model.n_layers / b.some for t in (taken, taken + more))
    same += once
    lengths = {
        (str(i), prompt.id): len(ids)
        for i, done in zip(b.layers(), found, strict=True)
        for prompt, ids in zip(asked, done, strict=True)
    }
    ours_at = {(r["arm"], r["id"]): r["tokens"] for r in rows}
    alike = np.mean([ours_at[key] == lengths[key] for key in ours_at.keys() & lengths.keys()])
    share = len(rows) / len(asked) / b.model.n_layers
    note = (
        f"{100 * share:.0f} % of the completions asked for, {len(out)} layers ruled out; "
        f"{100 * alike:.0f} % of them as long; {b.some} of {b.model.n_layers} layers by hooks; "
        f"{b.tokens} tokens"
    )
    yield Row("sweep, all layers", "one generate per layer", mine, whole, whole / mine, "≥ 5", note)
    note = "the same numbers: also KL, the first token's logits, likelihoods"
    yield Row("sweep, its table", "hooks, layer by layer", mine, same, same / mine, "", note)


def _measure(b, clean, edit, completions):
    """Compute what a layer's row has beside its completions; likelihoods of those that do not
    refuse."""
    harmful = b.few["harmful"]
    kl_divergence(clean, plain.last_logits(b.model, b.few["harmless"], edit))
    plain.last_logits(b.model, harmful, edit)
    texts = b.model.lm.tokenizer.batch_decode(completions, skip_special_tokens=True)
    own = [i for i, text in enumerate(texts) if judge(harmful[i], text).label == "compliance"]
    if own:
        plain.nll(b.model, [harmful[i] for i in own], [completions[i] for i in own])


def _swept(rollout, arms, asked, harmless):
    """KL and completions, as the sweep stage has them: the rows, and which layers are out."""
    tokens, names, kl = rollout.refusal_tokens, list(arms), {}
    clean = next_token_logits(rollout.model, harmless)
    for pack in packs(arms, names):
        found = effects(rollout.model, [arms[n] for n in pack], harmless, tokens, clean)
        kl |= dict(zip(pack, found.kl.mean(1).tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal", {})

        def roll(going, whose, what):
            jobs = [Job(name, prompt) for name in going for prompt in whose[name]]
            return rollout.rows(going, jobs, journal)

        return sweep.raced(roll, arms, asked, kl, 0)


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
    "select": row_select,
    "sweep": row_sweep,
    "hooks": row_hooks,
    "statistics": row_statistics,
}
