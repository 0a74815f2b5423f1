"""Figures of the cross-model comparison: rates by model and source, heatmaps at equal relative
depth."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from refusal_nn.comparison import FAILED, OURS, rate_of
from refusal_nn.drawing import MARGIN, PERCENT, Rows
from refusal_nn.figures import NEUTRAL, style
from refusal_nn.published_rates import CROSS_MODEL, GRADED, LLAMA_GUARD, PIPELINE, SUBSTRING
from refusal_nn.verdicts import NO_UP_TO, YES_FROM

# Colour-blind safe, and neither of the classes' colours.
LOOKS = {
    (OURS, ""): ("o", "black"),
    (CROSS_MODEL, GRADED): ("s", "#c77d00"),
    (PIPELINE, SUBSTRING): ("D", "#7a7a7a"),
    (PIPELINE, LLAMA_GUARD): ("v", "#7a7a7a"),
}


DEPTHS = (0, 0.25, 0.5, 0.75, 1)


@mpl.rc_context(style())
def rates(rows: Rows) -> Figure:
    """A line per model, a mark per source and judge with its 95 % interval; dotted: the verdict
    rule's limits."""
    shown = [row for row in rows if row["verdict"] != FAILED and rate_of(row) is not None]
    names = list(dict.fromkeys(str(row["model"]) for row in shown))
    figure = Figure(figsize=(8, 1.8 + 0.42 * len(names)))
    axes = figure.subplots()
    for name in names:
        mine = [row for row in shown if row["model"] == name]
        for i, row in enumerate(mine):
            rate, source = rate_of(row), str(row["source"])
            judge = "" if source == OURS else str(row["judge"])
            marker, colour = LOOKS[source, judge]
            y = names.index(name) + 0.16 * (i - (len(mine) - 1) / 2)
            axes.hlines(y, rate.low, rate.high, color=colour, lw=1.4)
            axes.plot(
                rate.value,
                y,
                marker,
                color=colour,
                ms=5,
                label=f"{source}: {judge}" if judge else source,
            )
    for limit in (NO_UP_TO, YES_FROM):
        axes.axvline(limit, color=NEUTRAL, lw=0.8, ls=":", label="limits of the verdict rule")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="compliance under one ablated direction [95 %]", xlim=MARGIN)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PERCENT)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=2)
    return figure


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
        axes.set_title(name, fontsize=9)
        axes.set(xlabel="relative depth", ylabel="relative depth")
        axes.set(xticks=DEPTHS, yticks=DEPTHS)
    for axes in list(grid.flat)[len(cosines) :]:
        axes.set_visible(False)
    label = "cosine between differences in means"
    figure.colorbar(shown, ax=grid.ravel().tolist(), label=label, shrink=0.8)
    return figure
