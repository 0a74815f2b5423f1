"""Figures of the subspace experiment and of its calibration on planted truth: each function takes
tables and returns a matplotlib Figure; the caller saves it.

Harmful is red and harmless blue; intervals are 95 %; an empty cell, nothing measured, is a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from refusal_nn import drawing
from refusal_nn.drawing import LINE, MARGIN, PERCENT, counts, kl_axis, numbers, strokes
from refusal_nn.figures import HARMFUL, HARMLESS, NEUTRAL, Row, style
from refusal_nn.hover import plain
from refusal_nn.verdicts import YES_FROM

Rows = Sequence[Row]
EMPTY = ("", None)
GREY, PALE, SPAN = "#767676", "#e3e3e3", "#f6eecb"  # random; not measured; interval of the rank
CONSTRUCTIONS = ("#3a923a", "#8f63a8", "#e08a1e", "#2f9d9d", "#7a5230", "#c9b21b")
LEAST_SHARE = 1e-3  # of the first singular value; below is not drawn
ANNOTATED = 12  # names, the most whose angles are written into the cells
TRUTH = {"0": "UNTESTABLE", "many": "not accessible"}
ORDER = "UNTESTABLE rank not accessible UNDETERMINED"


def _names(rows: Rows, *columns: str) -> list[str]:
    """Distinct values of columns as text, in order of first appearance."""
    return list(dict.fromkeys(plain(row[column]) for row in rows for column in columns))


def _place(row: Row) -> tuple[str, ...]:
    return tuple("" if row[k] is None else str(row[k]) for k in ("construction", "layer"))


def _legend(figure: Figure, panels: Iterable[Axes], **look: object) -> None:
    """Each label once, in the order of drawing."""
    shown = [h for axes in panels for h in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=list({h.get_label(): h for h in shown}.values()), **look)


@mpl.rc_context(style())
def spectrum(rows: Rows, verdict: Row) -> Figure:
    """A panel per construction at the verdict's layer, or else its first: singular values as shares
    of the first, the floor that harmless prompts give, effective ranks. Bold: the verdict's."""
    names = _names(rows, "construction")
    wide = min(3, len(names))
    tall = -(-len(names) // wide)
    figure = Figure(figsize=(1 + 3 * wide, 0.6 + 2.7 * tall))
    grid = figure.subplots(tall, wide, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _spectrum_panel(axes, [r for r in rows if str(r["construction"]) == name], verdict)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.supylabel("singular value / the first", fontsize=9)
    drawing.log_scale(grid[0, 0])
    grid[0, 0].set_ylim(max(grid[0, 0].get_ylim()[0], LEAST_SHARE), 1.4)
    _legend(figure, grid.flat, loc="outside upper center", ncols=3)
    return figure


def _spectrum_panel(axes: Axes, rows: Rows, verdict: Row) -> None:
    layers, chosen = [row["layer"] for row in rows], verdict.get("layer")
    layer = chosen if chosen in layers else layers[0]
    of = sorted((r for r in rows if r["layer"] == layer), key=lambda r: r["component"])
    x, y = numbers(of, "component"), numbers(of, "singular_value")
    unit = y[0] if y[0] > 0 else np.nan
    axes.plot(x, y / unit, **LINE | {"ms": 3, "color": HARMFUL}, label="harmful minus harmless")
    noise = numbers(of, "noise") / unit
    axes.plot(x, noise, ls="--", color=HARMLESS, label="harmless prompts alone")
    look, name = {"loc": "left", "fontsize": 9}, of[0]["construction"]
    if name == verdict.get("construction"):
        _mark_rank(axes, verdict["rank"])
        look["fontweight"] = "bold"
    axes.set_title(f"{name}" if layer in EMPTY else f"{name}, layer {layer}", **look)
    ranks = (("effective rank", "effective_rank"), ("by entropy", "entropy_rank"))
    words = [f"{name} {of[0][k]:.1f}" for name, k in ranks if of[0][k] not in EMPTY]
    axes.set_title("\n".join(words), loc="right", fontsize=8)
    axes.set_xlabel("component")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))


def _mark_rank(axes: Axes, found: Row) -> None:
    """A line at the rank by rate; without one, the verdict in the legend only."""
    rank = found["rank"]
    by_rate = f" (rank by rate {rank})" if rank and found["verdict"] != "RANK" else ""
    look = {"color": "black", "lw": 1, "ls": ":" if rank else "none", "zorder": 1.5}
    axes.axvline(rank or np.nan, **look, label=f"verdict: {found['label']}{by_rate}")


@mpl.rc_context(style())
def rank_curve(rows: Rows, verdict: Row) -> Figure:
    """Over the rank removed: coherent compliance and coherence on test beside random subspaces, and
    KL. Faint: every other place, val. Shaded: interval of the rank."""
    figure = Figure(figsize=(10.5, 6))
    rates, kl = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    found, of = verdict["rank"], {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        of.setdefault((str(row["split"]), *_place(row)), []).append(row)
    main = of.pop(("test", *_place(verdict)), [])
    if main:
        _test_rates(rates, main)
        look = LINE | {"color": HARMLESS, "lw": 2, "label": "KL on harmless, test"}
        kl.plot(numbers(main, "rank"), numbers(main, "kl"), **look)
    rates.axhline(YES_FROM, color="black", lw=0.8, ls="--", label="70 %, asked of the lower limit")
    rates.set(ylim=MARGIN, ylabel="share of harmful prompts\nrefused before")
    rates.yaxis.set_major_formatter(PERCENT)
    for axes, name in ((rates, "compliance"), (kl, "kl")):
        _mark_rank(axes, found)
        low, high = found["low"], found["high"]  # more than up_to: off the axes
        ends = ", ".join(f"{x}" if x <= found["up_to"] else f">{x - 1}" for x in (low, high))
        words = f"95 % interval of the rank: [{ends}]"
        axes.axvspan(low - 0.4, high + 0.4, color=SPAN, lw=0, zorder=0, label=words)
        _faint(axes, of, name)
    kl_axis(kl)
    kl.set(ylabel="KL on harmless (nats)", xlabel="rank k of the subspace removed (dimensions)")
    kl.set_xlim(0.5, max([found["up_to"], *(row["rank"] for row in rows)]) + 0.5)
    kl.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16, min_n_ticks=1))
    figure.align_ylabels()
    _legend(figure, (rates, kl), loc="outside right upper")
    return figure


def _faint(axes: Axes, of: Mapping[tuple[str, ...], Rows], name: str) -> None:
    """A line per split and place, one colour and one label per construction."""
    kinds = list(dict.fromkeys(construction for _, construction, *_ in of))
    for (split, construction, *_), mine in of.items():
        colour = CONSTRUCTIONS[kinds.index(construction) % len(CONSTRUCTIONS)]
        look = {"color": colour, "lw": 1, "alpha": 0.6, "label": f"{construction}, {split}"}
        axes.plot(numbers(mine, "rank"), numbers(mine, name), **look, zorder=1.8)


def _test_rates(axes: Axes, rows: Rows) -> None:
    k, of = numbers(rows, "rank"), counts(rows)
    random = "complied, random subspaces of\nrank k"
    rows = drawing.with_controls(rows, "compliance")
    for name, words, look, aside in (
        ("compliance", "complied coherently", LINE | {"color": HARMFUL, "lw": 2.2, "ms": 6}, 0),
        ("coherence", "coherent", {"color": NEUTRAL, "lw": 0.8, "ls": "-."}, 0.1),
        ("controls_compliance", random, LINE | {"color": GREY, "marker": "s"}, -0.1),
    ):
        look |= {"label": f"{words}, test ({of})", "zorder": 3 - abs(aside)}
        (line,) = axes.plot(k + aside, numbers(rows, name), **look)
        drawing.name_rows(line, rows, name, "rank")
        strokes(axes.vlines, k + aside, rows, name, look["color"])


@mpl.rc_context(style())
def angles(rows: Rows) -> Figure:
    """Mean principal angle of each pair of subspaces, beneath it the smallest and the largest."""
    names, of = _names(rows, "a", "b"), {}
    for row, degrees in zip(rows, numbers(rows, "degrees"), strict=True):
        of.setdefault(frozenset((plain(row["a"]), plain(row["b"]))), []).append(degrees)
    cells = [[np.array(of.get(frozenset((a, b)), [np.nan])) for b in names] for a in names]
    annotated = len(names) <= ANNOTATED
    side = max(2.0, (0.62 if annotated else 0.25) * len(names))
    figure = Figure(figsize=(2.6 + side, 1.6 + side))
    axes = figure.subplots()
    means = np.array([[cell.mean() for cell in line] for line in cells])
    words = [
        [f"{x.mean():.0f}" + f"\n{x.min():.0f}–{x.max():.0f}" * (x.size > 1) for x in line]
        for line in cells
    ]
    shown = _heat(axes, means, words if annotated else [], 90, "viridis")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="subspace", ylabel="subspace")
    figure.colorbar(shown, ax=axes, label="mean principal angle (degrees)", ticks=range(0, 91, 15))
    return figure


def _heat(axes: Axes, x: np.ndarray, words: list[list[str]], most: float, cmap: str) -> AxesImage:
    """x (row, column), from 0 to most, as colours; words in the cells, none in one without x."""
    shown = axes.imshow(x, vmin=0, vmax=most, cmap=cmap, aspect="auto")
    axes.grid(False)
    axes.set_facecolor(PALE)
    dark = shown.to_rgba(x)[..., :3] @ (0.299, 0.587, 0.114) < 0.5
    for i, j in np.argwhere(np.isfinite(x)) if words else ():
        look = {"ha": "center", "va": "center", "fontsize": 7.5}
        axes.text(j, i, words[i][j], color="white" if dark[i, j] else "black", **look)
    return shown


def outcomes(rows: Rows) -> list[str]:
    """What calibration reported and, of what was planted, should have: by rank, the rest around."""
    planted = (TRUTH.get(name, f"rank {name}") for name in _names(rows, "planted"))
    seen = {*_names(rows, "reported"), *planted}
    return sorted(seen, key=lambda x: (ORDER.find(x.partition(" ")[0]), len(x), x))


@mpl.rc_context(style())
def confusion(rows: Rows) -> Figure:
    """A heat map per kind of model, planted rank by reported one: counts and shares of each row."""
    columns = outcomes(rows)
    of = [[r for r in rows if str(r["kind"]) == kind] for kind in _names(rows, "kind")]
    heights = [len(_names(mine, "planted")) + 1.5 for mine in of]
    figure = Figure(figsize=(2.4 + 0.9 * len(columns), 0.6 + 0.5 * sum(heights)))
    panels = figure.subplots(len(of), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, mine in zip(panels, of, strict=True):
        shown = _confusion_panel(axes, mine, columns)
    figure.colorbar(shown, ax=panels, label="share of models of the planted rank", format=PERCENT)
    return figure


def _confusion_panel(axes: Axes, rows: Rows, columns: list[str]) -> AxesImage:
    planted = sorted(_names(rows, "planted"), key=lambda p: (len(p), p))  # 0, 2, 16, many
    n = {str(row["planted"]): row["n"] or 0 for row in rows}
    of = {(str(row["planted"]), str(row["reported"])): row["count"] or 0 for row in rows}
    cells = [[(of.get((p, c), 0), n[p] or np.nan) for c in columns] for p in planted]
    words = [[f"{c}\n{c / of_all:.0%}" * bool(c) for c, of_all in line] for line in cells]
    shares = np.array([[c / of_all for c, of_all in line] for line in cells])
    shown = _heat(axes, shares, words, 1, "Purples")
    for i, name in enumerate(planted):
        corner = (columns.index(TRUTH.get(name, f"rank {name}")) - 0.5, i - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, lw=1.4, clip_on=False, zorder=3))
    axes.set_xticks(range(len(columns)), [x.replace(" a", "\na") for x in columns], fontsize=7.5)
    axes.set_yticks(range(len(planted)), [f"{p} (n={n[p]})" for p in planted])
    axes.set(xlabel="reported (framed: as planted)", ylabel=f"{rows[0]['kind']}, planted rank")
    return shown


@mpl.rc_context(style())
def calibration_rates(rows: Rows) -> Figure:
    """A panel per quantity, a line per kind and planted rank: the rate with its interval, and the
    level required of it as a tick."""
    of = [[r for r in rows if str(r["quantity"]) == name] for name in _names(rows, "quantity")]
    heights = [len(mine) + 1 for mine in of]
    figure = Figure(figsize=(8, 1.2 + 0.42 * sum(heights)))
    panels = figure.subplots(len(of), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, mine in zip(panels, of, strict=True):
        y, look = np.arange(len(mine), dtype=float), {"ls": "none", "marker": "o", "ms": 5}
        (line,) = axes.plot(numbers(mine, "value"), y, **look, color=NEUTRAL, label="measured")
        drawing.name_rows(line, mine, "value", "planted", what=mine[0]["quantity"], limits="")
        axes.hlines(y, numbers(mine, "low"), numbers(mine, "high"), color=NEUTRAL, lw=1.2)
        look |= {"marker": "|", "ms": 15, "mew": 2, "color": GREY, "zorder": 1.5}
        axes.plot(numbers(mine, "bar"), y, **look, label="required")
        axes.set_yticks(y, [f"{r['kind']}, planted {r['planted']} (n={r['n']})" for r in mine])
        axes.set(ylim=(len(mine) - 0.4, -0.6), xlim=MARGIN, ylabel=mine[0]["quantity"])
    panels[-1].set_xlabel("share of models")
    panels[-1].xaxis.set_major_formatter(PERCENT)
    figure.align_ylabels()
    _legend(figure, panels, loc="outside upper right", ncols=2)
    return figure
