"""The cross-model table: ours beside theirs, equal depth beside equal depth, text kept as text."""

import json
import re
import sys

import numpy as np
import pytest
from test_make import make

from experiments import compare, subspace
from refusal_nn import compare_figures, compare_page, comparison
from refusal_nn.comparison import FAILED, OURS, Measured
from refusal_nn.errors import Incomplete
from refusal_nn.estimates import wilson
from refusal_nn.files import read_csv, read_json, write_csv
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


def test_every_number_of_ours_keeps_the_n_that_it_rests_on():
    made = measured()
    # A judge model that gave no readable label in 19 of 60.
    made.sweep["test"]["compliance_by_model"] = wilson(40, 41)._asdict()
    [row] = [row for row in comparison.table([made]) if row["source"] == OURS]
    assert (row["judge"], row["second_compliance_n"]) == ("rules; judge model", 41)
    page = compare_page.page([row], [], "make compare")
    [line] = [x for x in page.splitlines() if x.startswith("| qwen3 | 3, -1, 1.0")]
    cells = [cell.replace("\\", "").strip() for cell in re.split(r"(?<!\\)\|", line)]
    wanted = [wilson(40, 41).percent(), "0.90 [0.80, 1.00] (n=60)", wilson(60, 65).percent()]
    assert cells[3:6] == wanted


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
    cosine = {"a": cosines(6), "b": np.full((6, 6), np.nan), "c": cosines(6)}
    figure = compare_figures.heatmaps(cosine)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]


def test_every_source_has_a_look_and_a_method():
    of_sources = {row.study for row in PUBLISHED}
    assert of_sources == {CROSS_MODEL, PIPELINE}
    assert {(row.study, row.judge) for row in PUBLISHED} < set(compare_figures.LOOKS)
    assert len(comparison.method_rows()) == 1 + len(of_sources)


def test_finished_stages_become_a_row_and_other_settings_do_not(tmp_path, monkeypatch, capsys):
    folders = ["--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]
    options = [*folders, "--n", "40", "--dtype", "float32", "--device", "cpu", "--tokens", "2"]

    def run(module, *more):
        monkeypatch.setattr(sys, "argv", ["x", *options, *more])
        module.main()

    run(subspace, "--model", "tiny-llama")
    from experiments import similarity, sweep

    monkeypatch.setattr(sys, "argv", ["x", *options[:-2], "--model", "tiny-llama"])
    similarity.main()
    run(sweep, "--model", "tiny-llama")
    run(compare, "--models", "tiny-llama")
    run(compare, "--models", "tiny-llama", "--draw")
    run(compare, "--models", "tiny-llama", "--show")
    rows = read_csv(tmp_path / "results" / "compare" / "compare.csv")
    assert (rows[0]["model"], rows[0]["verdict"]) == ("tiny-llama", "UNTESTABLE")
    assert isinstance(rows[0]["late_half_cosine"], float)
    assert (tmp_path / "figures" / "compare" / "heatmaps.png").stat().st_size > 1000
    assert "Two modes: TOO FEW" in capsys.readouterr().out
    page = (tmp_path / "results" / "compare" / "compare.md").read_text()
    command = "make compare MODELS=tiny-llama N=40 DTYPE=float32 DEVICE=cpu TOKENS=2 RESULTS="
    assert f"Made by `{command}{tmp_path}/results`" in page
    run(compare, "--models", "tiny-llama", "--seed", "7")
    with pytest.raises(Incomplete, match=r"^1 of 1 models failed: tiny-llama; the table is of"):
        run(compare, "--models", "tiny-llama", "--seed", "7", "--show")
    [row] = [r for r in read_csv(tmp_path / "results/compare/compare.csv") if r["source"] == OURS]
    assert row["verdict"] == FAILED
    assert 'make compare MODELS="tiny-llama"' in row["notes"]


def test_make_builds_each_chain_and_says_why_one_failed(tmp_path):
    done = make("compare", tmp_path / "results", MODELS="nosuch organism-77")
    assert done.returncode == 2
    assert "error: 2 of 2 models failed: nosuch, organism-77; the table is of" in done.stderr
    assert "Error 9" in done.stderr
    assert "nosuch failed: unknown model 'nosuch'" in done.stdout
    rows = read_csv(tmp_path / "results" / "compare" / "compare.csv")[:2]
    assert [row["verdict"] for row in rows] == [FAILED, FAILED]
    assert rows[0]["notes"].startswith("unknown model 'nosuch'; choose one of smollm2")
    assert rows[1]["notes"].startswith("organism-77 is not bundled")
    assert "going on without nosuch" in done.stderr
    page = (tmp_path / "results" / "compare" / "compare.md").read_text()
    assert page.index("Two modes") < page.index("| model |")
    summary = read_json(tmp_path / "results" / "compare" / "summary.json")
    assert summary["modes"][CROSS_MODEL]["verdict"] == "TWO MODES"
    assert json.dumps(summary).isascii()
