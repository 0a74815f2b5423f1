"""Figures of the cross-model comparison: rates by model and source, heatmaps at equal relative
depth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_nn.comparison import OURS, rate_of
from refusal_nn.drawing import MARGIN, PERCENT, Row, Rows
from refusal_nn.figures import NEUTRAL, style
from refusal_nn.published_rates import CROSS_MODEL, GRADED, LLAMA_GUARD, PIPELINE, SUBSTRING
from refusal_nn.verdicts import NO_UP_TO, UNTESTABLE, YES_FROM

# Colour-blind safe, and neither of the classes' colours.
LOOKS = {
    (OURS, ""): ("o", "black"),
    (CROSS_MODEL, GRADED): ("s", "#c77d00"),
    (PIPELINE, SUBSTRING): ("D", "#7a7a7a"),
    (PIPELINE, LLAMA_GUARD): ("v", "#7a7a7a"),
}


DEPTHS = (0, 0.25, 0.5, 0.75, 1)
LINE = 36  # letters of a model's name: a longer one, as of a folder, would run into its neighbour


@mpl.rc_context(style())
def rates(rows: Rows) -> Figure:
    """A line per model, a mark per source and judge with its 95 % interval, hollow where the rule
    cannot be applied; beside the line what has no rate. Dotted: the verdict rule's limits."""
    names = list(dict.fromkeys(str(row["model"]) for row in rows))
    figure = Figure(figsize=(8, 1.8 + 0.42 * len(names)))
    axes = figure.subplots()
    for y, name in enumerate(names):
        mine = [row for row in rows if row["model"] == name]
        drawn = [row for row in mine if rate_of(row) is not None]
        for i, row in enumerate(drawn):
            _mark(axes, y + 0.2 * (i - (len(drawn) - 1) / 2), row)
        for row in mine:
            if rate_of(row) is None:
                words, place = f"{row['source']}: {row['verdict']}", axes.get_yaxis_transform()
                axes.text(1.01, y, words, transform=place, va="center", fontsize=8)
    for limit in (NO_UP_TO, YES_FROM):
        axes.axvline(limit, color=NEUTRAL, lw=0.8, ls=":", label="limits of the verdict rule")
    axes.set_yticks(range(len(names)), [textwrap.fill(name, LINE) for name in names])
    axes.set(xlabel="compliance under one ablated direction [95 %]", xlim=MARGIN)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PERCENT)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=2)
    return figure


def _mark(axes: Axes, y: float, row: Row) -> None:
    """A rate, at this height, with its interval."""
    rate, source = rate_of(row), str(row["source"])
    judge = "" if source == OURS else str(row["judge"])
    marker, colour = LOOKS[source, judge]
    look = {"color": colour, "ms": 5, "label": f"{source}: {judge}" if judge else source}
    if row["verdict"] == UNTESTABLE:
        look |= {"mfc": "white", "label": f"{look['label']}: {UNTESTABLE}"}
    axes.hlines(y, rate.low, rate.high, color=colour, lw=1.4)
    axes.plot(rate.value, y, marker, **look)


@mpl.rc_context(style())
def heatmaps(cosines: Mapping[str, np.ndarray]) -> Figure:
    """A panel per model: cosines between its layers' directions at the same relative depths."""
    wide = min(4, len(cosines))
    tall = -(-len(cosines) // wide)
    figure = Figure(figsize=(1.2 + 2.6 * wide, 0.4 + 2.7 * tall))
    grid = figure.subplots(tall, wide, squeeze=False)
    for axes, (name, cosine) in zip(grid.flat, cosines.items(), strict=False):
        # Layers are cells: the first's centre is depth 0 and the last's 1.
        half = 0.5 / max(len(cosine) - 1, 1)
        extent = (-half, 1 + half, -half, 1 + half)
        shown = axes.imshow(cosine, vmin=-1, vmax=1, cmap="RdBu_r", origin="lower", extent=extent)
        axes.grid(False)
        axes.set_title(textwrap.fill(name, LINE), fontsize=9)
        axes.set(xlabel="relative depth", ylabel="relative depth")
        axes.set(xticks=DEPTHS, yticks=DEPTHS)
    for axes in list(grid.flat)[len(cosines) :]:
        axes.set_visible(False)
    label = "cosine between differences in means"
    figure.colorbar(shown, ax=grid.ravel().tolist(), label=label, shrink=0.8)
    return figure
