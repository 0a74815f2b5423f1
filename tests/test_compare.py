"""make compare: which chains count, what is told of those that failed, what stays on disk."""

import json
import re
import sys

import pytest
from test_comparison import measured
from test_make import make

from experiments import compare, subspace
from refusal_nn import comparison
from refusal_nn.comparison import FAILED, OURS
from refusal_nn.errors import Incomplete, InputError
from refusal_nn.files import read_csv, read_json
from refusal_nn.published_rates import CROSS_MODEL


def runner(tmp_path, monkeypatch, *options):
    """Runs an experiment here, with results and figures in tmp_path."""
    folders = ["--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]

    def run(module, *more):
        monkeypatch.setattr(sys, "argv", ["x", *folders, *options, *more])
        module.main()

    return run


SAME = ["gemma2b google/gemma-2b-it", "qwen3 qwen/QWEN3-1.7b", "models/a ./models/a/"]
SAME += ["organism-1 organism-1-0"]


@pytest.mark.parametrize("models", SAME)
@pytest.mark.parametrize("step", [(), ("--settings-only",)])
def test_two_names_of_one_model_are_refused_before_anything_is_built(
    models, step, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^MODELS: (\S+) and (\S+) are the same model; leave one"):
        runner(tmp_path, monkeypatch)(compare, "--models", models, *step)
    assert not (tmp_path / "results").exists()


def test_folders_that_differ_in_letters_and_an_organism_that_is_not_there_are_models_of_their_own(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "A"):
        (tmp_path / "models" / name).mkdir(parents=True)
    names = "models/a models/A organism-77 organism-1 qwen qwen3"
    runner(tmp_path, monkeypatch)(compare, "--models", names, "--settings-only")


def test_a_name_that_is_no_utf8_is_a_line_like_any_other(tmp_path, monkeypatch, capsys):
    run, name = runner(tmp_path, monkeypatch), "./caf\udce9"
    for step in ((), ("--draw",)):
        run(compare, "--models", name, *step)
    with pytest.raises(Incomplete, match="1 of 1 models failed"):
        run(compare, "--models", name, "--show")
    assert "./caf\\udce9 failed: no finished run" in capsys.readouterr().out
    row, *_ = read_csv(tmp_path / "results" / "compare" / "compare.csv")
    assert row["model"] == row["hub_id"] == "./caf\\udce9"
    # As a finished model it has a row and cosines under one name.
    models = [measured(name, name)]
    assert comparison.table(models)[0]["model"] in comparison.at_equal_depth(models)


def test_where_every_model_failed_no_heatmap_of_an_earlier_comparison_stays(
    tmp_path, monkeypatch, capsys
):
    run, folder = runner(tmp_path, monkeypatch, "--models", "nosuch"), tmp_path / "figures/compare"
    folder.mkdir(parents=True)
    for name in ("heatmaps.png", "heatmaps.svg"):
        (folder / name).touch()
    run(compare)
    run(compare, "--draw")
    assert {path.stem for path in folder.iterdir()} == {"compare"}
    with pytest.raises(Incomplete):
        run(compare, "--show")
    assert f"compare.csv) and {folder} (compare.png)" in capsys.readouterr().out.replace("\n", "")


def test_a_comparison_of_no_model_is_made_by_a_command_without_one(tmp_path, monkeypatch):
    runner(tmp_path, monkeypatch)(compare)
    page = (tmp_path / "results" / "compare" / "compare.md").read_text()
    assert page.endswith(f"\n\n    make compare RESULTS={tmp_path}/results\n")


KILLED = "make[1]: *** [Makefile:159: results/x/capture/summary.json] Killed"
DELETED = "make[1]: *** Deleting file 'results/x/capture/summary.json'"
FAILED_BY = {
    f"a warning\n{KILLED}\n{DELETED}\n": "Killed while it made results/x/capture/summary.json; mem",
    f"a warning\n{KILLED.replace('Killed', 'Error 137')}\n": "Error 137 while it made results/x/ca",
    "Traceback\n  x\nRuntimeError: why\nmake[1]: *** [Makefile:9: a] Error 1\n": "Error 1 while it "
    "made a, after: RuntimeError: why",
    "make[1]: *** [a] Killed: 9\n": "Killed: 9 while it made a; memory may have run out",
    "make[1]: *** No rule to make target 'a'.  Stop.\n": "No rule to make target 'a'.  Stop.",
    "error: gated\na warning\nmake[1]: *** [Makefile:9: a] Error 3\n": "gated",
    "a warning\n": "no finished run of these settings",
}


@pytest.mark.parametrize("log", FAILED_BY)
def test_a_chain_failed_by_its_error_else_by_what_ended_it_and_not_by_a_warning(log, tmp_path):
    (tmp_path / compare.LOG).write_text(log)
    assert compare._why(tmp_path, "x").startswith(FAILED_BY[log])


def test_finished_stages_become_a_row_and_other_settings_do_not(tmp_path, monkeypatch, capsys):
    options = ["--n", "40", "--dtype", "float32", "--device", "cpu", "--tokens", "2"]
    run = runner(tmp_path, monkeypatch, *options)
    run(subspace, "--model", "tiny-llama")
    from experiments import similarity, sweep

    runner(tmp_path, monkeypatch, *options[:-2])(similarity, "--model", "tiny-llama")
    run(sweep, "--model", "tiny-llama")
    run(compare, "--models", "tiny-llama")
    run(compare, "--models", "tiny-llama", "--draw")
    run(compare, "--models", "tiny-llama", "--show")
    rows = read_csv(tmp_path / "results" / "compare" / "compare.csv")
    assert (rows[0]["model"], rows[0]["verdict"]) == ("tiny-llama", "UNTESTABLE")
    assert isinstance(rows[0]["late_half_cosine"], float)
    pictures = tmp_path / "figures" / "compare"
    assert (pictures / "heatmaps.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "Two modes: TOO FEW" in said
    assert f"{pictures} (compare.png, heatmaps.png)" in said
    page = (tmp_path / "results" / "compare" / "compare.md").read_text()
    command = "make compare MODELS=tiny-llama N=40 DTYPE=float32 DEVICE=cpu TOKENS=2 RESULTS="
    assert f"\n\n    {command}{tmp_path}/results\n" in page
    run(compare, "--models", "tiny-llama", "--seed", "7")
    with pytest.raises(Incomplete, match=r"^1 of 1 models failed: tiny-llama; the table is of"):
        run(compare, "--models", "tiny-llama", "--seed", "7", "--show")
    [row] = [r for r in read_csv(tmp_path / "results/compare/compare.csv") if r["source"] == OURS]
    assert row["verdict"] == FAILED
    assert 'make compare MODELS="tiny-llama"' in row["notes"]


def test_make_builds_each_chain_and_says_why_one_failed(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
case "$*" in *settings-only*) ;; *experiments.capture*--model=tiny-llama*)
    echo a warning >&2; kill -9 $$;; esac
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    names = "nosuch organism-77 tiny-llama"
    done = make("compare", tmp_path / "results", MODELS=names, PY=str(python))
    assert done.returncode == 2
    failed = "error: 3 of 3 models failed: nosuch, organism-77, tiny-llama; the table is of"
    assert failed in done.stderr
    assert "Error 9" in done.stderr
    assert "nosuch failed: unknown model 'nosuch'" in done.stdout
    rows = read_csv(tmp_path / "results" / "compare" / "compare.csv")[:3]
    assert [row["verdict"] for row in rows] == [FAILED] * 3
    assert rows[0]["notes"].startswith("unknown model 'nosuch'; choose one of smollm2")
    assert rows[1]["notes"].startswith("organism-77 is not bundled")
    assert re.match(r"Killed while it made \S+/capture/summary.json; memory", rows[2]["notes"])
    assert "going on without nosuch" in done.stderr
    page = (tmp_path / "results" / "compare" / "compare.md").read_text()
    assert page.index("Two modes") < page.index("| model |")
    summary = read_json(tmp_path / "results" / "compare" / "summary.json")
    assert summary["modes"][CROSS_MODEL]["verdict"] == "TWO MODES"
    assert json.dumps(summary).isascii()
