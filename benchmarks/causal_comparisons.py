"""The causal stages' lines of the benchmark: select's grid and the sweep of layers."""

import tempfile
from pathlib import Path

import numpy as np
import scipy.stats
from torch.nn.functional import normalize

from benchmarks import plain
from benchmarks.measured import Row, seconds
from experiments import select, sweep
from refusal_nn.directions import choose
from refusal_nn.effects import effects
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.journal import Journal
from refusal_nn.judges import judge
from refusal_nn.prompts import LABELS
from refusal_nn.rollouts import Job, Rollout, packs
from refusal_nn.scores import kl_divergence, refusal_score
from refusal_nn.selection import evenly, scorers, tokens_of_refusal
from refusal_nn.tracing import next_token_logits


def row_select(b):
    """Every position of some layers ablated and added, 32 prompts a class."""
    tokens, directions = tokens_of_refusal(b.model), b.directions()
    asked = {c: evenly(b.prompts[c], 32) for c in LABELS}

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            rounds, journal = scorers(b.model, asked, tokens, 0), Journal(Path(folder) / "j", {})
            return select.scored(rounds, directions, journal, b.layers())

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
