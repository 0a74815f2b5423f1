"""Figures of the subspace experiment and its calibration: they show the rows' values, gaps
included, and the verdict's rank where the verdict put it."""

import numpy as np
import pytest

from refusal_nn import figures
from refusal_nn import subspace_figures as drawing
from refusal_nn.estimates import wilson
from refusal_nn.figures import HARMFUL, HARMLESS

RANK = {"verdict": "RANK", "rank": 2, "low": 2, "high": 3, "up_to": 4, "label": "rank 2 [2, 3]"}
PLACE = {"construction": "prompts", "layer": 12}
EMPTY = ["", None, "nan"]
NAMES = {"one": "rank 1", "two": "rank 2", "ten": "rank 10", "no": "not accessible"}


def rate(name, value, half=0.1):
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def verdict(**changes):
    return {"model": "m", **PLACE, "pos": -1, "rank": RANK | changes}


def component(i, construction="prompts", layer=12, noise=0.5, value=None):
    about = {"construction": construction, "layer": layer, "component": i, "noise": noise}
    about |= {"effective_rank": 2.34, "entropy_rank": 3.45}
    return about | {"singular_value": 8.0 / i if value is None else value}


def ablated(k, compliance=0.5, split="test", **changes):
    row = {"split": split, **PLACE, "rank": k, "n": 60, "kl": 0.01 * k}
    row |= rate("compliance", compliance) | rate("coherence", 0.95, 0.02)
    n, compliance = (240, 0.05) if split == "test" else ("", "")
    return row | {"controls_n": n, "controls_compliance": compliance} | changes


def angle(a, b, *degrees):
    return [{"a": a, "b": b, "component": i + 1, "degrees": x} for i, x in enumerate(degrees)]


def reported(kind, planted, n, **counts):
    about = {"kind": kind, "planted": planted, "n": n}
    return [about | {"reported": NAMES.get(k, k), "count": c} for k, c in counts.items()]


def measured(quantity, planted=1, value=0.9, bar=0.95, kind="analytic"):
    limits = {"value": value, "low": value - 0.2, "high": value + 0.05}
    return {"kind": kind, "planted": planted, "quantity": quantity, **limits, "n": 40, "bar": bar}


SPECTRUM = [component(i, name) for name in ("layers", "prompts") for i in range(1, 6)]
CURVE = [ablated(k, 0.2 * k, split) for split in ("test", "val") for k in (1, 2, 3, 4)]
CONFUSION = [
    *reported("analytic", 0, 10, UNTESTABLE=10),
    *reported("analytic", 2, 10, two=8, ten=1, UNDETERMINED=1),
    *reported("analytic", "many", 10, no=10),
    *reported("organism", 1, 4, one=3, UNDETERMINED=1),
]
DRAWN = {
    "spectrum": drawing.spectrum(SPECTRUM, verdict()),
    "rank_curve": drawing.rank_curve(CURVE, verdict()),
    "angles": drawing.angles(angle("prompts", "layers", 5.0, 30.0)),
    "confusion": drawing.confusion(CONFUSION),
    "calibration_rates": drawing.calibration_rates([measured("rank exact")]),
}


def lines(axes, label):
    return [line for line in axes.lines if label in str(line.get_label())]


def strokes(axes):
    """Both ends, (2, xy), of every interval drawn."""
    return [np.array(segment) for drawn in axes.collections for segment in drawn.get_segments()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def ticks(labels):
    return [text.get_text().replace("\n", " ") for text in labels]


def written(axes):
    """Words by (column, row)."""
    return {text.get_position(): text.get_text() for text in axes.texts if text.get_text()}


@pytest.mark.parametrize("name", DRAWN)
def test_every_panel_is_labelled_and_a_title_is_at_most_a_name_and_its_numbers(name, tmp_path):
    for axes in DRAWN[name].axes:
        shared = len(axes.get_shared_x_axes().get_siblings(axes)) > 1
        assert axes.get_ylabel() or DRAWN[name].get_supylabel()
        assert axes.get_xlabel() or shared or axes.get_label() == "<colorbar>"
        assert not axes.get_title()
        assert axes.get_title(loc="left") in ("", "layers, layer 12", "prompts, layer 12")
    assert not DRAWN[name].get_suptitle()
    figures.save(DRAWN[name], tmp_path / "figure.png")


def test_a_spectrum_is_relative_to_its_first_value_beside_the_harmless_floor_and_the_rank():
    axes, mine = DRAWN["spectrum"].axes
    (found,), (floor,) = lines(axes, "harmful"), lines(axes, "harmless prompts alone")
    np.testing.assert_allclose(found.get_xydata(), [[i, 1 / i] for i in range(1, 6)])
    np.testing.assert_allclose(floor.get_ydata(), [0.5 / 8] * 5)
    assert (found.get_color(), floor.get_color()) == (HARMFUL, HARMLESS)
    assert floor.get_linestyle() == "--"
    assert axes.get_title(loc="right") == "effective rank 2.3\nby entropy 3.5"
    assert not lines(axes, "verdict")
    assert set(lines(mine, "verdict: rank 2 [2, 3]")[0].get_xdata()) == {2}


@pytest.mark.parametrize(("layers", "chosen"), [((3, 12), 12), ((3, 4), 3)])
def test_every_construction_has_a_panel_of_the_verdicts_layer_or_its_first(layers, chosen):
    names = [f"way {i}" for i in range(5)]
    rows = [component(i, name, x) for name in names for x in layers for i in (1, 2)]
    shown = [axes for axes in drawing.spectrum(rows, verdict()).axes if axes.get_visible()]
    assert [x.get_title(loc="left") for x in shown] == [f"{n}, layer {chosen}" for n in names]
    assert all(axes.lines[0].get_xdata().tolist() == [1, 2] for axes in shown)
    assert {axes.get_yscale() for axes in shown} == {"log"}
    assert len({axes.get_ylim() for axes in shown}) == 1


@pytest.mark.parametrize("empty", EMPTY)
def test_a_spectrum_without_a_floor_or_of_zeros_is_a_figure_too(empty, tmp_path):
    rows = [component(1, noise=empty), component(2, noise=empty, value=0.0)]
    rows += [component(1, "clusters", layer="", noise=empty, value=0.0)]
    figure = drawing.spectrum(rows, {"rank": RANK | {"verdict": "UNTESTABLE", "rank": None}})
    assert np.isnan(lines(figure.axes[0], "harmless prompts alone")[0].get_ydata()).all()
    assert figure.axes[1].get_title(loc="left") == "clusters"
    figures.save(figure, tmp_path / "figure.png")


def test_every_rank_on_test_is_drawn_in_red_with_its_interval():
    axes = DRAWN["rank_curve"].axes[0]
    (line,), (coherent,) = (lines(axes, f"{x}, test (n=60)") for x in ("coherently", "coherent"))
    assert line.get_color() == HARMFUL
    np.testing.assert_allclose(line.get_xydata(), [[k, 0.2 * k] for k in (1, 2, 3, 4)])
    ends = [[[k, 0.2 * k - 0.1], [k, 0.2 * k + 0.1]] for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(strokes(axes)[:4], ends, atol=1e-12)
    np.testing.assert_array_equal(coherent.get_ydata(), [0.95] * 4)
    ends = [stroke[:, 1] for stroke in strokes(axes)[4:8]]
    np.testing.assert_allclose(ends, [[0.93, 0.97]] * 4)


def test_random_subspaces_are_grey_harmless_kl_is_blue_and_the_limits_are_the_rules():
    rates, kl = DRAWN["rank_curve"].axes
    (random,), (line,) = lines(rates, "random subspaces"), lines(kl, "KL on harmless, test")
    np.testing.assert_array_equal(random.get_ydata(), [0.05] * 4)
    of = wilson(3, 60)  # prompts, however many random subspaces each met
    ends = [stroke[:, 1] for stroke in strokes(rates)[8:]]
    np.testing.assert_allclose(ends, [[of.low, of.high]] * 4)
    np.testing.assert_allclose(line.get_ydata(), [0.01, 0.02, 0.03, 0.04])
    assert (random.get_color(), line.get_color()) == (drawing.GREY, HARMLESS)
    assert set(lines(rates, "70 %")[0].get_ydata()) == {0.7}
    assert set(lines(kl, "KL = 0.1")[0].get_ydata()) == {0.1}
    assert kl.get_yscale() == "log"


def test_the_verdicts_rank_is_a_line_and_its_interval_a_span_on_both_panels():
    for axes in DRAWN["rank_curve"].axes:
        assert set(lines(axes, "verdict: rank 2 [2, 3]")[0].get_xdata()) == {2}
        (span,) = axes.patches
        np.testing.assert_allclose([span.get_x(), span.get_width()], [1.6, 1.8])
    assert "95 % interval of the rank: [2, 3]" in legend(DRAWN["rank_curve"])
    # Beyond the ranks tried it runs off the axes.
    found = verdict(verdict="UNDETERMINED", label="undetermined", high=5)
    figure = drawing.rank_curve(CURVE, found)
    assert figure.axes[0].patches[0].get_corners()[2, 0] > figure.axes[0].get_xlim()[1]
    assert "95 % interval of the rank: [2, >4]" in legend(figure)
    assert "verdict: undetermined (rank by rate 2)" in legend(figure)


@pytest.mark.parametrize("rows", [CURVE, CURVE[4:]], ids=["test", "val only"])
def test_without_a_rank_or_a_layer_the_verdict_is_named_and_no_line_drawn(rows, tmp_path):
    none = {"verdict": "NOT LINEARLY ACCESSIBLE", "rank": None, "label": "none up to 4"}
    found = verdict(**none, low=5, high=5) | {"layer": None}
    figure = drawing.rank_curve([row | {"layer": ""} for row in rows], found)
    assert np.isnan(lines(figure.axes[0], "verdict: none up to 4")[0].get_xdata()).all()
    assert figure.axes[0].patches[0].get_x() > figure.axes[0].get_xlim()[1]
    assert any("test" in words for words in legend(figure)) == (rows is CURVE)
    figures.save(figure, tmp_path / "figure.png")


def test_every_place_on_val_is_a_faint_line_of_its_constructions_colour():
    rows = [ablated(k, split="val", layer=layer) for layer in (9, 12) for k in (2, 1)]
    rows += [ablated(k, split="val", construction="clusters") for k in (1, 2)]
    figure = drawing.rank_curve([*CURVE[:4], *rows], verdict())
    for axes in figure.axes:
        prompts, (clusters,) = lines(axes, "prompts, val"), lines(axes, "clusters, val")
        assert [list(line.get_xdata()) for line in prompts] == [[1, 2], [1, 2]]
        assert len({line.get_color() for line in (*prompts, clusters)}) == 2
        assert all(line.get_alpha() < 1 for line in (*prompts, clusters))
    assert legend(figure).count("prompts, val") == 1


@pytest.mark.parametrize("empty", EMPTY)
def test_a_cell_without_a_number_is_a_gap(empty):
    gone = ("compliance", "compliance_low", "compliance_high", "kl", "controls_compliance")
    rows = [ablated(1), ablated(2) | dict.fromkeys(gone, empty), ablated(3)]
    rates, kl = drawing.rank_curve(rows, verdict()).axes
    for axes, label in ((rates, "coherently"), (rates, "random"), (kl, "test")):
        gaps = np.isnan(lines(axes, label)[0].get_ydata())
        np.testing.assert_array_equal(gaps, [False, True, False])
    assert len(strokes(rates)) == 2 + 3 + 2
    pairs = [*angle("a", "b", empty), *angle("a", "c", 3.0)]
    assert set(written(drawing.angles(pairs).axes[0]).values()) == {"3"}
    gone = dict.fromkeys(("value", "low", "high", "bar"), empty)
    (axes,) = drawing.calibration_rates([measured("x") | gone, measured("x")]).axes
    np.testing.assert_array_equal(np.isnan(axes.lines[0].get_xdata()), [True, False])
    rows = reported("analytic", 2, None if empty == "nan" else empty, two=empty and 0)
    assert drawing.confusion(rows).axes[0].images[0].get_array().mask.all()


def test_angles_are_a_symmetric_mean_with_the_range_beneath_and_gaps_where_not_measured():
    rows = [*angle("planted", "prompts", 10.0, 20.0, 60.0), *angle("layer 12", "prompts", 5.0)]
    axes = drawing.angles(rows).axes[0]
    assert ticks(axes.get_yticklabels()) == ["planted", "prompts", "layer 12"]
    shown = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(shown, shown.T)
    np.testing.assert_allclose(shown[1], [30, np.nan, 5])
    assert written(axes) == {(1, 0): "30\n10–60", (0, 1): "30\n10–60", (2, 1): "5", (1, 2): "5"}
    rows = [{"a": "planted", "b": str(i), "degrees": 5.0} for i in range(drawing.ANNOTATED)]
    assert not written(drawing.angles(rows).axes[0])


def test_confusion_has_a_map_per_kind_with_counts_and_shares_of_what_was_planted():
    analytic, organism = DRAWN["confusion"].axes[:2]
    columns = ["UNTESTABLE", "rank 1", "rank 2", "rank 10", "not accessible", "UNDETERMINED"]
    assert ticks(analytic.get_xticklabels()) == ticks(organism.get_xticklabels()) == columns
    assert ticks(analytic.get_yticklabels()) == ["0 (n=10)", "2 (n=10)", "many (n=10)"]
    np.testing.assert_allclose(analytic.images[0].get_array()[1], [0, 0, 0.8, 0.1, 0, 0.1])
    words = {(0, 0): "10\n100%", (2, 1): "8\n80%", (3, 1): "1\n10%", (5, 1): "1\n10%"}
    assert written(analytic) == words | {(4, 2): "10\n100%"}
    assert written(organism) == {(1, 0): "3\n75%", (5, 0): "1\n25%"}
    assert organism.get_ylabel() == "organism, planted rank"
    # The truth is framed, also where nothing was reported right.
    axes = drawing.confusion(reported("analytic", 4, 2, two=2)).axes[0]
    assert ticks(axes.get_xticklabels()) == ["rank 2", "rank 4"]
    assert axes.patches[0].get_x() == 0.5


def test_rates_have_a_panel_per_quantity_with_intervals_and_the_level_required():
    rows = [measured("rank exact", k, 0.8 + k / 50) for k in (1, 2)]
    rows += [measured("interval covers", "many", bar="", kind="organism")]
    exact, covers = drawing.calibration_rates(rows).axes
    assert [axes.get_ylabel() for axes in (exact, covers)] == ["rank exact", "interval covers"]
    np.testing.assert_allclose(lines(exact, "measured")[0].get_xdata(), [0.82, 0.84])
    np.testing.assert_allclose(lines(exact, "required")[0].get_xdata(), [0.95, 0.95])
    np.testing.assert_allclose([s[:, 0] for s in strokes(exact)], [[0.62, 0.87], [0.64, 0.89]])
    assert np.isnan(lines(covers, "required")[0].get_xdata()).all()
    assert ticks(covers.get_yticklabels()) == ["organism, planted many (n=40)"]
