"""What the figures of the causal experiments share: columns, intervals, an axis of KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from refusal_nn.agreement import controls_rate
from refusal_nn.hover import label_of, name_points
from refusal_nn.verdicts import MOST_KL

Row = Mapping[str, object]
Rows = Sequence[Row]
Draw = Callable[..., object]
PERCENT, MARGIN = "{x:.0%}", (-0.03, 1.03)  # of an axis of rates
SELF_EVIDENT = ("id", "class", "arm")  # columns whose cells need no name
LINE = {"marker": "o", "lw": 1.2, "ms": 4}


def numbers(rows: Rows, name: str) -> np.ndarray:
    """A column as floats, NaN where a cell is empty."""
    return np.array([np.nan if row[name] in ("", None) else float(row[name]) for row in rows])


def strokes(draw: Draw, at: np.ndarray, rows: Rows, name: str, colour: str) -> None:
    """Intervals name_low to name_high by an axes' vlines or hlines; not by errorbar, which takes
    lengths: a bootstrap interval need not hold its estimate."""
    low, high = numbers(rows, f"{name}_low"), numbers(rows, f"{name}_high")
    shown = np.isfinite(low) & np.isfinite(high)
    draw(at[shown], low[shown], high[shown], color=colour, lw=1.2, alpha=0.6)


def with_controls(rows: Rows, name: str) -> list[Row]:
    """Rows with the interval of the mean under controls, controls_<name>, as strokes reads it."""
    name = f"controls_{name}"
    means, found = numbers(rows, name), []
    for row, mean in zip(rows, means, strict=True):
        low, high = ("", "") if np.isnan(mean) else controls_rate(mean, row["n"])[1:3]
        found.append({**row, f"{name}_low": low, f"{name}_high": high})
    return found


def name_rows(
    line: Line2D, rows: Rows, name: str, *keys: str, what: str = "", limits: str | None = None
) -> None:
    """Each point says its row's keys, then the column of that name with its interval, of which the
    columns begin as limits does, or else as name_."""
    what = what or label_of(line) or line.axes.get_ylabel().replace("\n", " ")
    ends = [(f"{name}_" if limits is None else limits) + end for end in ("low", "high")]
    name_points(line, [f"{_keys(row, keys)}: {what} {_value(row, name, *ends)}" for row in rows])


def _keys(row: Row, keys: Sequence[str]) -> str:
    """As `pairs-12, harmful` or `layer 12, alpha 0.5`."""
    cells = {k: f"{x:.3g}" if isinstance(x := row[k], float) else str(x) for k in keys}
    return ", ".join(x if k in SELF_EVIDENT else f"{k} {x}" for k, x in cells.items())


def _value(row: Row, *names: str) -> str:
    """As `0.79 [0.70, 0.86]`, or `0.79` without an interval."""
    value, low, high = ("" if (x := row.get(name)) is None else x for name in names)
    if "" in (value, low, high):
        return "not measured" if value == "" else f"{float(value):.4g}"
    return f"{float(value):.2f} [{float(low):.2f}, {float(high):.2f}]"


def counts(rows: Rows) -> str:
    """As `n=32`, or `n=30–32` where rows differ."""
    seen = sorted({int(row["n"]) for row in rows})
    return f"n={'–'.join(str(n) for n in dict.fromkeys((seen[0], seen[-1])))}"


def kl_axis(axes: Axes) -> None:
    """Logarithmic, with the rule's limit; call it when all is drawn."""
    axes.axhline(MOST_KL, color="black", lw=0.8, ls="--", label=f"KL = {MOST_KL:g} nats")
    # A KL of 0, where a direction has no length, is left out rather than drawn at the edge.
    log_scale(axes)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis in plain numbers, as many as there is room for."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 1e3 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=range(1, 10) if high < 10 * low else subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
