"""What a hostile afternoon found: results folders in which something else has a file's place."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli, report_origin
from refusal_nn import runs
from refusal_nn.errors import CorruptArtefact, DiskError, InputError
from refusal_nn.files import write_text
from refusal_nn.runs import Stage

ROOT = Path(__file__).parent.parent
SETTINGS = {"model": "tiny", "n": 40}
OWN = ("settings.json", "manifest.json", "summary.json", ".lock", runs.JOURNAL, runs.KEPT)


def computed(folder):
    stage = Stage(folder)
    with stage.run(SETTINGS) as run:
        write_text(run.folder / "a.csv", "x\n1\n")
        run.finish({}, {})
    return stage


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "git_commit", lambda: "abc")
    return computed(tmp_path / "model" / "capture")


def folder(path):
    (path / "mine").mkdir(parents=True)


REPLACED = {"a folder": folder, "a pipe": os.mkfifo}


def replace(path, by):
    path.unlink(missing_ok=True)
    REPLACED[by](path)


@pytest.mark.timeout(20)  # a pipe is read for ever
@pytest.mark.parametrize("by", REPLACED)
@pytest.mark.parametrize("name", OWN)
def test_what_is_no_file_in_the_place_of_one_of_ours_is_named_and_left_alone(stage, name, by):
    path = stage.folder / name
    replace(path, by)
    for step in (lambda: computed(stage.folder), lambda: stage.request(SETTINGS | {"n": 1})):
        with pytest.raises(InputError, match=rf"{name} is no plain file"):
            step()
    if name in ("manifest.json", "summary.json"):
        with pytest.raises(InputError, match="is no plain file"):
            stage.verify()
    assert path.exists()
    assert not path.is_file()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("by", [*REPLACED, "an endless link"])
def test_an_artefact_that_is_no_file_is_set_aside_unread_and_computed_again(stage, by):
    path = stage.folder / "a.csv"
    path.unlink()
    REPLACED.get(by, lambda path: path.symlink_to("/dev/zero"))(path)
    with pytest.raises(CorruptArtefact, match=r"a\.csv is not what was written"):
        stage.verify()
    assert not stage.summary.exists()
    assert not os.path.lexists(path)
    computed(stage.folder).verify()


def test_what_cannot_be_set_aside_is_a_disk_error_and_is_not_used(stage):
    (stage.folder / "a.csv").write_text("x\n2\n")
    folder(stage.folder / "a.csv.corrupt")
    for _ in range(2):
        with pytest.raises(DiskError, match="could not be set aside"):
            stage.verify()
    shutil.rmtree(stage.folder / "a.csv.corrupt")
    with pytest.raises(CorruptArtefact):
        stage.verify()


def test_a_folder_called_like_a_half_written_file_is_left_alone(stage):
    folder(stage.folder / ".a.csv.1.partial")
    computed(stage.folder).verify()
    assert (stage.folder / ".a.csv.1.partial" / "mine").is_dir()


def test_results_of_another_model_copied_into_a_models_folder_are_not_shown_as_its_own(tmp_path):
    done = computed(tmp_path / "results" / "other" / "validate")
    for show in (cli.finished, lambda args, name: cli.require_model(args.model, done)):
        args = argparse.Namespace(results=tmp_path / "results", model="other")
        with pytest.raises(InputError, match=r"holds results of tiny, not of other: remove it"):
            show(args, "validate")
    assert report_origin.finished(done.folder, "other") is None
    assert report_origin.finished(done.folder, "tiny") is not None


def test_a_report_of_another_system_prompt_says_so_in_its_command(tmp_path):
    args = argparse.Namespace(model="tiny", results=Path("results"))
    line = report_origin.command("all", args, {"system": "none", "n": 320})
    assert line == "make all MODEL=tiny SYSTEM=none"


@pytest.mark.parametrize(
    "fault", [PermissionError(13, "Permission denied", "r/.lock"), OSError(5, "I/O error", "r/x")]
)
def test_a_file_that_the_system_refuses_ends_in_one_line_and_code_7(fault, capsys):
    def fail():
        raise fault

    with pytest.raises(SystemExit) as ended:
        cli.run(fail)
    assert ended.value.code == 7
    said = capsys.readouterr().err
    assert fault.filename in said
    assert fault.strerror in said
    assert said.count("\n") == 1


def test_output_to_a_full_disk_ends_in_one_line_and_code_7():
    code = "from experiments import cli, console; cli.run(lambda: console.say('x' * 9**6))"
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 7
    assert done.stderr.startswith("error: what is printed cannot be written: No space left")
    assert "Traceback" not in done.stderr


def test_an_error_of_the_system_that_is_of_no_file_is_not_explained_away():
    def fail():
        raise OSError("something else")

    with pytest.raises(OSError, match="something else"):
        cli.run(fail)


def test_a_message_never_quotes_a_whole_file(capsys):
    def fail():
        raise InputError("x" * 10**6)

    with pytest.raises(SystemExit):
        cli.run(fail)
    assert len(capsys.readouterr().err) < 3000


def test_other_settings_undo_the_stamps_that_make_looks_at_whatever_the_clock_says(stage):
    root = stage.folder.parent.parent
    args = argparse.Namespace(model=stage.folder.parent.name, settings_only=True)
    args.results, args.figures = root, root / "figures"
    drawn = args.figures / args.model / "capture.json"
    write_text(drawn, "{}")
    for settings, kept in ((SETTINGS, True), (SETTINGS | {"n": 1}, False)):
        for path in (stage.summary, drawn):
            os.utime(path, (4e9, 4e9))
        cli.dispatch(args, "capture", settings)
        assert stage.summary.exists() == drawn.exists() == kept
