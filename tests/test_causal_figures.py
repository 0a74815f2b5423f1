"""Figures of the causal experiments: they show the rows' values, gaps included, in the colours of
the classes."""

import numpy as np
import pytest

from refusal_nn import causal_figures, figures
from refusal_nn.estimates import wilson
from refusal_nn.figures import HARMFUL, HARMLESS, NEUTRAL


def rate(name, value, half=0.1):
    if value == "":
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), "")
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def candidate(layer, pos=-1, kl=0.01):
    numbers = {"ablated": 3.0 - layer, "added": layer - 2.0, "kl": kl * (layer + 1)}
    about = {"layer": layer, "pos": pos, "token": "\n" if pos == -1 else "model"}
    return about | numbers | {"norm": 1.0, "n_harmful": 32, "n_harmless": 30}


def swept(layer, pos=-1, compliance=0.5, kl=0.01):
    about = {"layer": layer, "pos": pos, "token": "\n", "alpha": 1.0, "n": 32, "kl": kl}
    return about | rate("compliance", compliance) | rate("coherence", 0.9)


def summary(best):
    found = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 61}
    test = {"compliance": found, "controls_compliance": 3 / 61, "controls": 20}
    return {"best": best, "test": test}


def separation(layers):
    return [
        {"layer": i, "cohens_d_crossfit": 1.0 + i, "d_low": 0.5 + i, "d_high": 1.5 + i}
        for i in range(layers)
    ]


def arm(name, label, value, controls=0.05, layers="15", source=15):
    measured, other = ("compliance", "refusal")[:: 1 if label == "harmful" else -1]
    about = {"intervention": name, "layers": layers, "source_layer": source, "class": label}
    rates = rate(measured, value) | rate(other, "")
    return about | rates | {"n": 60, f"controls_{measured}": controls, f"controls_{other}": ""}


def predicted(layer, within=0.6):
    return {"layer": layer} | rate("auroc", 0.9) | rate("auroc_harmful", within)


def calibration(*bins):
    rows = [{"n": n, "predicted": x, **rate("refused", y, 0.05)} for n, x, y in bins]
    return {"layer": 15, "pos": -1, "calibration": {"bins": rows}}


KINDS = [(label, refused) for label in ("harmful", "harmless") for refused in (True, False)]
PROMPTS = [
    {"id": f"{k} {r}", "class": k, "refused": r, "projection": x} for x, (k, r) in enumerate(KINDS)
]
DRAWN = {
    "candidates": causal_figures.candidates([candidate(i) for i in range(4)], candidate(2)),
    "sweep": causal_figures.sweep([swept(i) for i in range(4)], separation(4), summary(swept(2))),
    "causal": causal_figures.causal([arm("add", "harmful", 0.4), arm("add", "harmless", 0.6)]),
    "behaviour": causal_figures.behaviour(PROMPTS, [predicted(0)], calibration((9, 0.2, 0.3))),
}


def lines(axes, label):
    return [line for line in axes.lines if label in str(line.get_label())]


def strokes(axes):
    """Both ends, (2, xy), of every interval drawn."""
    return [np.array(segment) for drawn in axes.collections for segment in drawn.get_segments()]


@pytest.mark.parametrize("name", DRAWN)
def test_every_panel_is_labelled_and_none_has_a_title(name, tmp_path):
    for axes in DRAWN[name].axes:
        shared = len(axes.get_shared_x_axes().get_siblings(axes)) > 1
        assert axes.get_ylabel()
        assert axes.get_xlabel() or shared
        assert not axes.get_title()
    figures.save(DRAWN[name], tmp_path / "figure.png")


def test_candidates_are_a_line_per_position_of_the_rows_own_numbers():
    rows = [candidate(layer, pos) for layer in (2, 0, 1) for pos in (-2, -1)]
    panels = causal_figures.candidates(rows, None).axes
    for axes, name in zip(panels, ("ablated", "added", "kl"), strict=True):
        shown = lines(axes, "pos -")
        assert [line.get_label() for line in shown] == ["pos -2 'model'", "pos -1 '\\n'"]
        for line in shown:
            np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
            np.testing.assert_allclose(line.get_ydata(), [candidate(i)[name] for i in range(3)])


def test_the_chosen_candidate_is_ringed_where_it_stands_and_none_where_none_was_chosen():
    rows = [candidate(i) for i in range(4)]
    for axes, name in zip(DRAWN["candidates"].axes, ("ablated", "added", "kl"), strict=True):
        (ring,) = lines(axes, "chosen: layer 2, pos -1")
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (2, candidate(2)[name])
    for axes in causal_figures.candidates(rows, None).axes:
        assert not lines(axes, "chosen")


def test_kl_is_on_a_log_axis_with_its_limit_plain_ticks_and_a_gap_for_a_kl_of_zero():
    figure = causal_figures.candidates([candidate(0), candidate(1, kl=0.0), candidate(2)], None)
    axes = figure.axes[2]
    figure.draw_without_rendering()
    assert axes.get_yscale() == "log"
    assert set(lines(axes, "KL = 0.1")[0].get_ydata()) == {0.1}
    assert all(float(text.get_text()) > 0 for text in axes.get_yticklabels(which="both"))


def test_the_sweep_shows_compliance_with_its_interval_in_the_colour_of_harmful():
    rows = [swept(i, compliance=i / 10) for i in range(1, 4)]
    axes = causal_figures.sweep(rows, separation(4), summary(rows[0])).axes[0]
    (line,) = lines(axes, "complied coherently, val (n=32)")
    assert line.get_color() == HARMFUL
    np.testing.assert_allclose(line.get_ydata(), [0.1, 0.2, 0.3])
    ends = [list(stroke[:, 1]) for stroke in strokes(axes)[:3]]
    np.testing.assert_allclose(ends, [[0.0, 0.2], [0.1, 0.3], [0.2, 0.4]], atol=1e-12)


@pytest.mark.parametrize("layers", [(9, 15), (15, 9), (3,)])
def test_only_the_swept_layers_are_shown_in_their_order(layers, tmp_path):
    rows = [swept(i) for i in layers]
    figure = causal_figures.sweep(rows, separation(24), summary(rows[0]))
    for axes in figure.axes:
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), sorted(layers))
    figures.save(figure, tmp_path / "figure.png")
    ticks = [int(text.get_text()) for text in figure.axes[-1].get_xticklabels()]
    assert len(ticks) == len(set(ticks)) > 0


def test_a_direction_of_another_position_is_a_star_of_its_own():
    rows = [swept(0), swept(1), swept(1, pos=-3, compliance=0.8, kl=0.07)]
    rates, kl, _ = causal_figures.sweep(rows, separation(2), summary(rows[0])).axes
    np.testing.assert_array_equal(lines(rates, "complied")[0].get_ydata(), [0.5, 0.5])
    for axes, value in ((rates, 0.8), (kl, 0.07)):
        stars = [line for line in axes.lines if line.get_marker() == "*" and line.get_xdata().size]
        assert stars[0].get_ydata()[0] == value
    assert len(lines(rates, "pos -3")) == 2


def test_the_test_rate_of_the_best_layer_is_a_point_with_its_interval_beside_the_random_mean():
    axes = DRAWN["sweep"].axes[0]
    (point,) = lines(axes, "test (n=61)")
    assert (round(point.get_xdata()[0]), list(point.get_ydata())) == (2, [0.7])
    assert any(np.allclose(stroke[:, 1], [0.6, 0.8]) for stroke in strokes(axes))
    (random,) = lines(axes, "20 random directions")
    assert set(random.get_ydata()) == {3 / 61}
    (band,) = axes.patches
    of = wilson(3, 61)  # prompts, however many random directions each met
    np.testing.assert_allclose(band.get_corners()[[0, 2], 1], [of.low, of.high])


def test_effect_sizes_are_cross_fitted_and_an_interval_need_not_hold_its_estimate():
    rows = [{"layer": 0, "cohens_d_crossfit": 2.0, "d_low": 0.5, "d_high": 1.5}]
    axes = causal_figures.sweep([swept(0)], rows, summary(swept(0))).axes[2]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [2.0])
    np.testing.assert_array_equal(strokes(axes)[0][:, 1], [0.5, 1.5])


@pytest.mark.parametrize("empty", ["", "nan", None, float("nan")])
def test_a_cell_without_a_number_is_a_gap(empty, tmp_path):
    rows = [swept(i) for i in range(3)]
    rows[1] |= dict.fromkeys(("compliance", "compliance_low", "compliance_high"), empty)
    figure = causal_figures.sweep(rows, separation(3), summary(rows[0]))
    line = lines(figure.axes[0], "complied")[0]
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), [False, True, False])
    assert len(strokes(figure.axes[0])) == 2 + 3 + 1
    figures.save(figure, tmp_path / "figure.png")


def test_arms_are_red_on_harmful_and_blue_on_harmless_each_with_its_random_mean():
    rows = [
        arm("ablate window", "harmful", 0.4, 0.1, layers="13-17"),
        arm("add +1", "harmless", 0.6, 0.2),
        arm("ablate everywhere", "harmful", 0.8, 0.3, layers="all"),
    ]
    harmful, harmless = causal_figures.causal(rows).axes
    for axes, colour, values, controls in (
        (harmful, HARMFUL, [0.4, 0.8], [0.1, 0.3]),
        (harmless, HARMLESS, [0.6], [0.2]),
    ):
        mine, random = axes.lines
        assert (mine.get_color(), random.get_color()) == (colour, NEUTRAL)
        assert random.get_markerfacecolor() == "none"
        np.testing.assert_array_equal(mine.get_xdata(), values)
        np.testing.assert_array_equal(random.get_xdata(), controls)
        assert all(random.get_ydata() - mine.get_ydata() > 0)
        assert all(random.get_ydata() - mine.get_ydata() < 0.5)
        ends = [list(stroke[:, 0]) for stroke in strokes(axes)]
        wanted = [wilson(round(60 * x), 60) for x in controls]
        wanted = [[x.low, x.high] for x in wanted] + [[v - 0.1, v + 0.1] for v in values]
        np.testing.assert_allclose(ends, wanted)


def test_an_arm_says_what_is_done_where_and_with_whose_direction():
    rows = [
        arm("ablate one layer", "harmful", 0.1, layers=15),
        arm("ablate window", "harmful", 0.4, layers="13-17"),
        arm("ablate everywhere", "harmful", 0.8, layers="all"),
    ]
    (axes,) = causal_figures.causal(rows).axes
    one, window, everywhere = (text.get_text() for text in axes.get_yticklabels())
    assert one == "ablate one layer: 15"
    assert window == "ablate window: 13-17, direction of 15"
    assert everywhere == "ablate everywhere, direction of 15"
    assert axes.yaxis_inverted()


@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_one_arm_of_one_class_is_a_figure_too(label, tmp_path):
    figure = causal_figures.causal([arm("add", label, "", "")])
    assert len(figure.axes) == 1
    assert np.isnan(figure.axes[0].lines[0].get_xdata()).all()
    figures.save(figure, tmp_path / "figure.png")


def test_prompts_stand_at_their_projection_filled_where_refused():
    groups = DRAWN["behaviour"].axes[0].lines
    assert [list(line.get_xdata()) for line in groups] == [[0], [1], [2], [3]]
    colours = [line.get_color() for line in groups]
    assert colours == [HARMFUL, HARMFUL, HARMLESS, HARMLESS]
    assert [line.get_markerfacecolor() == "none" for line in groups] == [False, True] * 2


def test_auroc_within_harmful_is_red_with_gaps_where_it_could_not_be_taken():
    rows = [predicted(0, within=""), predicted(1, within=0.6)]
    axes = causal_figures.behaviour(PROMPTS, rows, calibration((5, 0.5, 0.5))).axes[1]
    (line,) = lines(axes, "within harmful")
    assert line.get_color() == HARMFUL
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 0.6])
    np.testing.assert_array_equal(lines(axes, "all prompts")[0].get_ydata(), [0.9, 0.9])


def test_calibration_shows_each_bin_that_holds_prompts_beside_the_diagonal():
    about = calibration((10, 0.1, 0.2), (20, 0.8, 0.9))
    about["calibration"]["bins"].append({"n": 0})
    axes = causal_figures.behaviour(PROMPTS, [predicted(0)], about).axes[2]
    diagonal, points = axes.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(points.get_xydata(), [[0.1, 0.2], [0.8, 0.9]])
    np.testing.assert_allclose([s[:, 1] for s in strokes(axes)], [[0.15, 0.25], [0.85, 0.95]])
    assert axes.get_ylabel() == "share refused (n=10–20 per point)"


def test_one_prompt_and_no_calibration_are_a_figure_too(tmp_path):
    about = {"layer": 0, "pos": -1, "calibration": None}
    figure = causal_figures.behaviour(PROMPTS[:1], [predicted(0, within="")], about)
    assert [text.get_text() for text in figure.axes[2].texts] == ["not measured"]
    figures.save(figure, tmp_path / "figure.png")
