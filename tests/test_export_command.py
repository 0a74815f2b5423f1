"""`make export` writes what is finished, names what is not, keeps nothing of earlier results."""

import importlib.util
import json
import sys

import pytest
from test_exports import ROWS, direction_of

from experiments import export
from refusal_nn.errors import InputError
from refusal_nn.runs import Stage

BEST = {"layer": 2, "pos": -1, "alpha": 1.0}


@pytest.fixture
def exported(tmp_path, monkeypatch, capsys):
    """Runs the command on the results in tmp_path: names of the files there, and what was said."""

    def ask():
        monkeypatch.setattr(sys, "argv", ["export", "--model", "m", "--results", str(tmp_path)])
        export.main()
        there = {path.name for path in (tmp_path / "m" / "export").iterdir()}
        return {name for name in there if not name.endswith(".eval")}, capsys.readouterr().out

    return ask


def selected(model, root, chosen=None, **settings):
    with Stage(root / "m" / "select").run(settings) as run:
        direction_of(model, run.folder)
        run.finish({"n_layers": model.n_layers, "chosen": chosen}, {"model": "m"})


def swept(root, best=BEST, stage="sweep", **settings):
    """A stage with judged completions, as sweep's."""
    with Stage(root / "m" / stage).run(settings) as run:
        public = [{k: v for k, v in row.items() if k not in ("text", "evidence")} for row in ROWS]
        lines = "".join(json.dumps(row) + "\n" for row in public)
        (run.folder / "completions.jsonl").write_text(lines)
        run.finish({"best": best}, {"model": "m", "revision": "r"})


def interrupted(root, stage="sweep"):
    (root / "m" / stage / "summary.json").unlink()


def without(monkeypatch, *packages):
    """As on a machine where they are not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in packages else find(name)
    )


OF_DIRECTION = set(export.OF_DIRECTION)


def test_what_is_finished_is_exported_and_what_is_left_out_is_named(tiny_llama, tmp_path, exported):
    selected(tiny_llama, tmp_path)
    swept(tmp_path, BEST | {"alpha": 0.75})
    there, said = exported()
    assert there == OF_DIRECTION | {"sweep.parquet"}
    assert "the verdict is about ablation of strength 0.75" in said
    installed = importlib.util.find_spec("inspect_ai")
    assert installed or "sweep.eval left out: inspect_ai is not" in said


def test_an_interrupted_stage_is_left_out_and_the_others_are_exported(
    tiny_llama, tmp_path, exported
):
    selected(tiny_llama, tmp_path, chosen={"layer": 2, "pos": -1})
    swept(tmp_path)
    swept(tmp_path, stage="causal")
    interrupted(tmp_path)
    there, said = exported()
    assert there == OF_DIRECTION | {"causal.parquet"}
    assert "sweep.parquet, sweep.eval left out: " in said
    assert "sweep holds no finished run; run `make sweep` first" in said
    assert "the direction is select's choice: there is no finished sweep" in said


def test_without_a_finished_select_rows_are_exported_all_the_same(tiny_llama, tmp_path, exported):
    selected(tiny_llama, tmp_path)
    swept(tmp_path)
    interrupted(tmp_path, "select")
    there, said = exported()
    assert there == {"sweep.parquet"}
    assert f"{', '.join(export.OF_DIRECTION)} left out: " in said
    assert "select holds no finished run" in said


def test_a_file_that_was_changed_is_left_out_and_named(tiny_llama, tmp_path, exported):
    selected(tiny_llama, tmp_path)
    swept(tmp_path)
    (tmp_path / "m" / "sweep" / "completions.jsonl").write_text("{}\n")
    there, said = exported()
    assert there == OF_DIRECTION
    assert "sweep.parquet, sweep.eval left out: " in said
    assert "completions.jsonl is not what was written there" in said


def test_files_of_earlier_results_do_not_stay_beside_those_of_new_ones(
    tiny_llama, tmp_path, exported
):
    selected(tiny_llama, tmp_path)
    swept(tmp_path)
    exported()
    own = tmp_path / "m" / "export" / "notes.txt"
    own.write_text("a person's")
    selected(tiny_llama, tmp_path, n=1)
    swept(tmp_path, best=None, n=1)
    there, said = exported()
    assert there == {"sweep.parquet", own.name}
    removed = ", ".join(export.OF_DIRECTION)
    assert f"removed, for an earlier export made them: {removed}" in said


def test_they_do_not_stay_where_nothing_can_be_exported_either(tiny_llama, tmp_path, exported):
    selected(tiny_llama, tmp_path)
    swept(tmp_path)
    exported()
    for stage in ("select", "sweep"):
        interrupted(tmp_path, stage)
    with pytest.raises(InputError, match=r"made them: steered\.pt, "):
        exported()
    assert not list((tmp_path / "m" / "export").iterdir())


def test_a_sweep_of_another_run_than_the_select_beside_it_lends_it_no_direction(
    tiny_llama, tmp_path, exported
):
    selected(tiny_llama, tmp_path, chosen={"layer": 2, "pos": -1}, n=80, only_select=1)
    swept(tmp_path, n=40, only_sweep=1)
    there, said = exported()
    assert there == {"sweep.parquet"}
    assert "sweep is not of the select beside it" in said


def test_a_select_that_chose_none_gives_no_direction_and_says_so(tiny_llama, tmp_path, exported):
    selected(tiny_llama, tmp_path)
    with pytest.raises(InputError, match=r"nothing to export of m; .* select chose no direction"):
        exported()


def test_nothing_finished_is_nothing_to_export(exported):
    with pytest.raises(InputError, match=r"nothing to export of m; .* run `make select` first"):
        exported()


def test_a_stage_that_has_run_is_not_asked_for_where_a_package_is_lacking(
    tmp_path, exported, monkeypatch
):
    swept(tmp_path)
    without(monkeypatch, "pyarrow", "inspect_ai")
    with pytest.raises(InputError, match="pyarrow is not installed; run") as caught:
        exported()
    assert "make sweep" not in str(caught.value)
