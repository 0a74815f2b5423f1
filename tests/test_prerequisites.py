"""Results are stale when code behind them changes: make must know every module of a stage."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("select", "baseline", "sweep", "causal", "behaviour", "subspace")
# What says, draws or keeps results and changes none of them.
PLUMBING = {
    *(f"experiments/{name}.py" for name in ("cli", "console", "ending", "progress")),
    *(f"refusal_nn/{name}.py" for name in ("errors", "files", "names", "origins", "runs")),
    "refusal_nn/plain_text.py",
}
TOLD = {"show", "draw"}


@pytest.fixture(scope="module")
def rules():
    """Per stage: the files that its results depend on, and the stages that it stands on."""
    given = ["MODEL=m", "RESULTS=/none", f"PYTHON={sys.executable}"]
    told = subprocess.run(["make", "-pnq", "all", *given], cwd=ROOT, capture_output=True, text=True)
    found = {}
    for stage in ("capture", "validate", *STAGES):
        [line] = re.findall(rf"^/none/m/{stage}/summary\.json:(.*)$", told.stdout, re.MULTILINE)
        names = line.split("|")[0].split()
        before = [Path(name).parent.name for name in names if name.endswith("summary.json")]
        found[stage] = {name for name in names if name.endswith(".py")}, before
    return found


def known(rules, stage):
    files, before = rules[stage]
    return files.union(*(known(rules, other) for other in before))


def imported(path):
    """Modules of ours that a file imports, but for types and for what is shown or drawn."""
    tree, left_out = ast.parse((ROOT / path).read_text()), set()
    for node in ast.walk(tree):
        typing = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        if typing or (isinstance(node, ast.FunctionDef) and node.name in TOLD):
            left_out |= {id(inner) for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {f"{name.replace('.', '/')}.py" for name in names}
    return {file for file in files if (ROOT / file).is_file()}


def behind(stage):
    """Every module that a stage's results come from."""
    found, todo = set(), [f"experiments/{stage}.py"]
    while todo:
        path = todo.pop()
        if path not in found | PLUMBING:
            found.add(path)
            todo += imported(path)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_make_knows_every_module_behind_a_stage(rules, stage):
    assert behind(stage) - known(rules, stage) == set()


def test_the_modules_behind_a_stage_are_found_through_others():
    """What the test above would miss if it looked at nothing."""
    assert {"experiments/bench.py", "refusal_nn/generation.py"} <= behind("sweep")
    assert {"refusal_nn/candidates.py", "refusal_nn/subspaces.py"} <= behind("subspace")
