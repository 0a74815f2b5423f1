"""What a hostile afternoon found: results folders in which something else has a file's place."""

import os
import shutil

import pytest

from refusal_nn import runs
from refusal_nn.errors import CorruptArtefact, DiskError, InputError
from refusal_nn.files import write_text
from refusal_nn.runs import Stage

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
    return computed(tmp_path / "capture")


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
