"""A figure as SVG in which every marked point says its numbers when it is hovered: text stays text,
the same figure gives the same bytes. Pure."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
NEAR = 0.01  # points, of a mark and its point: an SVG rounds
UNMARKED = ("None", "none", " ", "", None)


def plain(text: object) -> str:
    """Text with what cannot be seen written out: controls, reversals of direction, lone halves."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c)[0] == "C" else c
        for c in str(text)
    )


def name_points(line: Line2D, words: Sequence[str]) -> None:
    """What the points of a line say, one for each point of its data, in place of its x and y."""
    assert len(words) == len(line.get_xdata()), "a point each"
    line.point_words = list(words)


def svg(figure: Figure) -> str:
    """The figure, built under figures.style, as an SVG document."""
    lines = list(_marked(figure))
    for i, line in enumerate(lines):
        line.set_gid(f"points-{i}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    groups = {group.get("id"): group for group in root.iter(f"{{{SVG}}}g")}
    for line in lines:
        _title(line, groups.get(line.get_gid()))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _marked(figure: Figure) -> Iterator[Line2D]:
    """Lines of data with markers, in the order of drawing; not those of ticks and legends."""
    for axes in figure.axes:
        if axes.get_visible():
            yield from (line for line in axes.lines if line.get_marker() not in UNMARKED)


def _title(line: Line2D, group: ElementTree.Element | None) -> None:
    """Give each mark the words of its point. A line of no points has no group.

    Told by their places: off the canvas matplotlib cuts the line between points, which leaves marks
    out and makes others at the edge, where no point is.
    """
    points, following = list(zip(_places(line), _words(line), strict=True)), 0
    for parent in list(group.iter()) if group is not None else ():
        for use in parent.findall(f"{{{SVG}}}use"):
            at = float(use.get("x")), float(use.get("y"))
            # From the last one on: of two at one place each has its own words.
            near = (i for i in range(following, len(points)) if math.dist(at, points[i][0]) < NEAR)
            found = next(near, None)
            if found is None:
                parent.remove(use)
                continue
            ElementTree.SubElement(use, f"{{{SVG}}}title").text = plain(points[found][1])
            following = found + 1


def _places(line: Line2D) -> list[tuple[float, float]]:
    """Where the points of its data are drawn, in points from the canvas's upper left corner."""
    figure = line.figure.figure
    x, y = 72 / figure.dpi * line.get_transform().transform(line.get_xydata()).T
    return list(zip(x.tolist(), (72 * figure.get_figheight() - y).tolist(), strict=True))


def _words(line: Line2D) -> list[str]:
    """The point's own words; else its line's name, and each axis with its value."""
    if hasattr(line, "point_words"):
        return line.point_words
    x, y = (name.replace("\n", " ") for name in (line.axes.get_xlabel(), line.axes.get_ylabel()))
    name = label_of(line)
    about = f"{name}: " if name not in ("", y) else ""
    return [f"{about}{x or 'x'} {a:.4g}, {y or 'y'} {b:.4g}" for a, b in line.get_xydata()]


def label_of(line: Line2D) -> str:
    """Its name in the legend, if it has one."""
    label = str(line.get_label()).replace("\n", " ")
    return "" if label.startswith("_") else label
