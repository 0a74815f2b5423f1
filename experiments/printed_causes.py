"""The causal stages as a person reads them, from the saved files: no prompt, no completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import console
from refusal_nn.directions import choose
from refusal_nn.estimates import Estimate
from refusal_nn.files import read_csv, read_json
from refusal_nn.judges import LABELS
from refusal_nn.verdicts import MOST_KL, UNTESTABLE

Row = Mapping[str, object]
Rows = Sequence[Row]
Table = tuple[tuple[str, ...], list[tuple[object, ...]]]
SHOWN = 10  # candidates
EMPTY, NOT_MEASURED = ("", None), "not measured"


def _rows(path: Path) -> list[Row]:
    """Rows of a CSV, with the numbers that read_csv leaves as text."""
    odd = {"nan": float("nan"), "inf": float("inf")}
    return [{k: odd.get(v, v) for k, v in row.items()} for row in read_csv(path)]


def _numbers(row: Row, **formats: str) -> list[str]:
    """The named cells in their formats, empty where nothing was measured."""
    cells = ["" if row[k] in EMPTY else format(row[k], how) for k, how in formats.items()]
    return [cell.replace("%", " %") for cell in cells]


def _found(row: Row, name: str, limits: str = "") -> Estimate | None:
    """A column with its interval, `limits` or else `name` _low and _high; None where empty."""
    if row.get(name) in EMPTY:
        return None
    low, high = (row[f"{limits or name}_{end}"] for end in ("low", "high"))
    return Estimate(row[name], low, high, row.get("n", 0))


def _rate(row: Row, name: str, unit: str = "%") -> str:
    """As `79 % [70, 86] (n=100)`; unit: points, for a difference of rates."""
    found = _found(row, name)
    return found.percent().replace("%", unit) if found else ""


def _estimate(found: Row | None) -> str:
    return str(Estimate(**found)) if found else NOT_MEASURED


def _position(row: Row) -> str:
    return f"{row['pos']} {str(row['token'])!r}"


def _place(row: Row | None) -> tuple[object, ...] | None:
    return row and (row["layer"], row["pos"], row.get("alpha"))


def _stopped(about: Row, folder: Path) -> bool:
    """Whether the stage could test nothing; says why."""
    if about.get("verdict") != UNTESTABLE or about.get("best"):
        return False
    _say(f"{UNTESTABLE}:", *about["reasons"], f"wrote {folder} ({UNTESTABLE})")
    return True


def _say(*lines: str) -> None:
    for line in lines:
        console.say(line)


def show_select(folder: Path, figures: Path) -> None:
    """Print who was asked and used, the best candidates, and which was chosen or why none was."""
    about = read_json(folder / "summary.json")
    for row in about["counts"]:
        share = {"refused_low": row.get("low"), "refused_high": row.get("high"), **row}
        who, refused = f"{row['split']} {row['class']}", _rate(share, "refused") or "none"
        _say(f"{who}: {row['n']} asked, {refused} refused, {row['used']} used")
    if _stopped(about, folder):
        return
    rows, chosen = _rows(folder / "candidates.csv"), about["chosen"]
    passing = [row for row in rows if choose([row], about["n_layers"]) is not None]
    shown = sorted(passing or rows, key=lambda row: row["ablated"])[:SHOWN]
    title = f"{about['model']}: {len(passing)} of {len(rows)} candidates pass, the best by ablation"
    console.table(title, *_candidate_table(shown, _place(chosen)))
    if chosen is None:
        _say(_why_none(rows))
    where = f"layer {chosen['layer']}, pos {_position(chosen)}" if chosen else "none chosen"
    _say(f"wrote {folder} ({len(rows)} candidates, {where}) and {figures}")


def _candidate_table(rows: Rows, chosen: tuple[object, object] | None) -> Table:
    columns = ("layer", "pos", "harmful ablated (log-odds)", "harmless added (log-odds)")
    formats = {"ablated": "+.2f", "added": "+.2f", "kl": ".3f", "norm": ".2f"}
    cells = [
        (r["layer"], _position(r), *_numbers(r, **formats), "chosen" * (_place(r) == chosen))
        for r in rows
    ]
    return (*columns, "KL (nats)", "norm", ""), cells


def _why_none(rows: Rows) -> str:
    # A cell is empty where a score was no number.
    gentle = {_place(row) for row in rows if row["kl"] not in EMPTY and row["kl"] <= MOST_KL}
    inducing = {_place(row) for row in rows if row["added"] not in EMPTY and row["added"] >= 0}
    return (
        f"none passes: KL at most {MOST_KL:g} nats {len(gentle)}, refusal when added "
        f"{len(inducing)}, both {len(gentle & inducing)}; the last fifth of layers does not count"
    )


def show_baseline(folder: Path) -> None:
    """Print what the untouched model does with each set of prompts, and how its judges agree."""
    about = read_json(folder / "summary.json")
    cells = [
        (name, of["n"], _rate(of, "refusal"), *(of["labels"][k] for k in LABELS))
        for name, of in about["refusal"].items()
    ]
    columns = ("set", "n", "refused [95 %]", *LABELS)
    console.table(f"{about['model']}: what the untouched model does", columns, cells)
    _say(
        f"rule judge against logit judge: kappa {_estimate(about['judges_kappa'])}",
        f"above {about['nll_limit']:.2f} nats per token a text counts as degenerate",
        f"wrote {folder} ({len(cells)} sets)",
    )


def show_sweep(folder: Path, figures: Path) -> None:
    """Print compliance by layer on val, the best on test beside random directions, the verdict."""
    about = read_json(folder / "summary.json")
    if _stopped(about, folder):
        return
    rows, best = _rows(folder / "sweep.csv"), about["best"]
    title = f"{about['model']}: directions ablated everywhere, on val"
    console.table(title, *_sweep_table(rows, _place(best)))
    where = f"layer {best['layer']}, pos {best['pos']}, alpha {best['alpha']:g}"
    _say(f"test, {where}:", *_on_test(about["test"]))
    for name in ("test.harmless", "scary"):
        was, now = (about[f"refusal_{when}"][name] for when in ("before", "after"))
        _say(f"  {name} refused {_rate(was, 'refusal')} -> {_rate(now, 'refusal')}")
    _say(f"Verdict v{about['version']}: {about['verdict']}", *about["reasons"])
    _say(f"wrote {folder} ({len(rows)} directions, best {where}) and {figures}")


def _sweep_table(rows: Rows, best: tuple[object, object] | None) -> Table:
    columns = ("layer", "pos", "alpha", "n", "compliance [95 %]", "coherence [95 %]", "deflected")
    cells = [
        (
            r["layer"],
            _position(r),
            r["alpha"],
            r["n"],
            *(_rate(r, name) for name in ("compliance", "coherence")),
            *_numbers(r, n_deflection="", n_degenerate="", kl=".3f", refusal_score="+.2f"),
            "best" if _place(r) == best else "ruled out" * bool(r.get("ruled_out")),
        )
        for r in rows
    ]
    return (*columns, "degenerate", "KL (nats)", "refusal score", ""), cells


def _on_test(t: Row) -> list[str]:
    names = ("baseline_refusal", "compliance", "compliance_by_logits", "over_controls")
    untouched, by_rule, by_logits, over = (Estimate(**t[name]).percent() for name in names)
    over = over.replace("%", "points")
    (controls,) = _numbers(t, controls_compliance=".0%")
    down, up, p = (t["mcnemar"][name] for name in ("changed_down", "changed_up", "p"))
    asked = t.get("compliance_by_model")
    model = f", {Estimate(**asked).percent()} by judge model" if asked else ""
    return [
        f"  refused untouched {untouched}",
        f"  of those complied {by_rule} by rule judge, {by_logits} by logits{model}",
        f"  random directions {controls} (mean of {t['controls']}), difference {over}",
        f"  KL on harmless {t['kl']:.3f} nats",
        f"  harmful no longer refused {down}, newly refused {up}: McNemar p = {p:.2g}",
        f"  rule judge against logit judge: kappa {_estimate(t['judges_kappa'])}",
    ]


def show_causal(folder: Path, figures: Path) -> None:
    """Print what every intervention does, beside its random directions."""
    about = read_json(folder / "summary.json")
    if _stopped(about, folder):
        return
    rows = _rows(folder / "causal.csv")
    console.table(f"{about['model']}: interventions beside random directions", *_causal_table(rows))
    _say(f"wrote {folder} ({len(rows)} interventions) and {figures}")


def _causal_table(rows: Rows) -> Table:
    """Over controls: compliance of harmful prompts, refusal of harmless ones."""
    arm = ("intervention", "layers", "source_layer", "class")
    cells = [
        (
            *(r[k] for k in arm),
            *(_rate(r, name) for name in ("compliance", "refusal")),
            *_numbers(r, controls_compliance=".0%", controls_refusal=".0%"),
            _rate(r, "over_controls", "points"),
            *_numbers(r, coherence=".0%", kl=".3f"),
        )
        for r in rows
    ]
    rates = ("compliance [95 %]", "refused [95 %]", "controls comply", "controls refuse")
    return (*arm, *rates, "over controls [95 %]", "coherence", "KL (nats)"), cells


def show_behaviour(folder: Path, figures: Path) -> None:
    """Print whether projection predicts refusal and severity, and the harmful prompts of low
    projection, by id."""
    about = read_json(folder / "summary.json")
    if _stopped(about, folder):
        return
    rows = _rows(folder / "behaviour_by_layer.csv")
    limits = {"auroc": "", "auroc_harmful": "", "spearman_severity": "spearman"}
    cells = [(r["layer"], *(_interval(r, k, of) for k, of in limits.items())) for r in rows]
    columns = ("layer", "AUROC of refusal", "within harmful", "Spearman with severity")
    console.table(f"{about['model']}: what the projection predicts [95 %]", columns, cells)
    for name, words in zip(limits, columns[1:], strict=True):
        _say(f"layer {about['layer']}, pos {about['pos']}: {words} {_estimate(about[name])}")
    _say(_calibration(about["calibration"]), *_low(about["low_projecting"]))
    _say(f"wrote {folder} ({len(rows)} layers) and {figures}")


def _interval(row: Row, name: str, limits: str) -> str:
    """As `0.83 [0.75, 0.90]`."""
    return str(_found(row, name, limits) or "").partition(" (")[0]


def _calibration(found: Row | None) -> str:
    if found is None:
        return f"calibration of the probability of refusal: {NOT_MEASURED}"
    brier, constant, slope = _numbers(found, brier=".3f", brier_constant=".3f", slope=".2f")
    quality = f"Brier {brier}, a constant's {constant}; slope {slope or NOT_MEASURED}"
    return f"calibration: {quality} (n={found['n']})"


def _low(rows: Rows) -> list[str]:
    """Harmful prompts of low projection, by id."""
    lines = [f"harmful prompts of low projection: {len(rows)}"]
    for refused, words in ((True, "refused"), (False, "not refused")):
        ids = [str(row["id"]) for row in rows if (row["label"] == "refusal") is refused]
        lines.append(f"  {words}: {', '.join(ids) or 'none'}")
    return lines
