"""Folder names made of model names: one folder, inside its root, for each name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refusal_nn.models import MODELS
from refusal_nn.names import safe_name

ROOT = Path(__file__).parent.parent
AWKWARD = (
    "",
    ".",
    "..",
    "../..",
    "/",
    "//",
    "/etc/passwd",
    "~/model",
    "a/..",
    "../../results",
    ".hidden",
    "-rf",
    "--help",
    "a b",
    "a\nb",
    "qwen\n",
    "a\0b",
    "it's",
    '$(reboot); `reboot` "x"',
    "a\\b",
    "C:\\models\\x",
    "model.gguf",
    "/models/model.gguf",
    "/other/model.gguf",
    "./model.gguf",
    "модель",
    "模型",
    "e\u0301",
    "\u00e9",
    "a" * 80,
    "a" * 81,
    "b" * 5000,
    "owner/name",
    "owner-name",
    "owner/Name",
    "owner/name/",
    "other/name",
    ".gguf",
    "\udcff",
)
anything = st.one_of(st.text(), st.text("/.~-_ aB\\0'\"\n"), st.sampled_from(AWKWARD))


@given(anything)
def test_a_name_never_leaves_its_folder(name):
    folder = Path("/results")
    made = folder / safe_name(name)
    assert Path(os.path.normpath(made)).parent == folder
    assert made.name == safe_name(name) not in ("", ".", "..")


@given(anything)
def test_a_name_is_at_most_80_plain_characters_and_looks_like_no_option(name):
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", safe_name(name))


@given(anything)
def test_a_made_name_is_its_own_name(name):
    assert safe_name(safe_name(name)) == safe_name(name)


@given(st.text("abcXYZ019._-", min_size=1, max_size=80))
@example("smollm2")
def test_a_plain_name_is_kept(name):
    kept = name[0] not in ".-"
    assert (safe_name(name) == name) == kept


@pytest.mark.parametrize("alias", MODELS)
def test_every_alias_is_its_own_folder(alias):
    assert safe_name(alias) == alias


def test_names_that_differ_have_folders_that_differ():
    names = {*AWKWARD, *(f"{a}/{b}" for a in "abcde" for b in ("m", "M", "m.gguf", "m ", " m"))}
    assert len({safe_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B-Instruct-"),
        ("/models/tiny.gguf", "tiny-"),
        ("folder/with space/my model/", "my-model-"),
        ("..", "model-"),
    ],
)
def test_a_made_name_begins_with_what_a_person_would_look_for(name, begins):
    assert re.fullmatch(re.escape(begins) + "[0-9a-f]{8}", safe_name(name))


@pytest.mark.parametrize("name", ["smollm2", "it's; $HOME", "--help"])
def test_the_command_that_make_asks_needs_only_the_standard_library(name):
    # -I and -S: no site-packages, as before anything is installed.
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "runpy.run_module('refusal_nn.names', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT), name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{safe_name(name)}\n"
