"""The subspace stage and its calibration as a person reads them, from the saved files: no prompt,
no completion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments import console
from experiments.cells import (
    EMPTY,
    Row,
    Rows,
    Table,
    estimate_of,
    number_cells,
    rate_cell,
    read_rows,
)
from refusal_nn.estimates import Estimate
from refusal_nn.files import read_json
from refusal_nn.verdicts import UNTESTABLE, YES_FROM

PLACE = ("construction", "layer")


def show_subspace(folder: Path, figures: Path) -> None:
    """Print compliance by rank on test, what each construction does on val, and both verdicts."""
    about, curve = read_json(folder / "verdict.json"), folder / "rank_curve.csv"
    found = about["rank"]
    if found["verdict"] == UNTESTABLE and not curve.is_file():
        return console.say(f"{UNTESTABLE}:", *found["reasons"], f"wrote {folder} ({UNTESTABLE})")
    rows, place = read_rows(curve), place_of(about)
    test = [row for row in rows if row["split"] == "test" and place_of(row) == place]
    val = [row for row in rows if row["split"] == "val"]
    where = f"{place[0]} {place[1]}".strip() + f", pos {about['pos']}"
    if test:
        console.table(f"{about['model']}: {where}, on test", *rank_table(test, found))
    title = f"{about['model']}: constructions, on val"
    console.table(title, *construction_table(val, read_rows(folder / "spectrum.csv"), place))
    console.say(*_verdict("Single direction", about["single_direction"]), *_verdict("Rank", found))
    console.say(f"wrote {folder} ({len(test)} ranks, {where}) and {figures}")


def place_of(row: Row) -> tuple[object, ...]:
    """Construction and layer, empty for one of all layers."""
    return tuple("" if row[k] is None else row[k] for k in PLACE)


def _verdict(name: str, found: Row) -> list[str]:
    """As `Rank, verdict v1: RANK, rank 2 [2, 3]`, then the reasons."""
    verdict, label = found["verdict"], found.get("label", "")
    more = f", {label}" if label.lower() not in ("", verdict.lower()) else ""
    return [f"{name}, verdict v{found['version']}: {verdict}{more}", *found["reasons"]]


def rank_table(rows: Rows, found: Row) -> Table:
    columns = ("k", "compliance [95 %]", "over k - 1 [95 %]", "over random [95 %]")
    cells = [
        (
            r["rank"],
            rate_cell(r, "compliance"),
            *(rate_cell(r, name, "points") for name in ("increment", "over_controls")),
            rate_cell(r, "coherence"),
            *number_cells(r, kl=".3f"),
            "rank" * (r["rank"] == found["rank"]),
        )
        for r in sorted(rows, key=lambda row: row["rank"])
    ]
    return (*columns, "coherence [95 %]", "KL (nats)", "mark"), cells


def construction_table(rows: Rows, spectrum: Rows, chosen: tuple[object, ...]) -> Table:
    """A row per place on val, then one per spectrum of which no place was tried."""
    effective = {place_of(row): row["effective_rank"] for row in spectrum}
    places = dict.fromkeys([*map(place_of, rows), *effective])
    cells = [
        (
            *place,
            *number_cells({"rank": effective.get(place)}, rank=".1f"),
            _least_rank([row for row in rows if place_of(row) == place]),
            "chosen" * (place == chosen),
        )
        for place in places
    ]
    return (*PLACE, "effective rank", "smallest k by rate", "mark"), cells


def _least_rank(rows: Rows) -> object:
    """The smallest rank whose compliance has a lower limit that the rule accepts, - without one."""
    found = [(r["rank"], estimate_of(r, "compliance")) for r in rows]
    return min((k for k, rate in found if rate and rate.low >= YES_FROM), default="-")


def show_calibration(folder: Path, figures: Path) -> None:
    """Print what was reported of models whose rank was planted, and the rates beside their bars."""
    rows, rates = (read_rows(folder / f"{name}.csv") for name in ("confusion", "summary"))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        console.table(f"{kind}: reported rank by planted rank", *confusion_table(mine))
    console.table("rates over planted models", *rates_table(rates))
    models = sum({(row["kind"], row["planted"]): row["n"] or 0 for row in rows}.values())
    console.say(f"wrote {folder} ({models} models, {len(rates)} rates) and {figures}")


def confusion_table(rows: Rows) -> Table:
    from refusal_nn.subspace_figures import outcomes

    columns = outcomes(rows)
    planted = {row["planted"]: row["n"] or 0 for row in rows}
    of = {(row["planted"], row["reported"]): row["count"] or 0 for row in rows}
    cells = [
        (name, n, *(_share(of.get((name, column), 0), n) for column in columns))
        for name, n in planted.items()
    ]
    return ("planted", "n", *columns), cells


def _share(count: int, n: int) -> str:
    """As `19 (95 %)`, empty for none."""
    return f"{count} ({100 * count / n:.0f} %)" if count else ""


def rates_table(rows: Rows) -> Table:
    names = ("kind", "planted", "quantity")
    cells = [(*(r[k] for k in names), _interval(r), *number_cells(r, bar=".0%")) for r in rows]
    return (*names, "rate [95 %]", "required"), cells


def _interval(row: Row) -> str:
    limits: Sequence[object] = [row[k] for k in ("value", "low", "high")]
    if any(limit in EMPTY for limit in limits):
        return ""
    return Estimate(*limits, row["n"]).percent()
