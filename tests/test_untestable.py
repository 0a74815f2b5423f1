"""What is said where nothing can be tested: of which prompts there are too few, and what helps."""

from pathlib import Path

import pytest

from experiments import report_answer, select
from experiments.bench import _why_not
from experiments.report_origin import Finished


@pytest.mark.parametrize(
    ("harmful", "harmless", "few", "asks"),
    [
        (2, 60, [], True),
        # It refuses in just these words, and harmless prompts too.
        (60, 2, [], False),
        (60, 2, ["3 harmless prompts answered"], False),
        (2, 60, ["3 harmful prompts refused"], False),
    ],
)
def test_other_refusal_words_are_asked_for_only_where_refusals_are_what_is_lacking(
    harmful, harmless, few, asks
):
    counts = [
        {"split": split, "class": kind, "found": n, "n": 64}
        for split in ("fit", "val")
        for kind, n in (("harmful", harmful), ("harmless", harmless))
    ]
    about = {"counts": counts, "reasons": select.lacking(counts), "refusal_tokens": ["I"]}
    said = _why_not(about, few)
    assert said[: 2 + len(few)] == [*about["reasons"], *few]
    assert any("REFUSAL_WORDS=" in line for line in said) is asks


def test_too_few_prompts_to_test_are_not_said_to_be_too_few_refusals():
    # A model that refuses harmless prompts as well.
    why = ["3 harmless prompts answered at baseline in val, of 64 asked: fewer than 5"]
    about = {"verdict": "UNTESTABLE", "reasons": why, "best": None}
    answer = report_answer.answer("a", {"sweep": Finished(Path("x"), about, {})}, [])
    wanted = "UNTESTABLE: too few prompts are refused, or answered, to test"
    assert (answer.verdict, answer.lines) == (wanted, [f"Why: {why[0]}."])
