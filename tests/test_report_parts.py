"""Parts of the report, from results written for the purpose: the answer to each verdict, the
command to reproduce, the calibration."""

import argparse
import re
import sys
from pathlib import Path

import pytest

from experiments import printed, report, report_answer, report_frame, report_origin
from experiments.report_origin import Finished
from experiments.report_sections import Material
from refusal_nn import calibration, verdicts
from refusal_nn.errors import InputError
from refusal_nn.estimates import wilson
from refusal_nn.files import write_csv, write_json
from refusal_nn.report import Page, Picture, Section, Table, Words, render
from refusal_nn.runs import Stage

ARGS = argparse.Namespace(model="it's", results=Path("results"), figures=Path("figures"))


def swept(successes, kl=0.01):
    """A sweep of 100 refused prompts, as its summary has it."""
    rate, over = wilson(successes, 100), wilson(successes, 100)
    asked = {"baseline_refusal": wilson(100, 100), "refused": 100}
    found = verdicts.single_direction(rate, **asked, kl=kl, over_controls=over)
    test = {"compliance": rate._asdict(), "controls_compliance": 0.04, "controls": 20, "kl": kl}
    test |= {"over_controls": over._asdict(), "controls_n": 2000}
    best = {"layer": 7, "pos": -1, "alpha": 1.0}
    return found._asdict() | {"best": best, "test": test}


@pytest.mark.parametrize(
    ("successes", "kl", "verdict", "tone"),
    [
        (95, 0.01, "YES", "yes"),
        (55, 0.01, "PARTIAL", "part"),
        (5, 0.01, "NO", "no"),
        (95, 0.5, "UNDETERMINED", "open"),
        (70, 0.01, "UNDETERMINED", "open"),
    ],
)
def test_the_answer_is_the_verdict_with_its_numbers(successes, kl, verdict, tone):
    stages = {"sweep": Finished(Path("x"), swept(successes, kl), {})}
    answer = report_answer.answer("a", stages, [])
    assert answer.verdict.startswith(f"{verdict}: ")
    assert answer.tone == tone
    assert any(f"{wilson(successes, 100).percent()} of the harmful" in x for x in answer.lines)
    why = [line for line in answer.lines if line.startswith("Why: ")]
    assert bool(why) == (verdict == "UNDETERMINED")
    assert not why or kl < 0.1 or "gate failed" in why[0]


def ranked(folder, single, rank, **found):
    """A subspace stage's verdict on the rank, beside that on the single direction."""
    found = {"verdict": "RANK", "rank": rank, "label": f"rank {rank} [1, 3]", "reasons": []} | found
    write_json(folder / "verdict.json", {"rank": found, "single_direction": {"verdict": single}})
    return Finished(folder, {}, {})


@pytest.mark.parametrize(
    ("single", "rank", "beside"), [("YES", 2, True), ("YES", 1, False), ("NO", 2, False)]
)
def test_a_rank_above_one_beside_a_yes_is_said_to_be_of_its_basis(tmp_path, single, rank, beside):
    stages = {"subspace": ranked(tmp_path, single, rank)}
    [line] = report_answer.answer("a", stages, []).lines
    assert line.startswith(f"How many dimensions? Rank {rank} [1, 3] (95 % interval): with that")
    assert ("the single direction is enough by itself" in line) is beside
    assert "no fewer" not in line


def test_every_verdict_of_the_rule_has_a_meaning():
    names = ("YES", "PARTIAL", "NO", "UNDETERMINED", "UNTESTABLE")
    assert set(report_answer.MEANING) == {*(getattr(verdicts, name) for name in names), None}


def test_the_command_is_quoted_for_a_shell_and_says_only_what_is_unusual():
    usual = {"n": 320, "seed": 0, "alpha": [1.0], "prompts": "bundled", "keep_text": False}
    usual |= {"permutations": 1000, "layers": "", "folds": 5, "model_file": None}
    assert report_origin.command("all", ARGS, usual) == "make all MODEL='it'\"'\"'s'"
    asked = usual | {"alpha": [0.75, 1.0], "prompts": "a b.csv", "keep_text": True, "seed": 3}
    made = report_origin.command("sweep", ARGS, asked)
    none = report_origin.command("sweep", ARGS, usual | {"system": "none"})
    assert none == "make sweep MODEL='it'\"'\"'s' SYSTEM=none"
    wanted = "make sweep MODEL='it'\"'\"'s' SEED=3 PROMPTS='a b.csv' ALPHA=0.75,1 KEEP_TEXT=1"
    assert made == wanted


def test_a_setting_that_stages_disagree_on_is_named_and_others_are_not():
    def stage(**settings):
        return Finished(Path("x"), {}, {"settings": settings})

    stages = {"capture": stage(n=40, seed=0), "sweep": stage(n=80, seed=0), "causal": stage(n=80)}
    assert report_origin.conflicts(stages) == [
        "n differs between stages: 40 in capture; 80 in sweep, causal"
    ]
    assert report_origin.settings(stages) == {"n": 80, "seed": 0}


def test_stages_of_two_system_prompts_are_warned_of_before_anything_else():
    def stage(system, **about):
        return Finished(Path("x"), about, {"settings": {"system": system, "layers": system}})

    stages = {"select": stage("none"), "sweep": stage("default", **swept(95))}
    differing = report_origin.conflicts(stages, report_origin.SUBJECT)
    assert differing == ["system differs between stages: none in select; default in sweep"]
    first = report_answer.answer("a", stages, [], differing).lines[0]
    assert first == f"Caution, these stages are not of one run: {differing[0]}."


def test_what_stands_beside_random_directions_has_its_n_and_its_interval():
    stages = {"sweep": Finished(Path("x"), swept(95), {})}
    [table] = [b for b in report_frame.controls(Material(stages, Path(), {})) if hasattr(b, "rows")]
    [(_, measured, random, difference)] = table.rows
    assert measured == wilson(95, 100).percent()
    assert random == f"{wilson(4, 100).percent()}, 2000 completions"
    assert difference == "95 [89, 98]"
    said = " ".join(report_answer.answer("a", stages, []).lines)
    random = wilson(4, 100).percent()
    assert f"random directions {random} on average, a difference of 95 points" in said


def test_what_an_older_version_did_not_count_is_left_out():
    about = swept(95)
    del about["test"]["controls_n"]
    of = Material({"sweep": Finished(Path("x"), about, {})}, Path(), {})
    [table] = [b for b in report_frame.controls(of) if hasattr(b, "rows")]
    assert table.rows[0][2] == wilson(4, 100).percent()


def test_a_section_of_results_that_lack_a_number_says_so_in_its_place():
    def section():
        yield Words(["some"])
        raise KeyError("kl")

    [said] = report._shown(section())
    assert "an older version, which did not write 'kl'" in said.lines[0]


def test_a_control_is_said_only_of_stages_that_were_run():
    def said(**stages):
        of = {name: Finished(Path(name), about, {}) for name, about in stages.items()}
        lists = [
            b.lines for b in report_frame.controls(Material(of, Path(), {})) if hasattr(b, "lines")
        ]
        return [line.partition(":")[0] for lines in lists for line in lines]

    assert said(capture={}) == []
    assert said(validate={}) == ["Separation"]
    assert said(sweep={"verdict": "UNTESTABLE", "best": None}) == []
    assert said(validate={}, sweep=swept(95)) == ["Separation", "Directions", "Choice"]


def test_a_strength_other_than_one_and_another_system_prompt_are_said():
    about = swept(95)
    assert "strength" not in " ".join(
        report_answer.answer("a", {"sweep": Finished(Path(), about, {})}, []).lines
    )
    about["best"]["alpha"] = 1.25
    lines = report_answer.answer("a", {"sweep": Finished(Path(), about, {})}, []).lines
    assert any("ablated at strength 1.25, the model" in line for line in lines)
    stage = Finished(Path(), {}, {"settings": {"system": "none"}})
    [limits] = report_frame.limits(Material({"sweep": stage}, Path(), {}))
    assert limits.lines[0] == "The system prompt was not the template's own: SYSTEM=none."


def test_a_rate_and_its_interval_stay_on_one_line():
    line = "at 79 % [70, 86] (n=100), 9 points [-4, 21] (n=9), KL 0.1 nats, rank 5 [4, >8] of it"
    section = Section("x", [Words([line])])
    html = render(Page("x", report_answer.Answer("?", "x", "open", [], []), [section]))
    [shown] = re.findall(r"<p>(at 79.*)</p>", html)
    whole = ["79 % [70, 86] (n=100),", "9 points [-4, 21] (n=9),", "0.1 nats,", "5 [4, &gt;8]"]
    words = shown.split(" ")
    assert all(part.replace(" ", "\N{NO-BREAK SPACE}") in words for part in whole)


@pytest.mark.parametrize("mark", ["", "+"])
def test_a_commit_is_short_and_keeps_the_mark_of_a_modified_tree(mark):
    manifest = {"finished": "x", "wall_seconds": 1, "git_commit": "c" * 40 + mark}
    manifest |= {"packages": {"refusal_nn": "9"}, "sha256": {}, "settings": {}}
    of = Material({"capture": Finished(Path("x"), {}, manifest)}, Path(), {})
    table = next(b for b in report_frame.reproduction(ARGS, of) if isinstance(b, Table))
    assert table.rows[0][-1] == "c" * 12 + mark
    cited, _ = report_frame.citation(of)
    assert any(f"git {'c' * 12}{mark}; model" in line for line in cited.lines)


def test_a_long_hash_is_short_in_the_table_and_whole_below_it():
    whole = f"sha256:{'b1' * 32} + adapter sha256:{'c2' * 32}"
    manifest = {"revision": whole, "finished": "x", "wall_seconds": 1, "git_commit": "c" * 40}
    manifest |= {"packages": {}, "sha256": {}, "settings": {}}
    of = Material({"capture": Finished(Path("x"), {}, manifest)}, Path(), {})
    blocks = list(report_frame.reproduction(ARGS, of))
    [row] = next(b for b in blocks if isinstance(b, Table)).rows
    assert row[2] == "sha256:b1b1b1b1b1b1… + adapter sha256:c2c2c2c2c2c2…"
    assert max(len(word) for cell in row for word in str(cell).split()) <= 24
    assert ("capture: revision", whole) in blocks[-1].blocks[1].rows


def test_a_rank_correlation_with_severities_that_no_prompt_has_is_no_number():
    layers = dict.fromkeys(("valid", "valid_in_sample", "layers", "d_first", "d_peak", "d_last"), 1)
    layers |= {"peak_layer": 1, "reading": "two groups within harmful"}
    layers |= {key: [] for key in ("harmful_below_midpoint", "harmless_above_midpoint")}
    rules = ("overlap_count", "overlap_range", "overlap_range_crossfit")
    layers |= {rule: {"first_layer": None} for rule in rules}

    def said(**rho):
        about = {"findings": dict.fromkeys("12345", layers | {"spearman_severity": rho})}
        return printed.in_words(about, {"adjusted_cosine_at_peak": 1.0})[2]

    none = said(value=0.0, low=-1.0, high=1.0, n=0)
    assert none == "3 gradient: two groups within harmful; Spearman with severity not measured"
    assert said(value=0.26, low=0.1, high=0.4, n=160).endswith("severity 0.26 [0.10, 0.40] (n=160)")


def test_calibration_shows_what_was_planted_and_what_was_reported(tmp_path):
    found = {"kind": "analytic", "seed": 0, "verdict": "RANK", "low": 2, "high": 2, "single": "NO"}
    rows = [found | {"planted": "2", "rank": k} for k in (2, 2, 3)]
    tables = {"confusion": calibration.confusion(rows), "summary": calibration.summary(rows)}
    for name, table in tables.items():
        write_csv(tmp_path / f"{name}.csv", list(table))
    write_json(tmp_path / "summary.json", {})
    done = Finished(tmp_path, {"missed": ["a bar"]}, {})
    of = Material({"calibrate": done}, tmp_path, {"calibrate": "make calibrate"})
    blocks = list(report_frame.calibration(done, of))
    tables = [block for block in blocks if isinstance(block, Table)]
    assert tables[0].rows == [(2, 3, "2 (67 %)", "1 (33 %)")]
    assert any("67 % [21, 94] (n=3)" in row for row in tables[1].rows)
    assert not any(isinstance(block, Picture) for block in blocks)
    assert blocks[-1].lines == ["Not as required: a bar"]


def test_a_page_about_nothing_is_refused_with_the_command_to_begin_with(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", "--model=it's", f"--results={tmp_path}"])
    with pytest.raises(InputError, match=r"no finished stage .* `make all MODEL='it'\"'\"'s' "):
        report.main()
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_was_begun_and_not_finished_is_none(tmp_path):
    with Stage(tmp_path).run({}):
        assert report_origin.finished(tmp_path) is None
