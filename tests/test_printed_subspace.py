"""What the subspace stage and its calibration print: the saved numbers, with n and interval, and
the verdicts with their reasons."""

import pytest

from experiments import printed_subspace
from refusal_nn.files import write_csv, write_json

PLACE = {"construction": "prompts", "layer": 12}
ONE = {"verdict": "NO", "reasons": ["by [rate] 40 %"], "version": "1"}
RANK = {"verdict": "RANK", "rank": 2, "low": 2, "high": 3, "up_to": 8, "label": "rank 2 [2, 3]"}
RANK |= {"reasons": ["C_2 [first]", "gate passed"], "version": "1"}


def rate(name, value, half=0.1):
    if value == "":
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), "")
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def ablated(k, compliance, split="val", **changes):
    row = {"split": split, **PLACE, "rank": k, "n": 60} | rate("compliance", compliance)
    row |= rate("coherence", 0.9) | {"kl": 0.0123 * k} | rate("increment", 0.3)
    over = 0.6 if split == "test" else ""
    return row | rate("over_controls", over) | changes


def spectrum(construction, effective, layer=12):
    about = {"construction": construction, "layer": layer, "noise": ""}
    return [about | {"component": i, "effective_rank": effective} for i in (1, 2)]


def finished(folder, rows, layer=12, **changes):
    """A stage's folder, with the verdict's rank changed."""
    place = PLACE | {"layer": layer, "pos": -1}
    about = {"model": "m", **place, "single_direction": ONE, "rank": RANK | changes}
    write_json(folder / "verdict.json", about)
    if rows:
        write_csv(folder / "rank_curve.csv", rows)
        of = [*spectrum("prompts", 2.345), *spectrum("clusters", ""), *spectrum("layers", 1.5)]
        write_csv(folder / "spectrum.csv", of)


@pytest.fixture
def printed(tmp_path, capsys):
    """What a show function prints of the folder, as lines stripped of blanks at the ends."""

    def lines(show):
        show(tmp_path, "figures/m")
        return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return lines


def rows_of(lines, start):
    """Cells of the table rows that start so, two blanks or more apart."""
    found = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return [cells for cells in found if cells[0] == start]


def test_every_rank_on_test_is_a_row_in_order_and_the_verdicts_is_marked(tmp_path, printed):
    test = [ablated(k, 0.3 * k, "test") for k in (2, 1)]
    # Of another place, so of no concern to the verdict.
    test.append(ablated(3, 0.8, "test", construction="layers"))
    finished(tmp_path, [*test, ablated(1, 0.5)])
    lines = printed(printed_subspace.show_subspace)
    assert lines[0] == "m: prompts 12, pos -1, on test"
    rest = ["30 points [20, 40] (n=60)", "60 points [50, 70] (n=60)", "90 % [80, 100] (n=60)"]
    (one,), (two,) = rows_of(lines, "1"), rows_of(lines, "2")
    assert one == ["1", "30 % [20, 40] (n=60)", *rest, "0.012"]
    assert two == ["2", "60 % [50, 70] (n=60)", *rest, "0.025", "rank"]
    assert [line[0] for line in lines if line[:2] in ("1 ", "2 ", "3 ")] == ["1", "2"]
    where = "2 ranks, prompts 12, pos -1"
    assert lines[-1] == f"wrote {tmp_path} ({where}) and figures/m"


def test_every_construction_on_val_has_its_effective_rank_and_the_smallest_rank_that_passes(
    tmp_path, printed
):
    # At rank 2 the lower limit is .69: below what the rule asks.
    rows = [ablated(k, value) for k, value in ((1, 0.5), (2, 0.79), (4, 0.9), (3, 0.85))]
    rows += [ablated(k, value, construction="clusters") for k, value in ((1, 0.5), (2, ""))]
    rows += [ablated(1, 0.8, construction="clusters", layer=13)]
    finished(tmp_path, rows)
    lines = printed(printed_subspace.show_subspace)
    assert rows_of(lines, "prompts") == [["prompts", "12", "2.3", "3", "chosen"]]
    expected = [["clusters", "12", "-"], ["clusters", "13", "1"]]
    assert rows_of(lines, "clusters") == expected
    assert rows_of(lines, "layers") == [["layers", "12", "1.5", "-"]]


def test_a_basis_of_all_layers_has_no_layer(tmp_path, printed):
    finished(tmp_path, [ablated(1, 0.8, split, layer="") for split in ("test", "val")], layer=None)
    lines = printed(printed_subspace.show_subspace)
    assert lines[0] == "m: prompts, pos -1, on test"
    assert rows_of(lines, "prompts") == [["prompts", "1", "chosen"], ["prompts", "12", "2.3", "-"]]
    assert "(1 ranks, prompts, pos -1)" in lines[-1]


def test_both_verdicts_are_followed_by_their_reasons_brackets_and_all(tmp_path, printed):
    finished(tmp_path, [ablated(1, 0.5, "test")])
    lines = printed(printed_subspace.show_subspace)
    one = ["Single direction, verdict v1: NO", "by [rate] 40 %"]
    rank = ["Rank, verdict v1: RANK, rank 2 [2, 3]", "C_2 [first]", "gate passed"]
    assert lines[-6:-1] == [*one, *rank]


@pytest.mark.parametrize(
    ("verdict", "label", "shown"),
    [
        ("UNDETERMINED", "undetermined", "UNDETERMINED"),
        ("UNTESTABLE", "untestable", "UNTESTABLE"),
        ("NOT LINEARLY ACCESSIBLE", "none up to 8", "NOT LINEARLY ACCESSIBLE, none up to 8"),
    ],
)
def test_without_a_rank_or_test_rows_the_rest_is_printed_all_the_same(
    verdict, label, shown, tmp_path, printed
):
    finished(tmp_path, [ablated(1, 0.5)], verdict=verdict, label=label, rank=None)
    lines = printed(printed_subspace.show_subspace)
    assert f"Rank, verdict v1: {shown}" in lines
    assert lines[0] == "m: constructions, on val"
    assert "(0 ranks," in lines[-1]


def test_a_stage_that_could_test_nothing_says_only_why(tmp_path, printed):
    finished(tmp_path, [], verdict="UNTESTABLE", rank=None, reasons=["3 refused [few]"])
    lines = printed(printed_subspace.show_subspace)
    assert lines == ["UNTESTABLE:", "3 refused [few]", f"wrote {tmp_path} (UNTESTABLE)"]


def test_a_verdict_without_its_curve_is_no_result(tmp_path, printed):
    finished(tmp_path, [])
    with pytest.raises(FileNotFoundError):
        printed(printed_subspace.show_subspace)


def reported(kind, planted, n, **counts):
    about = {"kind": kind, "planted": planted, "n": n}
    return [about | {"reported": k.replace("_", " "), "count": c} for k, c in counts.items()]


def test_calibration_shows_counts_with_shares_and_rates_beside_what_is_required(tmp_path, printed):
    rows = [
        *reported("analytic", 2, 20, rank_2=19, rank_10=1),
        *reported("analytic", 0, 3, UNTESTABLE=3),
    ]
    rows += reported("organism", "many", 4, not_accessible=3, UNDETERMINED=1)
    write_csv(tmp_path / "confusion.csv", rows)
    about = {"kind": "analytic", "planted": 2, "quantity": "rank [exact]"}
    found = {"value": 0.95, "low": 0.76, "high": 0.99, "n": 20, "bar": 0.9}
    gone = dict.fromkeys(("value", "low", "high", "bar"), "")
    other = about | {"planted": "many", "n": 0} | gone
    write_csv(tmp_path / "summary.csv", [about | found, other])
    lines = printed(printed_subspace.show_calibration)
    header = ["planted", "n", "UNTESTABLE", "rank 2", "rank 10"]
    organism = ["planted", "n", "not accessible", "UNDETERMINED"]
    assert rows_of(lines, "planted") == [header, organism]
    assert rows_of(lines, "2") == [["2", "20", "19 (95 %)", "1 (5 %)"]]
    assert rows_of(lines, "0") == [["0", "3", "3 (100 %)"]]
    assert rows_of(lines, "many") == [["many", "4", "3 (75 %)", "1 (25 %)"]]
    exact = ["analytic", "2", "rank [exact]", "95 % [76, 99] (n=20)", "90 %"]
    assert rows_of(lines, "analytic") == [exact, ["analytic", "many", "rank [exact]"]]
    assert lines[-1] == f"wrote {tmp_path} (27 models, 2 rates) and figures/m"
