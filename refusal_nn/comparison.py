"""From finished stages to the cross-model table: rows beside the published ones, cosines at equal
relative depth, and the page. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refusal_nn import modes
from refusal_nn.agreement import unpaired_rate_difference
from refusal_nn.estimates import Estimate, p_in_words
from refusal_nn.plain_text import visible
from refusal_nn.published_rates import CROSS_MODEL, PUBLISHED, STUDIES, of_model, of_study
from refusal_nn.verdicts import UNTESTABLE

Row = dict[str, object]
OURS, FAILED = "this run", "FAILED"
COLUMNS = ("model", "hub_id", "source", "judge", "verdict", "by_rate_only", "rule_version")
COLUMNS += ("compliance", "low", "high", "n")
# Estimates of our runs, each with _low, _high and _n.
ESTIMATES = ("second_compliance", "judges_kappa", "baseline_refusal", "over_controls")
COLUMNS += tuple(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high", "_n"))
COLUMNS += ("kl", "layer", "pos", "alpha", "rank", "rank_version")
COLUMNS += ("late_half_cosine", "said", "notes")
# By the rate that the second judge gave: its name, and its kappa with the rules.
SECOND = {
    "compliance_by_model": ("judge model", "model_judge_kappa"),
    "compliance_by_logits": ("first token", "judges_kappa"),
}


class Measured(NamedTuple):
    """What a model's finished stages say. failed: why there are none; sweep, subspace: summaries
    of those stages; cosine: (layer, layer), NaN where a layer has no direction."""

    model: str
    hub_id: str
    failed: str = ""
    sweep: Mapping[str, object] = {}
    subspace: Mapping[str, object] = {}
    cosine: np.ndarray | None = None


def table(models: Sequence[Measured]) -> list[Row]:
    """A row per model and source: ours, then what was published of it; last, what was published of
    models not measured here."""
    seen = {m.hub_id.lower() for m in models}
    rows = []
    for m in models:
        rows += [our_row(m, models), *_published(m.hub_id, visible(m.model))]
    rest = [p.model for p in PUBLISHED if p.model.lower() not in seen]
    return rows + [row for model in dict.fromkeys(rest) for row in _published(model, "")]


def our_row(m: Measured, models: Sequence[Measured]) -> Row:
    name = visible(m.model)
    blank = dict.fromkeys(COLUMNS, "")
    blank |= {"model": name, "hub_id": visible(m.hub_id), "source": OURS}
    if m.failed:
        return blank | {"verdict": FAILED, "notes": visible(m.failed)}
    about, test = m.sweep, m.sweep.get("test") or {}
    found = blank | {
        "verdict": about["verdict"],
        "rule_version": about.get("version", ""),
        "by_rate_only": False,
        "rank": m.subspace.get("label", ""),
        "late_half_cosine": late_half(at_equal_depth(models)[name]),
        "notes": visible("; ".join(about["reasons"])),
    }
    if not test:
        return found
    found |= {k: about["best"][k] for k in ("layer", "pos", "alpha")}
    second = next(rate for rate in SECOND if test.get(rate))
    judge, kappa = SECOND[second]
    found |= _compliance(test["compliance"]) | {"kl": test["kl"], "judge": f"rules; {judge}"}
    for column in ESTIMATES:
        of = {"second_compliance": second, "judges_kappa": kappa}.get(column, column)
        found |= {column if k == "value" else f"{column}_{k}": v for k, v in test[of].items()}
    return found


def _compliance(found: Mapping[str, float]) -> Row:
    return {"compliance" if k == "value" else k: v for k, v in found.items()}


def _published(hub_id: str, model: str) -> list[Row]:
    return [
        dict.fromkeys(COLUMNS, "")
        | {"model": model or p.model, "hub_id": p.model, "source": p.study, "judge": p.judge}
        | {"verdict": p.verdict.verdict, "by_rate_only": True, "rule_version": p.verdict.version}
        | _compliance(p.rate._asdict())
        | {"said": p.sufficient, "notes": p.notes}
        for p in of_model(hub_id)
    ]


def rate_of(row: Mapping[str, object]) -> Estimate | None:
    """The compliance of a row; None where none was measured."""
    if row["compliance"] == "":
        return None
    return Estimate(row["compliance"], row["low"], row["high"], row["n"])


def found_modes(rows: Sequence[Row], source: str) -> modes.Modes:
    """The test of two modes on one source's rates; untestable models have none."""
    kept = [r for r in rows if r["source"] == source and r["verdict"] not in (UNTESTABLE, FAILED)]
    rates = {str(row["model"]): rate_of(row) for row in kept}
    return modes.two_modes({name: rate for name, rate in rates.items() if rate is not None})


def differences(rows: Sequence[Row]) -> list[Row]:
    """Ours minus the cross-model study's rate, where both are there: different prompts, judges and
    denominators, so that a difference is no verdict on either. None for an untestable model."""
    theirs = {model.lower(): row for model, row in of_study(CROSS_MODEL).items()}
    found = []
    for row in rows:
        other, mine = theirs.get(str(row["hub_id"]).lower()), rate_of(row)
        asked = row["source"] == OURS and row["verdict"] != UNTESTABLE
        if asked and other is not None and mine is not None:
            d = unpaired_rate_difference(mine, other.rate)
            found.append({"model": row["model"], "difference": d, "published": other.rate})
    return found


def at_equal_depth(models: Sequence[Measured]) -> dict[str, np.ndarray]:
    """Each model's cosines at as many layers as the shallowest has, evenly from first to last, so
    that a cell is the same relative depth in all. A deeper model's neighbours are nearer to each
    other: without this it looks more alike."""
    there = {visible(m.model): m.cosine for m in models if m.cosine is not None}
    size = min((len(c) for c in there.values()), default=0)
    found = {}
    for name, cosine in there.items():
        at = np.rint(np.linspace(0, len(cosine) - 1, size)).astype(int)
        found[name] = cosine[np.ix_(at, at)]
    return found


def late_half(cosine: np.ndarray) -> float | str:
    """Mean cosine off the diagonal among the later half of the layers; empty where fewer than two
    have a direction."""
    start = len(cosine) // 2
    block = cosine[start:, start:]
    off = block[~np.eye(len(block), dtype=bool)]
    off = off[np.isfinite(off)]
    return float(off.mean()) if off.size else ""


def full_cosine(rows: Sequence[Mapping[str, object]], n_layers: int) -> np.ndarray:
    """cosine.csv as (layer, layer), NaN where a layer has no direction."""
    found = np.full((n_layers, n_layers), np.nan)
    for row in rows:
        found[row["layer_a"], row["layer_b"]] = row["cosine"]
    return found


def statement(found: modes.Modes, of: str, yes: Container[str] | None = None) -> str:
    """What the test of two modes says of some models, in one line with its numbers. yes: models
    that the whole rule calls YES; None where nothing but their rates is known."""
    counts = {kind: f"{len(names)} {kind}" for kind, names in found.by_class.items()}
    if yes is not None:
        both = sum(name in yes for name in found.by_class[modes.SINGLE])
        counts[modes.SINGLE] += f" ({both} of them YES by the whole rule)"
    models = sum(map(len, found.by_class.values()))
    begun = f"{of}: {models} testable; by rate alone {', '.join(counts.values())}."
    if found.verdict == modes.TOO_FEW:
        return f"{begun} Two modes: {found.verdict}, {modes.LEAST_MODELS} are needed."
    if found.gap > 0:
        touch = f"intervals {100 * found.gap:.0f} points apart"
    else:
        touch = f"intervals overlap by {-100 * found.gap:.0f} points"
    return (
        f"{begun} Two modes: {found.verdict}; the best split, {len(found.low)} low and "
        f"{len(found.high)} high, explains {100 * found.explained:.0f} % of the variance, p "
        f"{p_in_words(found.p, 3)} under one hump, {touch}."
    )


def method_rows() -> list[tuple[str, str]]:
    """What each source's rate is of."""
    ours = (
        "share of the harmful test prompts that the untouched model refuses, under the direction "
        "that was best on val prompts, that are answered coherently; a rule judge that sees the "
        "prompt and a second judge; left-padded with mask and position ids; beside random "
        "directions, with a limit on KL"
    )
    return [(OURS, ours), *((f"{k} ({v.source})", v.method) for k, v in STUDIES.items())]
