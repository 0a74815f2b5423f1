"""Calibration: its tables say what the rows say, and a finished model is not run again."""

import json

import pytest

from experiments import calibrate, causes, console, subspace
from refusal_nn import calibration, files, verdicts
from refusal_nn.errors import InputError


def verdict(single="NO", rank=2, low=2, high=2, said="RANK", angles=(4.0, 12.0)):
    label = f"rank {rank} [{low}, {high}]" if said == "RANK" else said.lower()
    found = {"verdict": said, "rank": rank, "low": low, "high": high, "up_to": 5, "label": label}
    known = {"angles": list(angles), "direction_angle": [36.0]} if angles else {}
    return {
        "single_direction": {"verdict": single},
        "rank": found,
        "construction": "prompts",
        "layer": 3,
        "planted": known,
    }


UNTESTABLE = {
    "single_direction": {"verdict": "UNTESTABLE"},
    "rank": {"verdict": "UNTESTABLE", "rank": None, "up_to": 5, "label": "untestable"},
}
NOT_ACCESSIBLE = verdict(rank=None, low=6, high=6, said="NOT LINEARLY ACCESSIBLE")


def rows(planted, verdicts, kind=calibration.ANALYTIC):
    return [calibration.row(kind, planted, seed, one, 9.5) for seed, one in enumerate(verdicts)]


def rates(rows):
    return {(r["planted"], r["quantity"]): r for r in calibration.summary(rows)}


def test_a_row_says_what_was_planted_and_what_was_found():
    (row,) = rows("2", [verdict(rank=3, low=2, high=4)])
    assert (row["planted"], row["seconds"]) == ("2", 9.5)
    assert (row["rank"], row["low"], row["high"], row["label"]) == (3, 2, 4, "rank 3 [2, 4]")
    assert (row["angle_mean"], row["angle_max"], row["direction_angle"]) == (8.0, 12.0, 36.0)
    assert (row["construction"], row["layer"]) == ("prompts", 3)


@pytest.mark.parametrize(("k", "name"), [(0, "0"), (5, "5"), (6, "many"), (12, "many")])
def test_more_than_is_looked_for_is_many(k, name):
    assert calibrate.planted(k) == name


def test_an_untestable_model_has_no_rank_and_no_angle():
    (row,) = rows("0", [UNTESTABLE])
    names = ("rank", "low", "high", "construction", "angle_mean", "angle_max", "direction_angle")
    assert [row[name] for name in names] == [None] * len(names)
    assert not list(calibration.angles([row]))


def test_the_confusion_table_counts_every_model_once():
    undetermined = verdict(rank=2, said="UNDETERMINED")
    two = rows("2", [verdict(), verdict(), verdict(rank=3), undetermined])
    given = [*rows("many", [NOT_ACCESSIBLE]), *two, *rows("0", [UNTESTABLE])]
    table = list(calibration.confusion(given))
    found = {(r["planted"], r["reported"]): (r["count"], r["n"]) for r in table}
    assert found == {
        ("0", "UNTESTABLE"): (1, 1),
        ("2", "rank 2"): (2, 4),
        ("2", "rank 3"): (1, 4),
        ("2", "UNDETERMINED"): (1, 4),
        ("many", "not accessible"): (1, 1),
    }
    assert [r["planted"] for r in table] == ["0", "2", "2", "2", "many"]


def test_a_rank_is_exact_only_where_the_verdict_stands_by_it():
    undetermined = verdict(rank=2, low=1, high=3, said="UNDETERMINED")
    given = rows("2", [verdict(), verdict(rank=3, low=2, high=4), verdict(rank=3, low=3, high=4)])
    found = rates([*given, *rows("2", [undetermined])])
    assert found["2", "rank exact"]["value"] == 1 / 4
    assert found["2", "interval covers"]["value"] == 3 / 4
    assert found["2", "interval covers"]["n"] == 4


def test_an_untestable_model_of_a_planted_rank_is_a_miss():
    found = rates(rows("2", [UNTESTABLE]))
    assert found["2", "rank exact"]["value"] == found["2", "interval covers"]["value"] == 0


def test_yes_is_right_for_one_direction_and_wrong_for_more():
    yes = verdict(single=verdicts.YES, rank=1, low=1, high=1)
    found = rates([*rows("1", [yes, yes]), *rows("2", [yes, verdict()])])
    assert found["1", "single YES"]["value"] == 1
    assert found["2", "single not YES"]["value"] == 1 / 2
    assert ("1", "single not YES") not in found


def test_false_positives_are_a_rank_for_many_and_any_verdict_for_none():
    yes = verdict(single=verdicts.YES, rank=None, said="UNDETERMINED")
    many = rows("many", [NOT_ACCESSIBLE, verdict(rank=5), yes, UNTESTABLE])
    found = rates([*many, *rows("0", [UNTESTABLE, NOT_ACCESSIBLE])])
    assert found["many", "false positive"]["value"] == found["0", "false positive"]["value"] == 0.5


def test_what_is_required_is_required_of_analytic_models_alone():
    wrong = [verdict(rank=3)] * 20
    of_both = [*rows("2", wrong), *rows("2", wrong, calibration.ORGANISM)]
    found = list(calibration.summary(of_both))
    assert {r["kind"]: r["bar"] for r in found} == {"analytic": 0.95, "organism": None}
    (exact,) = calibration.missed(found)
    assert exact.startswith("rank exact of analytic models of planted rank 2: 0 % [0, 16] (n=20)")
    assert calibration.missed(list(calibration.summary(rows("many", wrong))))[0].endswith(
        "5 % at most is required"
    )
    assert not calibration.missed(list(calibration.summary(rows("2", [verdict()] * 20))))


def test_the_median_lies_within_the_interval_that_its_order_statistics_give():
    found = calibration.median(range(1, 51))
    # Binomial(50, 1/2) is below 18 or above 32 with probability .033: the 18th and 33rd value.
    assert (found.value, found.low, found.high, found.n) == (25.5, 18, 33, 50)
    few = calibration.median([3.0, 1.0, 2.0])
    assert (few.value, few.low, few.high) == (2, 1, 3)


@pytest.mark.parametrize("words", ["--seeds 0", "--ranks two", "--ranks -1", "--tokens 9"])
def test_a_wrong_option_is_an_error(words):
    with pytest.raises(InputError):
        calibrate.parser().parse_args(words.split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Options of a finished run on two models without refusal and two that refuse through two
    directions, one organism's verdict beside them."""
    root = tmp_path_factory.mktemp("calibrate")
    with pytest.MonkeyPatch.context() as patch:
        small, few = {"controls": 1, "max_rank": 3, "val": 8}, causes.scary()[:4]
        patch.setattr(calibrate, "ECONOMY", calibrate.ECONOMY | small)
        patch.setattr(causes, "scary", lambda: few)
        words = f"--ranks 0,2 --seeds 2 --n 112 --results {root} --figures {root}/figures"
        args = calibrate.parser().parse_args(words.split())
        calibrate.compute(args)
        yield args


def table(args, name):
    return files.read_csv(args.results / "calibrate" / f"{name}.csv")


def test_the_planted_ranks_are_found_by_the_whole_chain(finished):
    found = table(finished, "calibration")
    assert [(r["planted"], r["seed"]) for r in found] == [(0, 0), (2, 0), (0, 1), (2, 1)]
    assert [r["verdict"] for r in found] == ["UNTESTABLE", "RANK"] * 2
    assert [r["rank"] for r in found[1::2]] == [2, 2]
    assert all(r["seconds"] > 0 for r in found)
    assert max(r["angle_max"] for r in found[1::2]) < 30
    assert files.read_json(finished.results / "calibrate" / "summary.json")["missed"] == []


def test_a_finished_model_is_not_run_again(finished, monkeypatch):
    before = table(finished, "calibration")
    monkeypatch.setattr(subspace, "compute", lambda args: pytest.fail("ran again"))
    calibrate.compute(finished)
    assert table(finished, "calibration") == before
    monkeypatch.setattr(subspace, "compute", lambda args: 1 / 0)
    finished.n += 1
    with pytest.raises(ZeroDivisionError):
        calibrate.compute(finished)
    finished.n -= 1
    assert not console.console.quiet


def test_a_finished_organism_is_read_and_none_is_computed(finished):
    for name, one in (("organism-0", UNTESTABLE), ("organism-many-3", NOT_ACCESSIBLE)):
        done = calibrate.cli.Stage(finished.results / name / "subspace")
        with done.run({}) as run:
            (run.folder / "verdict.json").write_text(json.dumps(one))
            run.finish({}, {})
    (finished.results / "organism-4" / "subspace").mkdir(parents=True)
    calibrate.compute(finished)
    found = [r for r in table(finished, "confusion") if r["kind"] == "organism"]
    assert [(r["planted"], r["reported"]) for r in found] == [
        (0, "UNTESTABLE"),
        ("many", "not accessible"),
    ]


def test_tables_and_figures_come_of_the_saved_files(finished, capsys):
    calibrate.draw(finished)
    for name in ("confusion.png", "calibration.png", "calibrate.json"):
        assert (finished.figures / "calibrate" / name).stat().st_size > 0
    calibrate.show(finished)
    shown = capsys.readouterr().out
    assert "UNTESTABLE" in shown
    assert "median, degrees" in shown
