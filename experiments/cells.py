"""What a table's cell says of a number: empty where nothing was measured, a rate with its interval
and n. Shared by the console's tables and the report's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from refusal_nn.agreement import controls_rate, kappa_in_words
from refusal_nn.estimates import Estimate
from refusal_nn.files import read_csv

Row = Mapping[str, object]
Rows = Sequence[Row]
Table = tuple[tuple[str, ...], list[tuple[object, ...]]]
EMPTY, NOT_MEASURED = ("", None), "not measured"


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV, with the numbers that read_csv leaves as text."""
    odd = {"nan": float("nan"), "inf": float("inf")}
    return [{k: odd.get(v, v) for k, v in row.items()} for row in read_csv(path)]


def number_cells(row: Row, **formats: str) -> list[str]:
    """The named cells in their formats, empty where nothing was measured."""
    cells = ["" if row[k] in EMPTY else format(row[k], how) for k, how in formats.items()]
    return [cell.replace("%", " %") for cell in cells]


def estimate_of(row: Row, name: str, limits: str = "") -> Estimate | None:
    """A column with its interval, `limits` or else `name` _low and _high; None where empty."""
    if row.get(name) in EMPTY:
        return None
    low, high = (row[f"{limits or name}_{end}"] for end in ("low", "high"))
    return Estimate(row[name], low, high, row.get("n", 0))


def rate_cell(row: Row, name: str, unit: str = "%") -> str:
    """As `79 % [70, 86] (n=100)`; unit: points, for a difference of rates."""
    found = estimate_of(row, name)
    return found.percent().replace("%", unit) if found else ""


def controls_cell(mean: object, prompts: int) -> str:
    """The mean rate under random directions or subspaces, as a rate; n counts prompts."""
    return "" if mean in EMPTY else controls_rate(mean, prompts).percent()


def estimate_cell(found: Row | None) -> str:
    return str(Estimate(**found)) if found else NOT_MEASURED


def kappa_cell(found: Row) -> str:
    return kappa_in_words(Estimate(**found))


def position_cell(row: Row) -> str:
    return f"{row['pos']} {str(row['token'])!r}"
