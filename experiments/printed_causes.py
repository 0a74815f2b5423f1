"""The causal stages as a person reads them, from the saved files: no prompt, no completion."""

from __future__ import annotations

from pathlib import Path

from experiments import console
from experiments.cells import (
    EMPTY,
    NOT_MEASURED,
    Row,
    Rows,
    Table,
    controls_cell,
    estimate_cell,
    estimate_of,
    kappa_cell,
    number_cells,
    position_cell,
    rate_cell,
    read_rows,
)
from refusal_nn.directions import choose
from refusal_nn.estimates import Estimate
from refusal_nn.files import read_json
from refusal_nn.judges import LABELS
from refusal_nn.verdicts import MOST_KL, UNTESTABLE

SHOWN = 10  # candidates


def place_of(row: Row | None) -> tuple[object, ...] | None:
    return row and (row["layer"], row["pos"], row.get("alpha"))


def _stopped(about: Row, folder: Path) -> bool:
    """Whether the stage could test nothing; says why."""
    if about.get("verdict") != UNTESTABLE or about.get("best"):
        return False
    console.say(f"{UNTESTABLE}:", *about["reasons"], f"wrote {folder} ({UNTESTABLE})")
    return True


def show_select(folder: Path, figures: Path) -> None:
    """Print who was asked and used, the best candidates, and which was chosen or why none was."""
    about = read_json(folder / "summary.json")
    for row in about["counts"]:
        share = {"refused_low": row.get("low"), "refused_high": row.get("high"), **row}
        who, refused = f"{row['split']} {row['class']}", rate_cell(share, "refused") or "none"
        console.say(f"{who}: {row['n']} asked, {refused} refused, {row['used']} used")
    if _stopped(about, folder):
        return
    rows, chosen = read_rows(folder / "candidates.csv"), about["chosen"]
    passing = [row for row in rows if choose([row], about["n_layers"]) is not None]
    shown = sorted(passing or rows, key=lambda row: row["ablated"])[:SHOWN]
    title = f"{about['model']}: {len(passing)} of {len(rows)} candidates pass, the best by ablation"
    console.table(title, *candidate_table(shown, place_of(chosen)))
    if chosen is None:
        console.say(why_none(rows))
    where = f"layer {chosen['layer']}, pos {position_cell(chosen)}" if chosen else "none chosen"
    console.say(f"wrote {folder} ({len(rows)} candidates, {where}) and {figures}")


def candidate_table(rows: Rows, chosen: tuple[object, object] | None) -> Table:
    columns = ("layer", "pos", "harmful ablated (log-odds)", "harmless added (log-odds)")
    formats = {"ablated": "+.2f", "added": "+.2f", "kl": ".3f", "norm": ".2f"}
    cells = [
        (
            r["layer"],
            position_cell(r),
            *number_cells(r, **formats),
            f"{r['n_harmful']} + {r['n_harmless']}",
            "chosen" * (place_of(r) == chosen),
        )
        for r in rows
    ]
    return (*columns, "KL (nats)", "norm", "n", "mark"), cells


def why_none(rows: Rows) -> str:
    # A cell is empty where a score was no number.
    gentle = {place_of(row) for row in rows if row["kl"] not in EMPTY and row["kl"] <= MOST_KL}
    inducing = {place_of(row) for row in rows if row["added"] not in EMPTY and row["added"] >= 0}
    return (
        f"none passes: KL at most {MOST_KL:g} nats {len(gentle)}, refusal when added "
        f"{len(inducing)}, both {len(gentle & inducing)}; the last fifth of layers does not count"
    )


def show_baseline(folder: Path) -> None:
    """Print what the untouched model does with each set of prompts, and how its judges agree."""
    about = read_json(folder / "summary.json")
    cells = [
        (name, of["n"], rate_cell(of, "refusal"), *(of["labels"][k] for k in LABELS))
        for name, of in about["refusal"].items()
    ]
    columns = ("set", "n", "refused [95 %]", *LABELS)
    console.table(f"{about['model']}: what the untouched model does", columns, cells)
    console.say(
        f"rule judge against logit judge: kappa {kappa_cell(about['judges_kappa'])}",
        f"above {about['nll_limit']:.2f} nats per token a text counts as degenerate",
        f"wrote {folder} ({len(cells)} sets)",
    )


def show_sweep(folder: Path, figures: Path) -> None:
    """Print compliance by layer on val, the best on test beside random directions, the verdict."""
    about = read_json(folder / "summary.json")
    if _stopped(about, folder):
        return
    rows, best = read_rows(folder / "sweep.csv"), about["best"]
    title = f"{about['model']}: directions ablated everywhere, on val"
    console.table(title, *sweep_table(rows, place_of(best)))
    where = f"layer {best['layer']}, pos {best['pos']}, alpha {best['alpha']:g}"
    console.say(f"test, {where}:", *_on_test(about["test"]))
    for name in ("test.harmless", "scary"):
        was, now = (about[f"refusal_{when}"][name] for when in ("before", "after"))
        console.say(f"  {name} refused {rate_cell(was, 'refusal')} -> {rate_cell(now, 'refusal')}")
    console.say(f"Verdict v{about['version']}: {about['verdict']}", *about["reasons"])
    console.say(f"wrote {folder} ({len(rows)} directions, best {where}) and {figures}")


def sweep_table(rows: Rows, best: tuple[object, object] | None) -> Table:
    columns = ("layer", "pos", "alpha", "n", "compliance [95 %]", "coherence [95 %]", "deflected")
    cells = [
        (
            r["layer"],
            position_cell(r),
            r["alpha"],
            r["n"],
            *(rate_cell(r, name) for name in ("compliance", "coherence")),
            *number_cells(r, n_deflection="", n_degenerate="", kl=".3f", refusal_score="+.2f"),
            "best" if place_of(r) == best else "ruled out" * bool(r.get("ruled_out")),
        )
        for r in rows
    ]
    return (*columns, "degenerate", "KL (nats)", "refusal score", "mark"), cells


def _on_test(t: Row) -> list[str]:
    names = ("baseline_refusal", "compliance", "compliance_by_logits", "over_controls")
    untouched, by_rule, by_logits, over = (Estimate(**t[name]).percent() for name in names)
    over = over.replace("%", "points")
    controls = controls_cell(t["controls_compliance"], t["compliance"]["n"])
    down, up, p = (t["mcnemar"][name] for name in ("changed_down", "changed_up", "p"))
    asked = t.get("compliance_by_model")
    model = f", {Estimate(**asked).percent()} by judge model" if asked else ""
    return [
        f"  refused untouched {untouched}",
        f"  of those complied {by_rule} by rule judge, {by_logits} by logits{model}",
        f"  {t['controls']} random directions {controls}, difference {over}",
        f"  KL on harmless {t['kl']:.3f} nats",
        f"  harmful no longer refused {down}, newly refused {up}: McNemar p = {p:.2g}",
        f"  rule judge against logit judge: kappa {kappa_cell(t['judges_kappa'])}",
    ]


def show_causal(folder: Path, figures: Path) -> None:
    """Print what every intervention does, beside its random directions."""
    about = read_json(folder / "summary.json")
    if _stopped(about, folder):
        return
    rows = read_rows(folder / "causal.csv")
    console.table(f"{about['model']}: interventions beside random directions", *causal_table(rows))
    console.say(f"wrote {folder} ({len(rows)} interventions) and {figures}")


def causal_table(rows: Rows) -> Table:
    """Over controls: compliance of harmful prompts, refusal of harmless ones. n, of all rates."""
    counted = ("compliance", "refusal")
    cells = [
        (
            *(r[k] for k in ("intervention", "layers", "source_layer", "class", "n")),
            *(_without_n(rate_cell(r, name)) for name in counted),
            *(_without_n(controls_cell(r[f"controls_{name}"], r["n"])) for name in counted),
            _without_n(rate_cell(r, "over_controls", "points")),
            _without_n(rate_cell(r, "coherence")),
            *number_cells(r, kl=".3f"),
        )
        for r in rows
    ]
    rates = ("complied", "refused", "random: complied", "random: refused", "over random")
    rates = [f"{name} [95 %]" for name in (*rates, "coherent")]
    return ("intervention", "layers", "direction of", "class", "n", *rates, "KL (nats)"), cells


def _without_n(cell: str) -> str:
    """For a table that has a column of n."""
    return cell.partition(" (n=")[0]


def show_behaviour(folder: Path, figures: Path) -> None:
    """Print whether projection predicts refusal and severity, and the harmful prompts of low
    projection, by id."""
    about = read_json(folder / "summary.json")
    if _stopped(about, folder):
        return
    rows = read_rows(folder / "behaviour_by_layer.csv")
    limits = {"auroc": "", "auroc_harmful": "", "spearman_severity": "spearman"}
    cells = [(r["layer"], *(_interval(r, k, of) for k, of in limits.items())) for r in rows]
    columns = ("layer", "AUROC of refusal", "within harmful", "Spearman with severity")
    console.table(f"{about['model']}: what the projection predicts [95 %]", columns, cells)
    for name, words in zip(limits, columns[1:], strict=True):
        console.say(
            f"layer {about['layer']}, pos {about['pos']}: {words} {estimate_cell(about[name])}"
        )
    console.say(calibration_in_words(about["calibration"]), *low_in_words(about["low_projecting"]))
    console.say(f"wrote {folder} ({len(rows)} layers) and {figures}")


def _interval(row: Row, name: str, limits: str) -> str:
    """As `0.83 [0.75, 0.90]`."""
    return _without_n(str(estimate_of(row, name, limits) or ""))


def calibration_in_words(found: Row | None) -> str:
    if found is None:
        return f"calibration of the probability of refusal: {NOT_MEASURED}"
    brier, constant, slope = number_cells(found, brier=".3f", brier_constant=".3f", slope=".2f")
    quality = f"Brier {brier}, a constant's {constant}; slope {slope or NOT_MEASURED}"
    return f"calibration: {quality} (n={found['n']})"


def low_in_words(rows: Rows) -> list[str]:
    """Harmful prompts of low projection, by id."""
    lines = [f"harmful prompts of low projection: {len(rows)}"]
    for refused, words in ((True, "refused"), (False, "not refused")):
        ids = [str(row["id"]) for row in rows if (row["label"] == "refusal") is refused]
        lines.append(f"  {words}: {', '.join(ids) or 'none'}")
    return lines
