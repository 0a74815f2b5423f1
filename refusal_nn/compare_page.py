"""The comparison as one Markdown page: what was found first, then every row, then what differs in
method. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal_nn import modes
from refusal_nn.agreement import kappa_in_words
from refusal_nn.comparison import FAILED, OURS, differences, method_rows, rate_of
from refusal_nn.estimates import Estimate
from refusal_nn.plain_text import visible

Row = Mapping[str, object]
# Of the one study a peak over layers, of ours and the other's not.
HEAD = ("model", "source", "single direction sufficient?", "compliance under one direction [95 %]")
HEAD += ("judge",)
OURS_HEAD = ("model", "place", "second judge [95 %]", "kappa [95 %]", "refused untouched [95 %]")
MARKS = frozenset("\\`*_|<>[]")
OURS_HEAD += ("KL (nats)", "over random directions [95 %]", "rank", "late-half cosine", "rule")


def page(rows: Sequence[Row], statements: Sequence[str], command: str) -> str:
    """Markdown; what comes from outside stands in cells or in a block of code, and cannot break
    out."""
    ours = [row for row in rows if row["source"] == OURS and row["verdict"] != FAILED]
    failed = [row for row in rows if row["verdict"] == FAILED]
    parts = ["# Refusal across models", *statements]
    parts += [_table((*HEAD, "notes"), [line(row) for row in rows])]
    parts += [
        "A published rate has our rule's class in brackets where the study gives none, or another: "
        "by rate alone, without baseline, KL or controls. Intervals are Wilson's."
    ]
    if ours:
        parts += ["## This run, in full", _table(OURS_HEAD, [_full(row) for row in ours])]
        parts += [
            "Place: layer, position, strength of the direction that was best on val. Kappa: of "
            "the rules and that second judge. Late-half cosine: mean between directions of the "
            "later half of the layers, at equal relative depth in all models."
        ]
    if found := differences(rows):
        cells = [(d["model"], _points(d["difference"]), d["published"].percent()) for d in found]
        head = ("model", "this run minus published [95 %]", "published")
        parts += ["## Beside the published rate", _table(head, cells)]
        parts += ["Prompts, judges and denominators differ: this is no test of either study."]
    if failed:
        cells = [(row["model"], row["notes"]) for row in failed]
        parts += ["## Not measured", _table(("model", "why"), cells)]
    parts += ["## What each rate is of", _table(("source", "rate"), method_rows())]
    parts += [f"The test of two modes: {_one_line(modes.two_modes.__doc__)}"]
    parts += ["Every number stands in compare.csv. Made by", _code(command)]
    return "\n\n".join(parts) + "\n"


def line(row: Row) -> tuple[str, ...]:
    rate = rate_of(row)
    percent = rate.percent() if rate else ""
    return (row["model"], row["source"], _sufficient(row), percent, row["judge"], row["notes"])


def _sufficient(row: Row) -> str:
    """As the study says it; our class in brackets where that is another or there is none."""
    said, ours = str(row["said"]), str(row["verdict"])
    if row["source"] == OURS or said.upper() == ours:
        return said or ours
    return f"{said} ({ours} by rate)".strip()


def _full(row: Row) -> tuple[str, ...]:
    def found(name: str, unit: str = "%") -> str:
        if row[name] == "":
            return ""
        estimate = Estimate(*(row[f"{name}{end}"] for end in ("", "_low", "_high", "_n")))
        return estimate.percent().replace("%", unit) if unit else kappa_in_words(estimate)

    place = f"{row['layer']}, {row['pos']}, {row['alpha']}" if row["layer"] != "" else ""
    return (
        row["model"],
        place,
        found("second_compliance"),
        found("judges_kappa", ""),
        found("baseline_refusal"),
        _number(row["kl"], ".3f"),
        found("over_controls", "points"),
        row["rank"],
        _number(row["late_half_cosine"], ".2f"),
        f"v{row['rule_version']}" if row["rule_version"] != "" else "",
    )


def _number(value: object, how: str) -> str:
    return "" if value == "" else format(value, how)


def _points(found: Estimate) -> str:
    return found.percent().replace("%", "points")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    """Text that stays in its cell and is shown as it is."""
    return "".join(f"\\{c}" if c in MARKS else c for c in _one_line(str(value)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _code(text: str) -> str:
    """An indented block of one line, which nothing in the text can end."""
    return "    " + visible(text).replace("\n", "\\n")
