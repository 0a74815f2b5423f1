"""Figures from tables: each function takes data and returns a matplotlib Figure; the caller saves
it.

Harmful is red and harmless blue everywhere. Intervals are 95 %. No figure states a conclusion.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_nn import hover
from refusal_nn.drawing import log_scale, name_rows
from refusal_nn.files import replacing, write_text

HARMFUL, HARMLESS, NEUTRAL, SECOND = "#c8323c", "#2368b0", "#4d4d4d", "#b07aa1"
Row = Mapping[str, object]
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2}  # of a panel: its legend
HELD_OUT = "held-out projection, from the midpoint"


def style() -> dict[str, object]:
    """Settings under which every figure is built."""
    return {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "figure.dpi": 150,
        "savefig.dpi": 150,
        "svg.hashsalt": "refusal_nn",
        "svg.fonttype": "none",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
        "text.parse_math": False,
        "figure.constrained_layout.use": True,
    }


def save(figure: Figure, path: Path) -> None:
    """Write a figure as path.png and, its points named, path.svg; atomically, without a date, so
    that the same data give the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(style()):
        figure.savefig(buffer, format="png", metadata={"Software": None})
        vector = hover.svg(figure)
    with replacing(path.with_suffix(".png")) as partial:
        partial.write_bytes(buffer.getvalue())
    write_text(path.with_suffix(".svg"), vector)


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


@mpl.rc_context(style())
def direction_analysis(rows: Sequence[Row], spread: Sequence[Row]) -> Figure:
    """Seed 004's figure 1: distance between class means, effect size (in-sample and cross-fitted),
    both together."""
    figure = Figure(figsize=(13, 3.8))
    distance, effect, both = figure.subplots(1, 3)
    _distance_panel(distance, rows, spread)
    _effect_panel(effect, rows)
    layers, d = _column(rows, "layer"), _column(rows, "cohens_d_crossfit")
    low, area, high = (_column(rows, f"auroc_{x}") for x in ("low", "crossfit", "high"))
    (line,) = both.plot(layers, d, "o-", ms=3, color=NEUTRAL, label="Cohen's d, cross-fitted")
    name_rows(line, rows, "cohens_d_crossfit", "layer", limits="d_")
    both.set(xlabel="layer", ylabel="Cohen's d, cross-fitted")
    right = _right(both, "AUROC, cross-fitted")
    (line,) = right.plot(layers, area, "s--", ms=2.5, color=SECOND, label="AUROC")
    name_rows(line, rows, "auroc_crossfit", "layer", limits="auroc_")
    right.fill_between(layers, low, high, color=SECOND, alpha=0.2, lw=0)
    right.set_ylim(min(0.4, *low), 1.02)
    both.legend(handles=[*both.lines, *right.lines], **ABOVE)
    for axes in (distance, effect, both):
        axes.locator_params("x", integer=True)
    return figure


def _distance_panel(axes: Axes, rows: Sequence[Row], spread: Sequence[Row]) -> None:
    layers, label = _column(rows, "layer"), "distance between class means"
    axes.plot(layers, _column(rows, "magnitude"), "o-", ms=3, color=NEUTRAL, label=label)
    axes.set(xlabel="layer", ylabel="distance (activation units)")
    if _column(rows, "magnitude").any():
        log_scale(axes)
    right = _right(axes, "share of the mean norm |h|")
    share = _column(spread, "separation_over_norm")
    right.plot(layers, share, "s--", ms=2.5, color=SECOND, label="as share of |h|")
    axes.legend(handles=[*axes.lines, *right.lines], **ABOVE)


def _effect_panel(axes: Axes, rows: Sequence[Row]) -> None:
    layers, d = _column(rows, "layer"), _column(rows, "cohens_d_crossfit")
    low, high = _column(rows, "d_low"), _column(rows, "d_high")
    look = {"ms": 2.5, "color": "#8a8a8a", "label": "in-sample"}
    axes.plot(layers, _column(rows, "cohens_d"), "o:", **look)
    (line,) = axes.plot(layers, d, "o-", ms=3, color=NEUTRAL, label="cross-fitted")
    name_rows(line, rows, "cohens_d_crossfit", "layer", limits="d_")
    axes.fill_between(layers, low, high, color=NEUTRAL, alpha=0.2, lw=0, label="95 % interval")
    axes.axhline(0.5, color="black", lw=0.8, ls="--", label="d = 0.5")
    invalid = ~np.array([bool(row["valid"]) for row in rows])
    axes.plot(layers[invalid], d[invalid], "x", color="black", ms=7, label="not valid")
    axes.set(xlabel="layer", ylabel="Cohen's d (pooled standard deviations)")
    axes.legend(**ABOVE | {"ncols": 3})


def _right(axes: Axes, label: str) -> Axes:
    twin = axes.twinx()
    twin.set_ylabel(label)
    twin.grid(False)
    twin.spines["right"].set_visible(True)
    return twin


def _histogram(axes: Axes, scores: np.ndarray, labels: np.ndarray, bins: int = 25) -> None:
    edges = np.histogram_bin_edges(scores, bins=bins)
    for chosen, colour, name in ((labels, HARMFUL, "harmful"), (~labels, HARMLESS, "harmless")):
        axes.hist(
            scores[chosen],
            edges,
            density=True,
            color=colour,
            alpha=0.5,
            label=f"{name} (n={chosen.sum()})",
        )
        axes.axvline(scores[chosen].mean(), color=colour, ls="--", lw=1.2)


@mpl.rc_context(style())
def projection_distributions(
    scores: np.ndarray, labels: np.ndarray, layer: int, ids: Sequence[str] | None = None
) -> Figure:
    """Seed 004's figure 2 at one layer: histogram, cumulative distribution, box plot, sorted
    projections; scores (prompt,), ids (prompt,) for the names of the points."""
    names = np.array([f"prompt {i}" for i in range(len(scores))] if ids is None else ids, object)
    figure = Figure(figsize=(10, 7))
    figure.suptitle(f"layer {layer}", ha="left", x=0.02)
    (density, cumulative), (box, ordered) = figure.subplots(2, 2)
    _histogram(density, scores, labels)
    density.set(xlabel=HELD_OUT, ylabel="density")
    figure.legend(*density.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    for chosen, colour, name in ((labels, HARMFUL, "harmful"), (~labels, HARMLESS, "harmless")):
        order = np.flatnonzero(chosen)[np.argsort(scores[chosen], kind="stable")]
        values = scores[order]
        shares = np.arange(1, values.size + 1) / values.size
        cumulative.step(values, shares, where="post", color=colour, label=name)
        (line,) = ordered.plot(values, ".", ms=4, color=colour, label=name)
        said = [f"{names[i]}: {name}, {HELD_OUT} {scores[i]:.3g}" for i in order]
        hover.name_points(line, said)
    cumulative.set(xlabel=HELD_OUT, ylabel="share of prompts at or below")
    ordered.set(xlabel="prompts in order of projection", ylabel=HELD_OUT)
    look = {"tick_labels": ["harmless", "harmful"], "patch_artist": True, "widths": 0.6}
    shown = box.boxplot([scores[~labels], scores[labels]], **look)
    for patch, colour in zip(shown["boxes"], (HARMLESS, HARMFUL), strict=True):
        patch.set(facecolor=colour, alpha=0.5)
    for line in shown["medians"]:
        line.set_color("black")
    box.set(xlabel="class", ylabel=HELD_OUT)
    return figure


@mpl.rc_context(style())
def progressive_distributions(
    scores: np.ndarray, labels: np.ndarray, rows: Sequence[Row]
) -> Figure:
    """Seed 004's figure 3: eight layers spread evenly, first and last among them; scores (layer,
    prompt)."""
    layers = sorted({round(float(x)) for x in np.linspace(0, len(rows) - 1, 8)})
    figure = Figure(figsize=(14, 6.2))
    grid = figure.subplots(2, 4).flat
    for axes, layer in zip(grid, layers, strict=False):
        _histogram(axes, scores[layer], labels)
        row = rows[layer]
        axes.set_title(
            f"layer {layer}: d = {row['cohens_d_crossfit']:.2f} [{row['d_low']:.2f}, "
            f"{row['d_high']:.2f}]\n"
            f"{row['overlap_range_crossfit']} of {labels.size} in the other class's range",
            fontsize=9,
        )
        axes.set(xlabel=HELD_OUT, ylabel="density")
    for axes in list(figure.axes)[len(layers) :]:
        axes.set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@mpl.rc_context(style())
def layer_distribution(
    scores: np.ndarray, in_sample: np.ndarray, labels: np.ndarray, row: Row
) -> Figure:
    """One layer: held-out projections filled, in-sample ones (from their own midpoint) as outlines;
    (prompt,) each."""
    figure = Figure(figsize=(6, 3.6))
    axes = figure.subplots()
    _histogram(axes, scores, labels)
    shifted = in_sample - (in_sample[labels].mean() + in_sample[~labels].mean()) / 2
    edges = np.histogram_bin_edges(shifted, bins=25)
    for chosen, colour in ((labels, HARMFUL), (~labels, HARMLESS)):
        axes.hist(shifted[chosen], edges, density=True, histtype="step", color=colour, lw=1)
    axes.plot([], [], color="black", lw=1, label="outline: in-sample")
    axes.set(
        xlabel=HELD_OUT,
        ylabel="density",
        title=f"layer {row['layer']}: d = {row['cohens_d_crossfit']:.2f} "
        f"[{row['d_low']:.2f}, {row['d_high']:.2f}] held out, {row['cohens_d']:.2f} in-sample",
    )
    axes.legend()
    return figure


@mpl.rc_context(style())
def cosine_heatmap(
    cosine: np.ndarray, layers: Sequence[int], reliability: Sequence[float] | None
) -> Figure:
    """Seed 000's heatmap, cosine (layer, layer); beside it the split-half cosine, the most that one
    direction could show."""
    figure = Figure(figsize=(9, 5.2) if reliability is not None else (6.4, 5.2))
    axes = (
        figure.subplots(1, 2, width_ratios=(3, 1.1))
        if reliability is not None
        else [figure.subplots()]
    )
    # Cell borders half a layer out; layers without a direction leave a gap rather than shift their
    # neighbours.
    image = np.full((max(layers) + 1,) * 2, np.nan)
    image[np.ix_(layers, layers)] = cosine
    shown = axes[0].imshow(image, vmin=-1, vmax=1, cmap="RdBu_r", origin="lower")
    axes[0].grid(False)
    axes[0].set(xlabel="layer", ylabel="layer")
    figure.colorbar(shown, ax=axes[0], label="cosine between differences in means", shrink=0.85)
    if reliability is not None:
        axes[1].barh(layers, reliability, color=NEUTRAL, height=0.8)
        axes[1].set(
            xlabel="split-half cosine",
            ylabel="layer",
            xlim=(min(0.0, *reliability), 1),
            ylim=(-0.5, max(layers) + 0.5),
        )
    return figure
