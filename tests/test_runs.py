"""A stage's folder: what make and the next stage may rely on, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal_nn import runs
from refusal_nn.errors import CorruptArtefact, FolderInUse, InputError
from refusal_nn.files import sha256, write_text
from refusal_nn.runs import Stage

ROOT = Path(__file__).parent.parent
SETTINGS = {"model": "tiny", "n": 40, "seed": 0, "positions": "-1", "model_file": None}
ARTEFACTS = {"a.csv": "layer,d\n0,1.5\n", "b.json": '{"x": 1}\n', "c.safetensors": "\0\1" * 40}
within_a_folder = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _no_git(monkeypatch):
    monkeypatch.setattr(runs, "git_commit", lambda: "abc")  # half of the time of these tests


def finished(folder, wanted=SETTINGS):
    """A stage that ran to its end with these settings."""
    stage = Stage(folder)
    with stage.run(wanted) as run:
        for name, text in ARTEFACTS.items():
            write_text(run.folder / name, text)
        run.finish({"peak": 3}, {"model": "tiny", "seed": 0})
    return stage


@pytest.fixture
def stage(tmp_path):
    return finished(tmp_path / "capture")


def is_intact(stage):
    stage.verify()
    return stage.is_current(SETTINGS)


def test_a_finished_stage_is_current_for_its_own_settings_only(stage):
    assert is_intact(stage)
    for changed in ({"n": 41}, {"seed": 1}, {"positions": "all"}, {"model_file": [1, 2]}):
        assert not stage.is_current(SETTINGS | changed)


def test_the_settings_file_is_touched_only_when_a_setting_changes(tmp_path):
    stage, path = Stage(tmp_path), tmp_path / "settings.json"
    stage.request(SETTINGS)
    os.utime(path, (1, 1))
    stage.request(dict(reversed(SETTINGS.items())))
    assert path.stat().st_mtime == 1
    stage.request(SETTINGS | {"n": 41})
    assert path.stat().st_mtime > 1
    assert json.loads(path.read_text())["n"] == 41


def test_settings_that_cannot_be_read_are_written_anew(tmp_path):
    (tmp_path / "settings.json").write_bytes(b"\xff\xfe")
    Stage(tmp_path).request(SETTINGS)
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


def test_the_summary_is_absent_while_a_stage_runs_and_comes_last(stage):
    before = stage.summary.stat().st_mtime_ns
    with stage.run(SETTINGS) as run:
        assert not stage.summary.exists()
        assert not stage.is_current(SETTINGS)
        write_text(run.folder / "a.csv", "layer\n")
        assert not stage.summary.exists()
        run.finish({}, {})
    stamp = stage.summary.stat().st_mtime_ns
    assert stamp > before
    assert stamp >= max(path.stat().st_mtime_ns for path in stage.folder.iterdir())


def test_other_settings_asked_for_while_a_stage_runs_are_not_taken_for_its_own(tmp_path):
    stage = Stage(tmp_path)
    with stage.run(SETTINGS) as run:
        stage.request(SETTINGS | {"n": 41})
        run.finish({}, {})
    assert stage.is_current(SETTINGS)
    # What make looks at: the summary is not of the settings last asked for.
    assert stage.request(SETTINGS | {"n": 41})
    assert not stage.summary.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_there_is_no_summary_and_the_lock_is_free(stage, error):
    with pytest.raises(error), stage.run(SETTINGS):
        raise error
    assert not stage.summary.exists()
    assert not stage.is_current(SETTINGS)
    assert is_intact(finished(stage.folder))


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(stage):
    leftover = stage.folder / ".a.csv.123.partial"
    leftover.write_text("half")
    finished(stage.folder)
    assert not leftover.exists()


def test_the_manifest_holds_the_sha256_of_every_artefact_and_how_it_came_about(stage):
    manifest = json.loads((stage.folder / "manifest.json").read_text())
    assert manifest["sha256"] == {name: sha256(stage.folder / name) for name in ARTEFACTS}
    assert manifest["settings"] == SETTINGS
    assert (manifest["model"], manifest["seed"]) == ("tiny", 0)
    assert {"packages", "git_commit", "wall_seconds", "finished"} <= set(manifest)
    assert manifest["packages"]["torch"][0].isdigit()


def test_an_unfinished_stage_has_no_artefacts(stage):
    stage.summary.unlink()
    with pytest.raises(InputError, match="make capture"):
        stage.artefact("a.csv")


def test_a_file_that_the_manifest_does_not_know_is_no_artefact(stage):
    (stage.folder / "d.csv").write_text("layer\n")
    with pytest.raises(CorruptArtefact):
        stage.artefact("d.csv")


def spoilt(content, how, at):
    at %= len(content)
    if how == "flipped":
        return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
    return {"truncated": content[:at], "appended": content + b"\n", "deleted": None}[how]


def spoil(path, how, at):
    """A file as spoilt has it: its bytes then, None where it is gone."""
    bad = spoilt(path.read_bytes(), how, at)
    path.unlink()
    if bad is not None:
        path.write_bytes(bad)
    return bad


HOW = st.sampled_from(["flipped", "flipped", "truncated", "appended", "deleted"])


@within_a_folder
@given(st.sampled_from(sorted(ARTEFACTS)), HOW, st.integers(0, 10_000))
def test_a_spoilt_artefact_is_noticed_set_aside_and_never_current(tmp_path, name, how, at):
    stage = finished(tmp_path / "capture")
    path = stage.folder / name
    bad = spoil(path, how, at)
    with pytest.raises(CorruptArtefact) as caught:
        stage.verify()
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4
    assert not path.exists()
    assert not stage.is_current(SETTINGS)
    aside = path.with_name(f"{name}.corrupt")
    assert bad is None or aside.read_bytes() == bad
    aside.unlink(missing_ok=True)
    assert is_intact(finished(stage.folder))


def test_what_was_set_aside_is_no_artefact_of_the_next_run(stage):
    (stage.folder / "a.csv").write_text("spoilt")
    with pytest.raises(CorruptArtefact):
        stage.artefact("a.csv")
    finished(stage.folder)
    assert set(json.loads((stage.folder / "manifest.json").read_text())["sha256"]) == set(ARTEFACTS)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff\xfe", b"{}", b'{"sha256": 3}', b"[]", b"null", b"3", b'"x"']
)
def test_a_manifest_that_is_none_is_noticed_and_the_stage_is_not_current(stage, content):
    path = stage.folder / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptArtefact, match=r"manifest\.json"):
        stage.artefact("a.csv")
    assert not stage.summary.exists()
    assert not stage.is_current(SETTINGS)


@within_a_folder
@given(st.integers(0, 10_000))
def test_a_flipped_bit_in_the_manifest_is_never_taken_for_other_artefacts(tmp_path, at):
    stage = finished(tmp_path / "capture")
    path = stage.folder / "manifest.json"
    path.write_bytes(spoilt(path.read_bytes(), "flipped", at))
    try:
        stage.verify()
    except CorruptArtefact:
        assert not stage.is_current(SETTINGS)
    else:
        assert set(json.loads(path.read_text())["sha256"]) == set(ARTEFACTS)


@within_a_folder
@given(st.sampled_from(["manifest.json", "summary.json"]), HOW, st.integers(0, 10_000))
def test_a_spoilt_manifest_or_summary_is_set_aside_and_never_read(tmp_path, name, how, at):
    stage = finished(tmp_path / "capture")
    path = stage.folder / name
    spoil(path, how, at)
    assert not stage.is_current(SETTINGS)
    with pytest.raises((CorruptArtefact, InputError)):  # none there: not finished
        stage.about()
    assert not stage.summary.exists()
    path.with_name(f"{name}.corrupt").unlink(missing_ok=True)
    assert is_intact(finished(stage.folder))
    assert stage.about() == {"peak": 3}


@pytest.mark.parametrize("which", ["model", "stage", "lock"])
def test_nothing_is_written_through_a_link(tmp_path, which):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "results" / "model" / "capture"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    link = {"model": folder.parent, "stage": folder, "lock": folder / ".lock"}[which]
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere / "file" if which == "lock" else elsewhere)
    for step in (lambda: finished(folder), lambda: Stage(folder).request(SETTINGS)):
        with pytest.raises(InputError, match="is a link"):
            step()
    assert [p.name for p in elsewhere.iterdir()] == ["file"]
    assert (elsewhere / "file").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_spoilt_summary_does_not_count_as_finished(stage, content):
    stage.summary.write_bytes(content)
    assert not stage.is_current(SETTINGS)


HOLD = """
import sys, time
from pathlib import Path
from refusal_nn.runs import Stage
with Stage(Path(sys.argv[1])).run({}):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", ["finish", "kill"])
def test_a_folder_in_use_is_refused_naming_the_process_and_free_once_that_ends(tmp_path, end):
    process = holder(tmp_path)
    try:
        with (
            pytest.raises(FolderInUse, match=rf"\b{process.pid}\b") as caught,
            Stage(tmp_path).run({}),
        ):
            pass
    finally:
        if end == "kill":
            process.send_signal(signal.SIGKILL)
        process.communicate()
    assert caught.value.exit_code == 8
    assert is_intact(finished(tmp_path))


def test_being_refused_changes_nothing_in_the_folder(tmp_path):
    process = holder(tmp_path)
    try:
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(FolderInUse), Stage(tmp_path).run(SETTINGS):
            pass
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    finally:
        process.communicate()
