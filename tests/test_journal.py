"""Rows of finished units outlive a kill, a full disk and a torn line, and are nobody else's."""

import contextlib
import errno
import os
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal_nn import files
from refusal_nn.errors import DiskError
from refusal_nn.journal import Journal

ABOUT = {"settings": {"model": "tiny", "layers": ""}, "commit": "abc"}
UNITS = {
    f"unit {i}": [{"id": f"p{j}", "x": i / 7, "nll": None} for j in range(9)] for i in range(6)
}
in_a_folder = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def path(tmp_path):
    """The journal of a run that was killed after all of UNITS."""
    filled(tmp_path / "progress.jsonl")
    return tmp_path / "progress.jsonl"


def filled(path, units=UNITS):
    journal = Journal(path, ABOUT)
    for name, rows in units.items():
        journal.add(name, rows)
    return journal


@contextlib.contextmanager
def room(size):
    """No file may grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def masked(umask):
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Half surrogate pairs too: JSON can hold them.
    | st.text(st.characters(exclude_categories=()), max_size=12),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
unit_rows = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=3)


@in_a_folder
@given(st.dictionaries(st.text(max_size=9), unit_rows, max_size=4), st.floats(0, 1))
def test_wherever_a_journal_is_cut_off_just_the_whole_units_before_are_kept(tmp_path, units, where):
    path = tmp_path / "cut.jsonl"
    path.unlink(missing_ok=True)
    filled(path, units)
    content = path.read_bytes()
    cut = content[: round(where * len(content))]
    path.write_bytes(cut)
    whole = max(cut.count(b"\n") - 1, 0)
    assert Journal(path, ABOUT).done == dict(list(units.items())[:whole])
    # What is missing is added again, and then nothing shows that it was ever cut.
    filled(path, dict(list(units.items())[whole:]))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "about", [{}, ABOUT | {"commit": "abd"}, ABOUT | {"settings": {"model": "tiny", "layers": "3"}}]
)
def test_rows_of_anything_else_are_not_taken_up_and_do_not_stay(path, about):
    assert Journal(path, about).done == {}
    assert Journal(path, ABOUT).done == {}


def test_the_order_of_the_settings_does_not_matter(path):
    assert Journal(path, dict(reversed(ABOUT.items()))).done == UNITS


@in_a_folder
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_after_a_flipped_bit_no_unit_is_other_than_it_was_and_most_are_there(tmp_path, at, bit):
    path = tmp_path / "flipped.jsonl"
    path.unlink(missing_ok=True)
    filled(path)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)
    done = Journal(path, ABOUT).done
    in_header = at % len(content) <= content.index(b"\n")
    assert all(UNITS[name] == rows for name, rows in done.items())
    assert in_header or len(done) >= len(UNITS) - 2


@pytest.mark.parametrize("content", [b"", b"\n", b"null\n", b"[]\n", b"3\n", b"\xff\xfe\n", b"{"])
def test_a_file_that_is_no_journal_counts_as_none(tmp_path, content):
    path = tmp_path / "progress.jsonl"
    path.write_bytes(content)
    assert Journal(path, ABOUT).done == {}
    filled(path)
    assert Journal(path, ABOUT).done == UNITS


def test_rows_come_back_as_a_later_run_will_read_them(tmp_path):
    journal = Journal(tmp_path / "progress.jsonl", ABOUT)
    given_back = journal.add("a", ({"x": (1, 2.5), "y": 0.1 + 0.2} for _ in range(2)))
    assert given_back == [{"x": [1, 2.5], "y": 0.1 + 0.2}] * 2
    assert Journal(journal.path, ABOUT).done == {"a": given_back}


class Stop(Exception):
    pass


def test_a_unit_that_fails_halfway_leaves_nothing(path):
    def rows():
        yield {"id": "p0"}
        raise Stop

    journal, before = Journal(path, ABOUT), path.read_bytes()
    with pytest.raises(Stop):
        journal.add("half", rows())
    assert "half" not in journal.done
    assert path.read_bytes() == before


def test_what_is_not_a_number_is_none_at_once_and_after_reading(path):
    rows = [{"x": float("nan"), "y": float("-inf"), "z": 0.5}]
    expected = [{"x": None, "y": None, "z": 0.5}]
    assert Journal(path, ABOUT).add("a", rows) == expected
    assert Journal(path, ABOUT).done["a"] == expected


def test_a_full_disk_is_a_disk_error_and_costs_only_the_unit_at_hand(path):
    journal = Journal(path, ABOUT)
    with room(path.stat().st_size + 40), pytest.raises(DiskError, match="goes on") as caught:
        journal.add("too much", UNITS["unit 0"])
    assert caught.value.exit_code == 7
    assert str(path) in str(caught.value)
    assert "too much" not in journal.done
    assert Journal(path, ABOUT).done == UNITS


def test_a_unit_added_after_one_that_did_not_fit_is_not_lost(path):
    journal = Journal(path, ABOUT)
    with room(path.stat().st_size + 40), pytest.raises(DiskError):
        journal.add("too much", UNITS["unit 0"])
    journal.add("later", UNITS["unit 1"])
    assert Journal(path, ABOUT).done == UNITS | {"later": UNITS["unit 1"]}


def test_resuming_on_a_full_disk_loses_no_finished_unit(path):
    with room(300), contextlib.suppress(DiskError):
        Journal(path, ABOUT)
    assert Journal(path, ABOUT).done == UNITS


def test_being_killed_while_resuming_loses_no_finished_unit(path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "fdopen", killed)
        patch.setattr(os, "fsync", killed)
        Journal(path, ABOUT)
    assert Journal(path, ABOUT).done == UNITS


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(DiskError, match="Read-only"):
        Journal(tmp_path / "progress.jsonl", ABOUT)


def test_a_journal_that_cannot_be_read_is_a_disk_error(tmp_path):
    (tmp_path / "progress.jsonl").mkdir()
    with pytest.raises(DiskError, match=r"progress\.jsonl"):
        Journal(tmp_path / "progress.jsonl", ABOUT)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_journal_is_for_its_owner_only_whatever_the_umask(tmp_path, umask):
    with masked(umask):
        path = filled(tmp_path / "progress.jsonl").path
        assert path.stat().st_mode & 0o777 == 0o600
        Journal(path, ABOUT)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_that_others_could_read_is_closed_to_them(path):
    path.chmod(0o644)
    filled(path)
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("old", [None, 0o644])
def test_a_private_file_is_private_from_its_first_byte_on(tmp_path, monkeypatch, umask, old):
    path, modes = tmp_path / "kept_text.jsonl", []
    if old is not None:
        path.write_text("old")
        path.chmod(old)
    fsync = os.fsync

    def spied(fd):
        modes.append(os.fstat(fd).st_mode & 0o777)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spied)
    with masked(umask):
        files.write_private(path, "text\n")
    assert modes == [0o600]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "text\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_that_does_not_fit_leaves_the_old_one_and_no_text(tmp_path):
    path = tmp_path / "kept_text.jsonl"
    files.write_private(path, "old")
    with room(1000), pytest.raises(DiskError):
        files.write_private(path, "x" * 5000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
