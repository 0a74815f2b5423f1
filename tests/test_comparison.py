"""The cross-model table: ours beside theirs, equal depth beside equal depth, text kept as text."""

import re

import numpy as np
import pytest

from experiments import printed
from refusal_nn import compare_figures, compare_page, comparison
from refusal_nn.comparison import FAILED, OURS, Measured
from refusal_nn.estimates import wilson
from refusal_nn.files import read_csv, write_csv
from refusal_nn.published_rates import CROSS_MODEL, PIPELINE, PUBLISHED

QWEN3 = "Qwen/Qwen3-1.7B"


def cosines(n_layers):
    """Of a model whose cosine depends on the distance in relative depth alone."""
    depth = np.linspace(0, 1, n_layers)
    return np.exp(-4 * np.abs(depth[:, None] - depth))


def measured(name="qwen3", hub_id=QWEN3, complied=50, n=60, layers=12, **more):
    test = {
        "compliance": wilson(complied, n)._asdict(),
        "compliance_by_logits": wilson(complied - 1, n)._asdict(),
        "compliance_by_model": None,
        "over_controls": {"value": 0.5, "low": 0.4, "high": 0.6, "n": n},
        "baseline_refusal": wilson(n, n + 5)._asdict(),
        "judges_kappa": {"value": 0.9, "low": 0.8, "high": 1.0, "n": n},
        "model_judge_kappa": None,
        "kl": 0.05,
    }
    about = {"verdict": "YES", "reasons": ["because"], "version": "1", "test": test}
    about |= {"best": {"layer": 3, "pos": -1, "alpha": 1.0}}
    rank = {"label": "rank 1 [1, 1]"}
    return Measured(name, hub_id, "", about, rank, cosines(layers))._replace(**more)


def test_our_row_stands_before_what_was_published_of_the_same_model():
    rows = comparison.table([measured()])
    assert [row["source"] for row in rows[:2]] == [OURS, CROSS_MODEL]
    assert {row["model"] for row in rows[:2]} == {"qwen3"}
    assert (rows[0]["n"], rows[0]["rank"], rows[0]["rule_version"]) == (60, "rank 1 [1, 1]", "1")
    assert comparison.rate_of(rows[1]).value == 0.96
    assert len(rows) == 1 + len(PUBLISHED)


def judged_by_model():
    """Measured beside a judge model that gave no readable label in 19 of 60."""
    made = measured()
    made.sweep["test"]["compliance_by_model"] = wilson(40, 41)._asdict()
    kappa = {"value": 0.5, "low": 0.3, "high": 0.7, "n": 41}
    made.sweep["test"]["model_judge_kappa"] = kappa
    return made


@pytest.mark.parametrize(
    ("made", "judge", "rate", "kappa"),
    [
        (measured(), "first token", wilson(49, 60), "0.90 [0.80, 1.00] (n=60)"),
        (judged_by_model(), "judge model", wilson(40, 41), "0.50 [0.30, 0.70] (n=41)"),
    ],
)
def test_rate_and_kappa_are_of_the_second_judge_that_is_named(made, judge, rate, kappa):
    [row] = [row for row in comparison.table([made]) if row["source"] == OURS]
    assert row["judge"] == f"rules; {judge}"
    page = compare_page.page([row], [], "make compare")
    [line] = [x for x in page.splitlines() if x.startswith("| qwen3 | 3, -1, 1.0")]
    cells = [cell.replace("\\", "").strip() for cell in re.split(r"(?<!\\)\|", line)]
    assert cells[3:6] == [rate.percent(), kappa, wilson(60, 65).percent()]


def test_a_hub_id_in_other_letters_is_the_same_model():
    [found] = comparison.differences(comparison.table([measured("x", QWEN3.lower())]))
    assert found["published"].value == 0.96


def test_a_model_that_no_study_names_has_only_its_own_row():
    rows = comparison.table([measured("mine", "mine")])
    assert [row["source"] for row in rows if row["model"] == "mine"] == [OURS]


def test_a_failed_chain_and_an_untestable_model_are_rows_with_reasons_and_no_rates():
    untestable = {"verdict": "UNTESTABLE", "reasons": ["few refusals"], "best": None}
    models = [Measured("gone", "gone", failed="gated | ask"), measured(sweep=untestable)]
    rows = comparison.table(models)
    assert (rows[0]["verdict"], rows[0]["notes"]) == (FAILED, "gated | ask")
    assert rows[1]["verdict"] == "UNTESTABLE"
    assert comparison.rate_of(rows[0]) is comparison.rate_of(rows[1]) is None
    assert sum(map(len, comparison.found_modes(rows, OURS).by_class.values())) == 0
    page = compare_page.page(rows, [], "make compare")
    assert "| gone | gated \\| ask |" in page
    assert "few refusals" in page


def untestable(name="few", hub_id=QWEN3):
    """Measured on eleven prompts that were refused: numbers, but the rule cannot be applied."""
    made = measured(name, hub_id, 10, 11)
    return made._replace(sweep=made.sweep | {"verdict": "UNTESTABLE"})


def test_an_untestable_rate_is_in_no_mode_and_differs_from_no_published_one():
    rows = comparison.table([untestable()])
    assert comparison.rate_of(rows[0]).n == 11
    assert sum(map(len, comparison.found_modes(rows, OURS).by_class.values())) == 0
    assert comparison.differences(rows) == []
    assert "Beside the published rate" not in compare_page.page(rows, [], "make compare")


def test_the_first_line_says_that_it_is_by_rate_and_how_many_the_whole_rule_calls_yes():
    leaky = measured("b", "b", 60)
    leaky = leaky._replace(sweep=leaky.sweep | {"verdict": "UNDETERMINED"})
    rows = comparison.table([measured("a", "a", 60), leaky, measured("c", "c", 1)])
    found = comparison.found_modes(rows, OURS)
    said = comparison.statement(found, "This run", yes={"a"})
    assert "3 testable; by rate alone 2 single direction (1 of them YES by the whole rule)" in said
    assert "whole rule" not in comparison.statement(found, "As published")


def test_a_p_value_never_reads_0():
    found = comparison.found_modes(comparison.table([]), CROSS_MODEL)
    assert "p = 0.047 under one hump" in comparison.statement(found, "x")
    assert "p < 0.001 under one hump" in comparison.statement(found._replace(p=5e-5), "x")
    numbers = ("magnitude", "cohens_d", "cohens_d_crossfit", "d_low", "d_high", "auroc_crossfit")
    row = dict.fromkeys((*numbers, "auroc_low", "auroc_high"), 1.0)
    row |= dict.fromkeys(("layer", "overlap_count", "overlap_range", "overlap_range_crossfit"), 1)
    row |= {"valid": True, "valid_in_sample": True}
    rows = [row | {"p_familywise": p} for p in (1.0, 1 / 1001, 1e-4, 1e-5)]
    names, cells = printed.layer_table(rows)
    shown = [of_row[names.index("p (family)")] for of_row in cells]
    assert shown == ["1.0000", "0.0010", "0.0001", "< 0.0001"]


def test_modes_are_tested_on_one_source_at_a_time():
    rows = comparison.table([measured()])
    assert sum(map(len, comparison.found_modes(rows, OURS).by_class.values())) == 1
    assert sum(map(len, comparison.found_modes(rows, CROSS_MODEL).by_class.values())) == 7
    assert "TOO FEW" in comparison.statement(comparison.found_modes(rows, OURS), "x")


def test_a_difference_is_ours_minus_theirs_with_an_interval_wider_than_either():
    [found] = comparison.differences(comparison.table([measured()]))
    d = found["difference"]
    assert d.value == pytest.approx(50 / 60 - 0.96)
    assert d.low < d.value < d.high
    assert d.high - d.low > found["published"].high - found["published"].low


def test_at_equal_depth_a_deep_and_a_shallow_model_of_one_law_are_alike():
    models = [measured("a", "a", layers=13), measured("b", "b", layers=49)]
    raw = [comparison.late_half(m.cosine) for m in models]
    found = comparison.at_equal_depth(models)
    assert {c.shape for c in found.values()} == {(13, 13)}
    np.testing.assert_allclose(found["a"], found["b"], atol=1e-12)
    # On all of its own layers the deep one looks more alike: its neighbours are nearer.
    assert raw[1] > raw[0] + 0.02


def test_layers_without_a_direction_are_gaps_and_count_for_nothing():
    rows = [{"layer_a": a, "layer_b": b, "cosine": 0.5} for a in (1, 2, 3) for b in (1, 2, 3)]
    cosine = comparison.full_cosine(rows, 4)
    assert np.isnan(cosine[0]).all()
    assert comparison.late_half(cosine) == 0.5
    assert comparison.late_half(np.full((4, 4), np.nan)) == ""


@pytest.mark.parametrize("name", ["a|b", "a\nb", "`x`", "[x](y)", "<img src=x>", "a\\|b"])
def test_a_hostile_name_stays_in_its_cell(name):
    rows = comparison.table([measured(name, name), Measured("gone", "gone", failed=name)])
    page = compare_page.page(rows, [], "make compare")
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert not re.search(r"(?<!\\)[`<\[](x|img)", page)


@pytest.mark.parametrize("value", ["a\nb", "```", "`x`\n\n# y", "\x1b[31m", "\udce9", "\r| z"])
def test_a_hostile_setting_stays_in_the_one_line_of_the_command(value):
    page = compare_page.page(comparison.table([]), [], f"make compare SYSTEM='{value}'")
    *_, blank, line = page.removesuffix("\n").split("\n")
    assert blank == ""
    assert line.startswith("    make compare SYSTEM='")
    assert line.endswith("'")
    assert line.isprintable()


def test_the_table_is_the_same_when_read_back(tmp_path):
    rows = comparison.table([measured()])
    write_csv(tmp_path / "compare.csv", rows)
    again = read_csv(tmp_path / "compare.csv")
    for row, read in zip(rows, again, strict=True):
        assert comparison.rate_of(row) == pytest.approx(comparison.rate_of(read), abs=1e-8)
        assert row["source"] == read["source"]


def test_the_figures_draw_every_rate_and_every_model(tmp_path):
    rows = comparison.table([measured(), measured("tiny", "tiny")])
    axes = compare_figures.rates(rows).axes[0]
    assert sum(len(line.get_xdata()) == 1 for line in axes.lines) == len(PUBLISHED) + 2
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "qwen3"
    assert len(names) == len(set(names))
    assert not axes.texts
    cosine = {"a": cosines(6), "b": np.full((6, 6), np.nan), "c": cosines(6)}
    figure = compare_figures.heatmaps(cosine)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]


def test_the_name_of_a_far_folder_is_broken_into_lines_and_loses_no_letter():
    name = "/home/someone/models/a-folder/of-a-long-name_indeed-with-more"
    [axes] = compare_figures.rates(comparison.table([measured(name, name)])).axes
    panel = compare_figures.heatmaps({name: cosines(6)}).axes[0]
    for text in (axes.get_yticklabels()[0].get_text(), panel.get_title()):
        assert text.replace("\n", "") == name
        assert max(map(len, text.split("\n"))) <= compare_figures.LINE


def test_an_untestable_rate_is_hollow_and_what_has_no_rate_is_named_beside_its_line():
    none = {"verdict": "UNTESTABLE", "reasons": ["few refusals"], "best": None}
    models = [untestable(), Measured("gone", "gone", failed="gated"), measured("b", "b")]
    rows = comparison.table([*models, measured("none", "none", sweep=none)])
    figure = compare_figures.rates(rows)
    [axes] = figure.axes
    hollow = [x for x in axes.lines if x.get_markerfacecolor() == "white"]
    [label] = {line.get_label() for line in hollow}
    assert len(hollow) == 1
    assert label == "this run: UNTESTABLE"
    assert label in [text.get_text() for text in figure.legends[0].get_texts()]
    lines = {
        x.get_text(): y for x, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    said = {text.get_text(): text.get_position()[1] for text in axes.texts}
    wanted = {"this run: FAILED": lines["gone"], "this run: UNTESTABLE": lines["none"]}
    assert said == wanted


def test_every_source_has_a_look_and_a_method():
    of_sources = {row.study for row in PUBLISHED}
    assert of_sources == {CROSS_MODEL, PIPELINE}
    assert {(row.study, row.judge) for row in PUBLISHED} < set(compare_figures.LOOKS)
    assert len(comparison.method_rows()) == 1 + len(of_sources)
    assert "peak" not in " ".join(compare_page.HEAD)  # it is one of one study's rates alone
