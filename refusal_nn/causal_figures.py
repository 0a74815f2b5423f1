"""Figures of the causal experiments: each function takes tables and returns a matplotlib Figure;
the caller saves it.

Harmful is red and harmless blue; intervals are 95 %; an empty cell, nothing measured, is a gap.
"""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from refusal_nn.agreement import controls_rate
from refusal_nn.drawing import (
    LINE,
    MARGIN,
    PERCENT,
    Row,
    Rows,
    counts,
    kl_axis,
    name_rows,
    numbers,
    strokes,
    with_controls,
)
from refusal_nn.figures import HARMFUL, HARMLESS, NEUTRAL, SECOND, style

DASHED = LINE | {"marker": "s", "ls": "--"}
STAR = {"ls": "none", "marker": "*", "ms": 11}
RING = {"ls": "none", "marker": "o", "ms": 11, "mew": 1.6, "mfc": "none", "color": "black"}
DIAMOND = {"ls": "none", "marker": "D", "ms": 7, "mec": "black", "color": SECOND}
BELOW = 0.3  # of a row, where its random directions stand
OUTCOMES = (
    ("harmful", HARMFUL, "compliance", "complied with, coherently"),
    ("harmless", HARMLESS, "refusal", "refused"),
)


def _curve(axes: Axes, rows: Rows, name: str, look: Row, aside: float = 0.0) -> None:
    """A column over layers with its intervals, `aside` of a layer to the right."""
    x = numbers(rows, "layer") + aside
    (line,) = axes.plot(x, numbers(rows, name), **look)
    name_rows(line, rows, name, "layer")
    strokes(axes.vlines, x, rows, name, look["color"])


def _position(row: Row) -> str:
    token = str(row["token"])
    return f"pos {row['pos']} {token!r}" if token else f"pos {row['pos']}"  # published: not told


def _layer_axis(axes: Axes, rows: Rows) -> None:
    layers = numbers(rows, "layer")
    axes.set(xlabel="layer", xlim=(layers.min() - 0.7, layers.max() + 0.7))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=13, min_n_ticks=1))


@mpl.rc_context(style())
def candidates(rows: Rows, chosen: Row | None) -> Figure:
    """select's grid, a line per position over layers: refusal score under ablation on harmful and
    under addition on harmless, KL on harmless; the chosen one ringed."""
    figure = Figure(figsize=(13, 4.2))
    panels = figure.subplots(1, 3)
    harmful, harmless = (f"{_asked(rows, name)} {name}" for name in ("harmful", "harmless"))
    for axes, name, words in (
        (panels[0], "ablated", f"refusal score, ablated, {harmful} (log-odds)"),
        (panels[1], "added", f"refusal score, added, {harmless} (log-odds)"),
        (panels[2], "kl", f"KL, ablated, {harmless} (nats)"),
    ):
        _grid_panel(axes, rows, name)
        axes.set_ylabel(words)
        if chosen is not None:
            where = f"chosen: layer {chosen['layer']}, {_position(chosen)}"
            axes.plot(chosen["layer"], chosen[name], **RING, label=where)
        if name != "kl":
            axes.axhline(0, color="black", lw=0.8, ls=":")
    kl_axis(panels[2])
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _asked(rows: Rows, label: str) -> str:
    """How many prompts of a class the rows rest on: fewer where a candidate was ruled out."""
    counts = sorted({row[f"n_{label}"] for row in rows})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _grid_panel(axes: Axes, rows: Rows, name: str) -> None:
    positions = sorted({row["pos"] for row in rows})
    shades = np.linspace(0.65, 0, len(positions))  # green to black: no class's colour
    for i, pos in enumerate(positions):
        mine = sorted((r for r in rows if r["pos"] == pos), key=lambda row: row["layer"])
        look = LINE | {"marker": "os^Dv"[i % 5], "color": (0.0, shades[i], shades[i] / 2)}
        x, y = numbers(mine, "layer"), numbers(mine, name)
        axes.plot(x, y, **look, label=_position(mine[0]))
    _layer_axis(axes, rows)


@mpl.rc_context(style())
def sweep(rows: Rows, separation: Rows, about: Row) -> Figure:
    """Over layers: compliance and coherence, KL, cross-fitted d. Stars: rows at another position
    than the first row's, as select's choice. Diamond and line: about, the sweep's summary, on test
    compliance and its random controls' mean."""
    figure = Figure(figsize=(8, 8.4))
    rates, kl, effect = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1.2, 1.2))
    rows = sorted(rows, key=lambda row: (row["pos"] != rows[0]["pos"], row["layer"]))
    main = [row for row in rows if row["pos"] == rows[0]["pos"]]
    others = rows[len(main) :]
    _rates_panel(rates, main, others)
    _test_point(rates, about)
    for of, look in ((main, LINE), (others, STAR)):
        kl.plot(numbers(of, "layer"), numbers(of, "kl"), **look, color=HARMLESS)
    kl_axis(kl)
    kl.set(ylabel="KL on harmless, val (nats)")
    kl.legend()
    shown = [row for row in separation if row["layer"] in numbers(rows, "layer")]
    x = numbers(shown, "layer")
    effect.plot(x, numbers(shown, "cohens_d_crossfit"), **LINE, color=NEUTRAL)
    strokes(effect.vlines, x, shown, "d", NEUTRAL)
    effect.set_ylabel("Cohen's d, cross-fitted\n(pooled standard deviations)")
    _layer_axis(effect, rows)
    figure.align_ylabels()
    figure.legend(*rates.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _rates_panel(axes: Axes, main: Rows, others: Rows) -> None:
    # Coherence a little aside, or the strokes of the two rates would cover each other.
    for name, words, look, aside in (
        ("compliance", "complied coherently", LINE | {"color": HARMFUL}, 0.0),
        ("coherence", "coherent", DASHED | {"color": NEUTRAL}, 0.15),
    ):
        _curve(axes, main, name, look | {"label": f"{words}, val ({counts(main)})"}, aside)
        if others:
            look |= STAR | {"label": f"{words}, val, {_position(others[0])}"}
            _curve(axes, others, name, look, aside)
    axes.set(ylim=MARGIN, ylabel="share of harmful prompts refused before")
    axes.yaxis.set_major_formatter(PERCENT)


def _test_point(axes: Axes, about: Row) -> None:
    best, test, found = about["best"], about["test"], about["test"]["compliance"]
    row = {"layer": best["layer"], "test": found["value"]}
    row |= {f"test_{k}": v for k, v in found.items()}
    words = f"complied, test (n={found['n']}), layer {best['layer']}, {_position(best)}"
    _curve(axes, [row], "test", DIAMOND | {"label": words}, -0.2)
    words = f"complied, test, mean of {test['controls']} random directions"
    random = controls_rate(test["controls_compliance"], found["n"])
    axes.axhline(random.value, color="black", lw=1.2, ls=":", label=words)
    axes.axhspan(random.low, random.high, color="black", alpha=0.07, lw=0, zorder=0)


@mpl.rc_context(style())
def causal(rows: Rows) -> Figure:
    """A line per intervention: harmful prompts complied with, harmless ones refused, each with the
    mean of its matched random directions."""
    shown = [(kind, of) for kind in OUTCOMES if (of := [r for r in rows if r["class"] == kind[0]])]
    heights = [len(mine) + 2.5 for _, mine in shown]
    figure = Figure(figsize=(8, 1 + 0.24 * sum(heights)))
    panels = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, ((label, colour, name, words), mine) in zip(panels, shown, strict=True):
        _arms_panel(axes, mine, name, colour)
        axes.set(xlabel=f"share of {label} prompts {words} ({counts(mine)})", xlim=MARGIN)
    handles = [*(axes.lines[0] for axes in panels), panels[0].lines[1]]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


def _arms_panel(axes: Axes, rows: Rows, name: str, colour: str) -> None:
    y = np.arange(len(rows), dtype=float)
    look = {"ls": "none", "marker": "o", "ms": 5}
    (line,) = axes.plot(numbers(rows, name), y, **look, color=colour, label=str(rows[0]["class"]))
    names = [row | {"arm": _arm(row)} for row in with_controls(rows, name)]
    name_rows(line, names, name, "arm", "class", what=name)
    look |= {"mfc": "none", "color": NEUTRAL, "label": "random directions, mean"}
    # A little below, or the strokes of both would cover each other.
    (line,) = axes.plot(numbers(rows, f"controls_{name}"), y + BELOW, **look)
    name_rows(line, names, f"controls_{name}", "arm", "class")
    strokes(axes.hlines, y + BELOW, names, f"controls_{name}", NEUTRAL)
    strokes(axes.hlines, y, rows, name, colour)
    axes.set_yticks(y, [_arm(row) for row in rows])
    axes.set(ylim=(len(rows) - 0.25, -0.75), ylabel="intervention")
    axes.xaxis.set_major_formatter(PERCENT)


def _arm(row: Row) -> str:
    """As `ablate window: 13-17, direction of 15`."""
    layers, source = str(row["layers"]), str(row["source_layer"])
    where = "" if layers == "all" else f": {layers}"
    whose = "" if source in ("", layers) else f", direction of {source}"
    return f"{row['intervention']}{where}{whose}"


@mpl.rc_context(style())
def behaviour(rows: Rows, by_layer: Rows, about: Row) -> Figure:
    """Projection of refused and other prompts, its AUROC for refusal by layer, and whether the
    probability made of it is calibrated."""
    figure = Figure(figsize=(13, 4))
    strip, area, calibrated = figure.subplots(1, 3)
    _strip_panel(strip, rows)
    strip.set_xlabel(f"projection at layer {about['layer']}, pos {about['pos']} (activation units)")
    _curve(area, by_layer, "auroc", DASHED | {"color": NEUTRAL, "label": "all prompts"})
    look = LINE | {"color": HARMFUL, "label": "within harmful"}
    _curve(area, by_layer, "auroc_harmful", look, aside=0.15)
    area.axhline(0.5, color="black", lw=0.8, ls="--", label="chance")
    area.set_ylabel("AUROC of projection for refusal")
    _layer_axis(area, by_layer)
    area.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    _calibration_panel(calibrated, about["calibration"])
    return figure


def _strip_panel(axes: Axes, rows: Rows) -> None:
    """A point per prompt, filled where refused, shaken by a fixed draw across its line."""
    shake, names = np.random.default_rng(0), []
    kinds = itertools.product(OUTCOMES, (True, False))
    for y, ((label, colour, *_), refused) in enumerate(kinds):
        look = {"color": colour, "mfc": colour if refused else "none", "ms": 4, "alpha": 0.6}
        mine = [r for r in rows if r["class"] == label and r["refused"] is refused]
        height = y + shake.uniform(-0.3, 0.3, len(mine))
        (line,) = axes.plot(numbers(mine, "projection"), height, "o", **look)
        what = f"{'' if refused else 'not '}refused, projection"
        name_rows(line, mine, "projection", "id", "class", what=what)
        names.append(f"{label},\n{'' if refused else 'not '}refused\n(n={len(mine)})")
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5), ylabel="class and completion")


def _calibration_panel(axes: Axes, calibration: Row | None) -> None:
    axes.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--")
    axes.set(xlabel="predicted probability of refusal", ylabel="share refused")
    axes.set(xlim=MARGIN, ylim=MARGIN, aspect="equal")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    bins = [row for row in calibration["bins"] if row["n"]] if calibration else []
    if bins:
        axes.set_ylabel(f"share refused ({counts(bins)} per point)")
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", backgroundcolor="white")
    x, y = numbers(bins, "predicted"), numbers(bins, "refused")
    (line,) = axes.plot(x, y, "o", ms=5, color=NEUTRAL)
    name_rows(line, bins, "refused", "n", "predicted", what="refused")
    strokes(axes.vlines, x, bins, "refused", NEUTRAL)
