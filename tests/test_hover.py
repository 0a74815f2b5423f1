"""Figures as SVG: text is text, points say their numbers, nothing acts and nothing is fetched."""

import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import test_causal_figures
import test_figures
import test_subspace_figures
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from refusal_nn import figures, hover, inline
from refusal_nn.errors import CorruptArtefact

HIGH = 1e9
HOSTILE = "<script>alert(1)</script>$x^2$&amp;\"'"
DRAWN = {
    **test_figures.FIGURES,
    **test_causal_figures.DRAWN,
    **test_subspace_figures.DRAWN,
}


def svg(figure):
    with mpl.rc_context(figures.style()):
        return hover.svg(figure)


def drawn(draw):
    """A figure of one panel that draw fills."""
    with mpl.rc_context(figures.style()):
        figure = Figure()
        draw(figure.subplots())
    return figure


def elements(text, tag):
    return list(ElementTree.fromstring(text).iter(f"{{{hover.SVG}}}{tag}"))


def titles(text):
    return [element.text for element in elements(text, "title")]


@pytest.mark.parametrize("name", DRAWN)
def test_every_marked_point_of_every_figure_says_something(name):
    text = svg(DRAWN[name])
    groups = [g for g in elements(text, "g") if g.get("id", "").startswith("points-")]
    points = [use for group in groups for use in group.iter(f"{{{hover.SVG}}}use")]
    data = [
        line.get_transform().transform(line.get_xydata()) for line in hover._marked(DRAWN[name])
    ]
    assert len(points) == sum(np.isfinite(xy).all(axis=1).sum() for xy in data)
    for point in points:
        (title,) = point
        assert re.search(r"\d|not measured", title.text)


def contrast(colour):
    """Of a colour with white paper (WCAG 2)."""
    parts = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 1.05 / (0.05 + np.dot((0.2126, 0.7152, 0.0722), [*parts]))


@pytest.mark.parametrize("name", DRAWN)
def test_every_marked_point_stands_out_from_its_paper(name):
    for line in hover._marked(DRAWN[name]):
        assert contrast(line.get_color()) >= 3, line.get_label()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, np.nan, 1.02, 0.2, HIGH], ["0", "2", "3"]),
        # Of what lies off the canvas matplotlib draws no mark at all, or two at its edge.
        ([0.2, HIGH, HIGH, 0.3], ["0", "3"]),
        ([0.2, HIGH, -HIGH, 0.3], ["0", "3"]),
        ([HIGH, HIGH], []),
        ([0.2, 0.2], ["0", "1"]),
    ],
)
def test_a_point_says_its_own_words_and_one_that_is_not_on_the_canvas_says_none(values, said):
    def draw(axes):
        axes.set_ylim(0, 1)
        axes.margins(x=0.2)
        (line,) = axes.plot(range(len(values)), values, "o-")
        hover.name_points(line, [f"{i}" for i in range(len(values))])

    text = svg(drawn(draw))
    assert titles(text) == said
    [group] = [g for g in elements(text, "g") if g.get("id", "").startswith("points-")]
    assert len(list(group.iter(f"{{{hover.SVG}}}use"))) == len(said)


def test_words_are_shown_and_not_obeyed():
    def draw(axes):
        hover.name_points(axes.plot([1], [1], "o")[0], [HOSTILE])

    assert titles(svg(drawn(draw))) == [HOSTILE]


def test_two_points_at_one_place_have_their_own_words():
    def draw(axes):
        hover.name_points(axes.plot([1, 1, 1], [1, 1, 1], "o")[0], ["a", "b", "c"])

    assert titles(svg(drawn(draw))) == ["a", "b", "c"]


def test_a_point_on_a_logarithmic_axis_at_zero_takes_no_words_from_its_neighbour():
    def draw(axes):
        (line,) = axes.plot([1, 2, 3], [0.1, 0.0, 10.0], "o")
        hover.name_points(line, ["a", "b", "c"])
        axes.set_yscale("log", nonpositive="mask")

    assert titles(svg(drawn(draw))) == ["a", "c"]


def test_points_without_words_of_their_own_say_their_axes_and_values():
    def draw(axes):
        axes.plot([3], [0.25], "o", label="a line")
        axes.set(xlabel="layer", ylabel="KL\n(nats)")

    assert titles(svg(drawn(draw))) == ["a line: layer 3, KL (nats) 0.25"]


def test_words_are_as_many_as_points():
    with pytest.raises(AssertionError, match="a point each"):
        drawn(lambda axes: hover.name_points(axes.plot([1, 2], [1, 2])[0], ["one"]))


def test_text_is_shown_as_it_is_neither_mathematics_nor_markup():
    def draw(axes):
        axes.plot([0, 1], [0, 1], label=HOSTILE)
        axes.set(title=HOSTILE, xlabel=HOSTILE)
        axes.set_yticks([0, 1], [HOSTILE, HOSTILE])
        axes.legend()

    shown = [element.text for element in elements(svg(drawn(draw)), "text")]
    assert shown.count(HOSTILE) == 5


def test_what_cannot_be_seen_is_written_out():
    assert hover.plain("a\x00b\u202ec\n\ud800 é日😀") == "a\\x00b\\u202ec\\n\\ud800 é日😀"


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_stands_in_a_page_with_ids_of_its_own_and_no_scale_in_markup(name, tmp_path):
    path = tmp_path / "figure.svg"
    path.write_text(svg(DRAWN[name]), encoding="utf-8")
    text = inline.svg(path, "f7", "what it <shows>")
    ids = re.findall(r'\bid="([^"]*)"', text)
    used = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
    assert len(ids) == len(set(ids))
    assert set(ids) == set(used)
    assert all(x.startswith("f7-") for x in ids)
    assert 'role="img" aria-label="what it &lt;shows&gt;"' in text
    assert "mathdefault" not in text


def test_what_is_no_drawing_is_left_out_of_the_page(tmp_path):
    path, near = tmp_path / "figure.svg", "http://www.w3.org/1999/xlink"
    path.write_text(
        f'<svg xmlns="{hover.SVG}" xmlns:l="{near}" onload="alert(1)" width="9pt; x">'
        '<script>alert(2)</script><g onclick="alert(3)"><use l:href="javascript:alert(4)"/></g>'
        '<image l:href="https://example.org/x.png"/><image href="https://example.org/y.png"/>'
        '<foreignObject><p>alert(5)</p></foreignObject><a l:href="https://example.org">t</a>'
        "<style>@import url(https://example.org/z)</style><text>kept</text></svg>",
        encoding="utf-8",
    )
    text = inline.svg(path, "f", "name")
    assert "kept" in text
    for word in ("alert", "example", "script", "onload", "style", "foreign"):
        assert word not in text, word


@pytest.mark.parametrize("content", ["", "no svg", "<svg>cut", "<html></html>"])
def test_a_file_that_is_no_svg_is_called_corrupt(tmp_path, content):
    path = Path(tmp_path / "figure.svg")
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorruptArtefact, match="no SVG"):
        inline.svg(path, "f", "name")
