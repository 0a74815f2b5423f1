"""Files that are whole or not there, and tables that come back as they were written."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import resource
import string
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from refusal_nn import files
from refusal_nn.errors import DiskError, NotFinite

in_a_folder = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


@pytest.fixture
def path(tmp_path):
    """A file that holds `old`, alone in its folder."""
    (tmp_path / "table.csv").write_text("old")
    return tmp_path / "table.csv"


def only_the_old_file_is_there(path):
    return path.read_text() == "old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_while_writing_leaves_the_old_file_and_no_other(path, error):
    with pytest.raises(error), files.replacing(path) as partial:  # noqa: PT012
        partial.write_text("half of the ne")
        raise error
    assert only_the_old_file_is_there(path)


def test_nothing_is_at_the_path_before_all_is_written(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with files.replacing(path) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_writes_nothing_leaves_the_old_file(path):
    with pytest.raises(DiskError), files.replacing(path):
        pass
    assert only_the_old_file_is_there(path)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "step"), [(Path, "replace"), (os, "fsync"), (Path, "write_bytes"), (Path, "mkdir")]
)
def test_a_full_disk_is_a_disk_error_and_leaves_the_old_file(path, monkeypatch, owner, step):
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, lambda *_, **__: full())
        with pytest.raises(DiskError) as caught:
            files.write_text(path, "new")
    assert caught.value.exit_code == 7
    assert str(path) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert only_the_old_file_is_there(path)


WRITERS = {
    "text": lambda path: files.write_text(path, "x" * 5000),
    "JSON": lambda path: files.write_json(path, ["x"] * 5000),
    "CSV": lambda path: files.write_csv(path, [{"x": "y"}] * 5000),
    "tensors": lambda path: files.write_tensors(path, {"x": torch.zeros(5000)}, {}),
}


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_fills_up_halfway_is_a_disk_error_for_every_kind_of_file(path, kind):
    with files_of_at_most(1000), pytest.raises(DiskError, match=r"table\.csv"):
        WRITERS[kind](path)
    assert only_the_old_file_is_there(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_parent_that_is_no_folder_is_a_disk_error(path, kind):
    with pytest.raises(DiskError):
        WRITERS[kind](path / "below" / "table.csv")
    assert only_the_old_file_is_there(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_says_how_many_bytes_are_needed_and_how_many_are_free(path, kind):
    with (
        files_of_at_most(1000),
        pytest.raises(DiskError, match=r"\([\d,]{5,} bytes needed, [\d,]+ are free there\)"),
    ):
        WRITERS[kind](path)


def test_room_that_will_not_do_is_refused_before_anything_is_computed(tmp_path):
    files.require_room(tmp_path, 1000)
    with pytest.raises(DiskError, match="bytes needed"):
        files.require_room(tmp_path, files.free_bytes(tmp_path / "x"))


NO_NUMBERS = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_no_table_and_no_tensor_holds_what_is_not_a_number(path, number):
    with pytest.raises(NotFinite, match=r"x of row 2 is .* DTYPE=float32"):
        files.write_csv(path, [{"x": 1.0}, {"x": number}])
    with pytest.raises(NotFinite, match="x is not finite"):
        files.write_tensors(path, {"x": torch.tensor([0.0, number])}, {})
    assert only_the_old_file_is_there(path)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "'=1", "''@x", "-"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_text_is_a_formula_and_all_come_back(path, text):
    rows = [{"id": text, "token": text, "d": -1.5}]
    files.write_csv(path, rows)
    with path.open(newline="", encoding="utf-8") as file:
        [raw] = csv.DictReader(file)
    assert raw["id"][0] == raw["token"][0] == "'"
    assert raw["d"] == "-1.5"
    assert files.read_csv(path) == rows


@pytest.mark.parametrize("text", ["'tis", "'", "''", "a=b", "5'", "x-1"])
def test_other_text_is_written_as_it_is(path, text):
    files.write_csv(path, [{"token": text}])
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == files.read_csv(path) == [{"token": text}]


def test_a_link_in_the_place_of_a_half_written_file_is_not_followed(path, tmp_path_factory):
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    victim.write_text("mine")
    path.with_name(f".{path.name}.{os.getpid()}.partial").symlink_to(victim)
    files.write_text(path, "new")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("mine", "new", False)


def test_sha256_is_that_of_the_bytes(path):
    assert files.sha256(path) == hashlib.sha256(b"old").hexdigest()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@in_a_folder
@given(json_values)
def test_json_comes_back_as_it_was_written(tmp_path, value):
    files.write_json(tmp_path / "value.json", value)
    assert files.read_json(tmp_path / "value.json") == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_takes_no_number_that_json_does_not_have(path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": [1.0, {"b": number}]})
    assert only_the_old_file_is_there(path)


plain_text = st.text(string.ascii_letters + "_-,;'\" \n\r\tä模", min_size=1).filter(
    lambda text: text not in ("True", "False") and not is_number(text)
)


def is_number(text):
    try:
        return float(text) is not None
    except ValueError:
        return False


def test_text_that_reads_like_a_number_is_still_text(tmp_path):
    rows = [{"id": text} for text in ("007", "1_000", "1e5", "nan", "inf", " 12", "12.0", "１２")]
    files.write_csv(tmp_path / "rows.csv", rows)
    assert [str(row["id"]) for row in files.read_csv(tmp_path / "rows.csv")] == [
        row["id"] for row in rows
    ]


@in_a_folder
@given(st.lists(st.tuples(plain_text, st.integers(), st.booleans()), min_size=1, max_size=8))
@example([("a\rb", 0, True)])
@example([('a"b', 0, True), ("c\r\nd", -1, False)])
def test_rows_of_text_integers_and_booleans_come_back_as_they_were_written(tmp_path, values):
    rows = [{"text": text, "whole": whole, "flag": flag} for text, whole, flag in values]
    files.write_csv(tmp_path / "rows.csv", rows)
    found = files.read_csv(tmp_path / "rows.csv")
    assert found == rows
    assert all(type(row["flag"]) is bool and type(row["whole"]) is int for row in found)


@in_a_folder
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=8))
def test_floats_come_back_to_ten_digits(tmp_path, values):
    files.write_csv(tmp_path / "rows.csv", [{"x": value} for value in values])
    found = [row["x"] for row in files.read_csv(tmp_path / "rows.csv")]
    assert found == pytest.approx(values, rel=1e-9, abs=0.0)


def test_a_table_begins_with_the_columns_of_its_first_row_and_ends_with_a_line_end(tmp_path):
    files.write_csv(tmp_path / "rows.csv", [{"b": 1, "a": 0.25}, {"a": 2.0, "b": 3}])
    assert (tmp_path / "rows.csv").read_bytes() == b"b,a\n1,0.25\n3,2\n"


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = [{"layer": i, "d": i / 7, "valid": i > 2} for i in range(5)]
    for name in ("a.csv", "b.csv"):
        files.write_csv(tmp_path / name, rows)
    assert files.sha256(tmp_path / "a.csv") == files.sha256(tmp_path / "b.csv")


def test_tensors_come_back_bit_by_bit_with_what_was_said_about_them(tmp_path):
    path = tmp_path / "tensors.safetensors"
    states = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    about = {"positions": [-1, -2], "token": "\n", "model": "x"}
    files.write_tensors(path, {"states": states.transpose(0, 2)}, about)
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["states"]
        assert torch.equal(file.get_tensor("states"), states.transpose(0, 2))
        assert json.loads(file.metadata()["refusal_nn"]) == about
