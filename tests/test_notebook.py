"""The notebook runs from its first cell to its verdict, and its verdict is the planted truth."""

import json
from pathlib import Path

from refusal_nn.planted import truth

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "load_to_verdict.ipynb"


def cells():
    held = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in held["cells"] if c["cell_type"] == "code"]


def test_ten_cells_lead_from_load_to_the_verdict_that_is_true_of_the_planted_model(capsys):
    assert len(cells()) == 10
    scope = {"__name__": "__main__"}
    for i, source in enumerate(cells()):
        exec(compile(source, f"cell {i}", "exec"), scope)
    printed = capsys.readouterr().out
    assert "Is one direction enough? YES (rule v1)" in printed
    assert scope["numbers"]["compliance"]["low"] > 0.7
    # What was found is what was planted.
    direction = scope["direction"].double()
    assert float((direction / direction.norm()) @ truth(1).basis[0]) > 0.95
