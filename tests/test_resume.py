"""A killed stage goes on with its own rows, and with no others."""

import json
import subprocess

import pytest

from refusal_nn import runs
from refusal_nn.errors import FolderInUse
from refusal_nn.runs import JOURNAL, Stage

SETTINGS = {"model": "tiny", "tokens": 100, "layers": "", "keep_text": False}
ROWS = [{"id": "p1", "label": "refusal", "nll": None}]
WHERE = {"dtype": "torch.float32", "device": "cpu"}


def killed(folder, settings=SETTINGS):
    """A run that ended after one unit."""

    def work():
        with Stage(folder).run(settings) as run:
            run.journal(WHERE).add("a", ROWS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()


def taken_up(folder, settings=SETTINGS, where=WHERE):
    with Stage(folder).run(settings) as run:
        return run.journal(where).done


def test_a_killed_run_of_the_same_settings_is_taken_up(tmp_path):
    killed(tmp_path)
    assert not Stage(tmp_path).summary.exists()
    assert taken_up(tmp_path, dict(reversed(SETTINGS.items()))) == {"a": ROWS}


@pytest.mark.parametrize(
    "other", [{"dtype": "torch.bfloat16"}, {"device": "cuda"}, {"host": "https://api.ndif.us"}]
)
def test_a_killed_run_elsewhere_is_not_taken_up(tmp_path, other):
    killed(tmp_path)
    assert taken_up(tmp_path, where=WHERE | other) == {}


@pytest.mark.parametrize(
    "other", [{"tokens": 101}, {"layers": "3"}, {"keep_text": True}, {"model": "tiny2"}]
)
def test_a_killed_run_of_other_settings_is_not_taken_up(tmp_path, other):
    killed(tmp_path, SETTINGS | other)
    assert taken_up(tmp_path) == {}


@pytest.mark.parametrize("what", ["versions", "code_hash"])
def test_rows_of_other_packages_or_of_other_code_are_not_taken_up(tmp_path, monkeypatch, what):
    killed(tmp_path)
    monkeypatch.setattr(runs, what, lambda: "other")
    assert taken_up(tmp_path) == {}


def test_rows_of_code_that_was_edited_since_are_not_taken_up(tmp_path, monkeypatch):
    code, identity = tmp_path / "code", ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    code.mkdir()
    (code / "judge.py").write_text("committed")
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=code, check=True, capture_output=True)
    monkeypatch.setattr(runs, "__file__", str(code / "runs.py"))
    (code / "judge.py").write_text("edited")
    killed(tmp_path / "sweep")
    assert taken_up(tmp_path / "sweep") == {"a": ROWS}
    (code / "judge.py").write_text("edited again")
    assert taken_up(tmp_path / "sweep") == {}


def test_a_finished_run_leaves_no_journal_and_does_not_count_it_as_an_artefact(tmp_path):
    stage = Stage(tmp_path)
    with stage.run(SETTINGS) as run:
        run.journal(WHERE).add("a", ROWS)
        run.finish({}, {})
    assert not (tmp_path / JOURNAL).exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["sha256"] == {}
    stage.verify()


def test_a_run_that_finishes_without_a_journal_removes_what_a_killed_one_left(tmp_path):
    killed(tmp_path, SETTINGS | {"keep_text": True})
    with Stage(tmp_path).run(SETTINGS) as run:
        run.finish({"verdict": "UNTESTABLE"}, {})
    assert not (tmp_path / JOURNAL).exists()


def test_a_journal_is_kept_where_the_summary_could_not_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    def work():
        with Stage(tmp_path).run(SETTINGS) as run:
            run.journal(WHERE).add("a", ROWS)
            run.finish({}, {})

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_signed", full)
        with pytest.raises(OSError, match="No space"):
            work()
    assert taken_up(tmp_path) == {"a": ROWS}


def test_a_second_run_is_refused_and_leaves_the_first_ones_journal_alone(tmp_path):
    stage = Stage(tmp_path)
    with stage.run(SETTINGS) as run:
        journal = run.journal(WHERE)
        journal.add("a", ROWS)
        before = (tmp_path / JOURNAL).read_bytes()
        with pytest.raises(FolderInUse), stage.run(SETTINGS | {"tokens": 9}) as other:
            other.journal(WHERE)
        assert (tmp_path / JOURNAL).read_bytes() == before
        journal.add("b", ROWS)
    assert taken_up(tmp_path) == {"a": ROWS, "b": ROWS}
