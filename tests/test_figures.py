"""Figures: labelled, in the colours of the classes, the same bytes from the same data."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from refusal_nn import figures

ROOT = Path(__file__).parent.parent
LABELS = np.arange(60) < 30


def data(layers=12):
    """Scores (layer, prompt) and the two tables that go with them."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(layers, 60)) + np.outer(np.arange(layers), LABELS - 0.5)
    rows = [
        {
            "layer": i,
            "magnitude": 1.0 + i,
            "cohens_d": 1.5 + i,
            "cohens_d_crossfit": 1.0 + i,
            "d_low": 0.5 + i,
            "d_high": 1.5 + i,
            "auroc_crossfit": 0.8,
            "auroc_low": 0.7,
            "auroc_high": 0.9,
            "overlap_range_crossfit": 7,
            "valid": i > 0,
        }
        for i in range(layers)
    ]
    spread = [{"layer": i, "separation_over_norm": 0.1 + i / 100} for i in range(layers)]
    return scores, rows, spread


def every_figure(layers=12):
    scores, rows, spread = data(layers)
    cosine = np.corrcoef(scores)
    return {
        "analysis": figures.direction_analysis(rows, spread),
        "distributions": figures.projection_distributions(scores[-1], LABELS, layers - 1),
        "progressive": figures.progressive_distributions(scores, LABELS, rows),
        "layer": figures.layer_distribution(scores[2], scores[2] * 1.2 + 3, LABELS, rows[2]),
        "heatmap": figures.cosine_heatmap(cosine, range(layers), [0.5] * layers),
        "heatmap alone": figures.cosine_heatmap(cosine, range(layers), None),
    }


FIGURES = every_figure()


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def colours(patches):
    return {tuple(np.round(patch.get_facecolor()[:3], 3)) for patch in patches}


def rgb(colour):
    return tuple(np.round(to_rgb(colour), 3))


@pytest.mark.parametrize("name", FIGURES)
def test_every_function_returns_a_figure_with_something_in_it(name):
    assert isinstance(FIGURES[name], Figure)
    assert all(axes.has_data() for axes in visible(FIGURES[name]))


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_says_what_it_shows(name):
    for axes in visible(FIGURES[name]):
        assert axes.get_ylabel()
        # A twin shares the x axis of another, a colour bar has none.
        twin = any(a is not axes for a in axes.get_shared_x_axes().get_siblings(axes))
        assert axes.get_xlabel() or twin or axes.get_label() == "<colorbar>"


def test_harmful_is_red_and_harmless_blue():
    red, blue = to_rgb(figures.HARMFUL), to_rgb(figures.HARMLESS)
    assert red[0] > 2 * max(red[1:])
    assert blue[2] > 2 * blue[0]


@pytest.mark.parametrize("name", ["distributions", "progressive", "layer"])
def test_histograms_show_each_class_in_its_colour(name):
    for axes in FIGURES[name].axes:
        if axes.get_ylabel() == "density" and axes.get_visible():
            filled = [p for p in axes.patches if p.get_fill()]
            assert colours(filled) == {rgb(figures.HARMFUL), rgb(figures.HARMLESS)}


def test_each_colour_stands_where_its_class_is():
    axes = figures.layer_distribution(
        np.where(LABELS, 5.0, -5.0), np.where(LABELS, 5.0, -5.0), LABELS, data()[1][0]
    ).axes[0]
    centres = {
        colour: [p.get_x() + p.get_width() / 2 for p in axes.patches if wanted(p, colour)]
        for colour in (figures.HARMFUL, figures.HARMLESS)
    }
    assert min(centres[figures.HARMFUL]) > 4
    assert max(centres[figures.HARMLESS]) < -4


def wanted(patch, colour):
    full = patch.get_fill() and hasattr(patch, "get_height") and patch.get_height() > 0
    return full and rgb(patch.get_facecolor()) == rgb(colour)


def test_the_boxes_are_in_the_colours_of_their_names():
    figure = FIGURES["distributions"]
    box = next(
        a for a in figure.axes if [t.get_text() for t in a.get_xticklabels()][:1] == ["harmless"]
    )
    assert [t.get_text() for t in box.get_xticklabels()] == ["harmless", "harmful"]
    assert [rgb(patch.get_facecolor()) for patch in box.patches] == [
        rgb(figures.HARMLESS),
        rgb(figures.HARMFUL),
    ]


def shown_layers(figure):
    return [int(axes.get_title().split(":")[0].removeprefix("layer ")) for axes in visible(figure)]


@pytest.mark.parametrize("layers", [8, 9, 12, 30, 80])
def test_eight_layers_are_shown_the_first_and_the_last_among_them(layers):
    scores, rows, _ = data(layers)
    shown = shown_layers(figures.progressive_distributions(scores, LABELS, rows))
    assert len(shown) == 8
    assert (shown[0], shown[-1]) == (0, layers - 1)
    assert np.ptp(np.diff(shown)) <= 1


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 7])
def test_fewer_than_eight_layers_are_all_shown(layers, tmp_path):
    scores, rows, _ = data(layers)
    figure = figures.progressive_distributions(scores, LABELS, rows)
    assert shown_layers(figure) == list(range(layers))
    figures.save(figure, tmp_path / "progressive.png")


def test_a_layer_without_a_direction_leaves_a_gap_in_the_heatmap():
    image = figures.cosine_heatmap(np.eye(3), [1, 2, 4], None).axes[0].images[0].get_array()
    expected = np.diag([np.nan, 1, 1, np.nan, 1])
    expected[np.ix_([1, 2, 4], [1, 2, 4])] = np.eye(3)
    shown = np.ma.filled(image, np.nan)
    np.testing.assert_array_equal(np.isnan(shown[0]), True)
    np.testing.assert_array_equal(np.isnan(shown[:, 3]), True)
    np.testing.assert_array_equal(shown[np.ix_([1, 2, 4], [1, 2, 4])], np.eye(3))


def test_the_layers_that_are_not_valid_are_marked():
    _, rows, spread = data(5)
    marked = [
        list(line.get_xdata())
        for axes in figures.direction_analysis(rows, spread).axes
        for line in axes.lines
        if line.get_label() == "not valid"
    ]
    assert marked == [[0]]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_data_give_the_same_bytes(tmp_path, suffix):
    for name, figure in every_figure().items():
        figures.save(figure, tmp_path / f"{name}.png")
    for name, figure in every_figure().items():
        figures.save(figure, tmp_path / "again.png")
        first = (tmp_path / f"{name}{suffix}").read_bytes()
        assert (tmp_path / f"again{suffix}").read_bytes() == first, name


def test_a_figure_is_saved_as_a_picture_and_beside_it_as_vectors(tmp_path):
    figures.save(FIGURES["layer"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_figures_import_neither_pyplot_nor_torch():
    code = (
        "import sys; from refusal_nn import figures\n"
        "print([name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    assert "pyplot" not in Path(figures.__file__).read_text(encoding="utf-8")


def test_drawing_leaves_no_figure_open_and_the_settings_as_they_were():
    with mpl.rc_context({"font.size": 20, "axes.grid": False}):
        before = mpl.rcParams.copy()
        every_figure()
        assert mpl.rcParams == before
    assert pyplot.get_fignums() == []
