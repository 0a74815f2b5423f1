"""The validate stage as a person reads it: its tables and findings, from the saved files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import console
from experiments.cells import estimate_cell
from refusal_nn.estimates import p_in_words
from refusal_nn.files import read_csv, read_json

Row = Mapping[str, object]
OVERLAP = (
    "* prompts past the other class's mean (the validation study's count) / inside its range / "
    "inside its range on held-out prompts\n"
)


def show_validation(folder: Path, figures: Path) -> None:
    """Print the layer table, the confounds, the findings in a line each, and where files are."""
    about, confounded = (read_json(folder / f"{name}.json") for name in ("summary", "confounds"))
    console.table(
        f"{about['model']}: harmful against harmless, {asked(about)}",
        *layer_table(read_csv(folder / "validation_results.csv")),
    )
    console.say(OVERLAP)
    console.table(
        "Could form alone tell the classes apart?  (AUROC 0.5: no)", *form_table(confounded)
    )
    for line in (*about["compute"], *in_words(about, confounded)):
        console.say(line)
    console.say(
        f"wrote {folder} ({about['n_layers']} layers, peak {about['peak_layer']}) and {figures}"
    )


def asked(about: Mapping[str, object]) -> str:
    """How many prompts, and where."""
    counts = f"{about['n_harmful_prompts']} + {about['n_harmless_prompts']} fit prompts"
    return f"{counts}, position {about['position']} {about['token']!r}"


def layer_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    columns = ("layer", "distance", "d in-sample", "d held out [95 %]", "AUROC held out [95 %]")
    cells = [
        (
            r["layer"],
            f"{r['magnitude']:.2f}",
            f"{r['cohens_d']:.2f}",
            f"{r['cohens_d_crossfit']:.2f} [{r['d_low']:.2f}, {r['d_high']:.2f}]",
            f"{r['auroc_crossfit']:.2f} [{r['auroc_low']:.2f}, {r['auroc_high']:.2f}]",
            p_in_words(r["p_familywise"], 4).removeprefix("= "),
            f"{r['overlap_count']}/{r['overlap_range']}/{r['overlap_range_crossfit']}",
            "yes" if r["valid"] else "no",
            "yes" if r["valid_in_sample"] else "no",
        )
        for r in rows
    ]
    return (*columns, "p (family)", "overlap*", "valid", "study's rule"), cells


def form_table(confounded: Row) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    along = confounded["correlation_with_projection_at_peak"]
    telling = sorted(confounded["features"], key=lambda f: -abs(f["auroc"] - 0.5))[:6]
    cells = [
        (
            f["feature"],
            f"{f['harmful_mean']:.2f}",
            f"{f['harmless_mean']:.2f}",
            f"{f['auroc']:.2f} [{f['auroc_low']:.2f}, {f['auroc_high']:.2f}]",
            _signed(along.get(f["feature"])),
        )
        for f in telling
    ]
    return ("feature", "harmful", "harmless", "AUROC [95 %]", "r with projection"), cells


def _signed(number: float | None) -> str:
    return "" if number is None else f"{number:+.2f}"


def in_words(about: Mapping[str, object], confounded: Mapping[str, object]) -> list[str]:
    one, two, three, four, five = (about["findings"][k] for k in sorted(about["findings"]))
    rho = three["spearman_severity"]
    # Of prompts without severities the file holds 0 of n = 0.
    severity = estimate_cell(rho if rho["n"] else None)
    lines = [
        f"1 separation: {one['valid']} of {one['layers']} layers valid on held-out prompts "
        f"({one['valid_in_sample']} by the study's in-sample rule)",
        "2 first layer without overlap: "
        + ", ".join(
            f"{'none' if two[rule]['first_layer'] is None else two[rule]['first_layer']} by {name}"
            for rule, name in (
                ("overlap_count", "the study's count"),
                ("overlap_range", "range"),
                ("overlap_range_crossfit", "range on held-out prompts"),
            )
        ),
        f"3 gradient: {three['reading']}; Spearman with severity {severity}",
        f"4 build-up: d {four['d_first']:.2f} at layer 0, {four['d_peak']:.2f} at layer "
        f"{four['peak_layer']}, {four['d_last']:.2f} at the last",
        f"5 outliers at layer {four['peak_layer']}: {len(five['harmful_below_midpoint'])} harmful "
        "below and "
        f"{len(five['harmless_above_midpoint'])} harmless above the midpoint (ids in summary.json)",
        "form: cosine of the direction with the one at equal form "
        f"{confounded['adjusted_cosine_at_peak']:.2f} at the peak",
    ]
    if "peak_on_test" in about:
        t = about["peak_on_test"]
        lines.append(
            f"test: at layer {about['peak_layer']}, d {t['cohens_d']:.2f} [{t['d_low']:.2f}, "
            f"{t['d_high']:.2f}], AUROC {t['auroc']:.2f} "
            f"[{t['auroc_low']:.2f}, {t['auroc_high']:.2f}] on {t['n_harmful']} + "
            f"{t['n_harmless']} prompts never used before"
        )
    return lines
