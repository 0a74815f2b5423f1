"""What the documentation names is there: functions, messages, exit codes, versions."""

import re
import tomllib
from pathlib import Path

import pytest

from refusal_nn import errors, modes
from refusal_nn.ranks import DRAWS
from refusal_nn.rollouts import MARGIN, NLL_FROM
from refusal_nn.splits import NEAR, SHARES

ROOT = Path(__file__).parent.parent
NUMBERS = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODE = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "refusal_nn").glob("*.py")}
SOURCES = [p for folder in ("refusal_nn", "experiments") for p in (ROOT / folder).glob("*.py")]
SAID = "".join(p.read_text(encoding="utf-8") for p in (*SOURCES, ROOT / "Makefile"))


def named_functions():
    """(file, function) of every `file.py: function`, and of the functions that follow it."""
    for line in NUMBERS.splitlines():
        file = None
        for found in re.findall(r"`([^`]+)`", line.split("|")[3] if line.count("|") > 4 else ""):
            name = found.rpartition(": ")[2]
            file = found.partition(": ")[0] if ": " in found else file
            yield file, name


def test_every_function_that_a_number_is_said_to_come_from_is_in_that_file():
    named = list(named_functions())
    assert len(named) > 45
    for file, name in named:
        assert re.search(rf"^def {name}\(", CODE[file], re.MULTILINE), (file, name)


def words(message):
    """The literal words of a message, however the source breaks it into lines."""
    joined = re.sub(r'"\s*\n\s*f?"', "", SAID)
    return all(part.strip() in joined for part in re.split(r"\.\.\.|'x'|\b5\b", message))


@pytest.mark.parametrize("symptom", re.findall(r"^\*\*Symptom\*\* (.+)$", TROUBLE, re.MULTILINE))
def test_every_symptom_is_a_message_of_this_package(symptom):
    for message in re.findall(r"`([^`]+)`", symptom):
        assert words(message), message


def test_each_symptom_has_a_cause_and_a_remedy():
    counts = {TROUBLE.count(f"**{word}**") for word in ("Symptom", "Cause", "Remedy")}
    assert len(counts) == 1
    assert counts.pop() > 20


def test_every_exit_code_is_explained():
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    codes = {str(kind.exit_code) for kind in kinds} | {"0", "130, 143"}
    table = TROUBLE.split("\n\n")[2]
    told = {cells.strip() for line in table.splitlines()[2:] for cells in line.split("|")[1:4:2]}
    told -= {""}
    assert told == codes


def test_the_numbers_told_are_the_codes_own():
    assert f"p < {modes.LEVEL}".replace("0.", ".") in NUMBERS
    assert modes.LEAST_MODELS == 5
    assert "Fewer than five testable models" in TROUBLE
    assert f"{DRAWS} bootstrap draws" in NUMBERS
    assert f"by {MARGIN} nats ({NLL_FROM} tokens or more)" in NUMBERS
    assert f"Jaccard ≥ {NEAR:g}".replace("0.", ".") in NUMBERS
    assert ", ".join(f"{x:g}".lstrip("0") for x in SHARES.values()) in NUMBERS


def test_the_citation_names_this_version_and_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {project['version']}\n" in citation
    assert f"license: {project['license']}\n" in citation
    assert citation.startswith("cff-version: 1.2.0\n")
