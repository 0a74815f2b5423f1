"""Experiments on a real NDIF server on this machine: the tables that this machine makes; kills."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import refuser

from refusal_nn.names import safe_name

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--n=80"]
FEW = [*SMALL, "--val=8", "--tokens=8", "--controls=2", "--layers=3,4", "--max-rank=2"]


def run(stage, results, *options):
    small = SMALL if stage in ("capture", "validate") else FEW
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{stage}", f"--results={results}", *options, *small],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trained(folder):
    """MODEL and PROMPTS of a tiny model that refuses: select takes it seconds, SmolLM2 an hour."""
    refuser.write_prompts(folder / "prompts.csv", 400)
    refuser.train(folder / "model", refuser.write_prompts(folder / "train.csv", 400, seed=1))
    return {"model": str(folder / "model"), "prompts": str(folder / "prompts.csv")}


def table(path):
    with path.open() as file:
        return list(csv.reader(file))


def number(cell):
    try:
        return float(cell)
    except ValueError:
        return None


def assert_same_tables(one, two):
    """Numbers within 2e-3, or 1e-4 of the largest in their column: a projection near 0 is a sum of
    large ones, as exact as they are."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.csv"))
    assert files
    for name in files:
        here, there = (zip(*table(root / name), strict=True) for root in (one, two))
        for ours, theirs in zip(here, there, strict=True):
            least = max(2e-3, 1e-4 * max(abs(number(cell) or 0) for cell in ours))
            for a, b in zip(ours, theirs, strict=True):
                if number(a) is None:
                    assert a == b, (name, ours[0])
                else:
                    assert number(a) == pytest.approx(number(b), rel=2e-3, abs=least, nan_ok=True)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("smollm2", ["validate", "sweep"]),
        ("organism-1", ["validate", "baseline"]),
        ("trained", ["validate", "sweep", "subspace"]),
    ],
)
def test_every_stage_gives_the_same_tables(tmp_path, model, stages):
    given = trained(tmp_path) if model == "trained" else {"model": model}
    for backend in ("local", "ndif"):
        for stage in ("capture", *stages):
            options = [f"--{name}={value}" for name, value in given.items()]
            options += [f"--backend={backend}", *["--dtype=float32"] * (backend == "local")]
            done = run(stage, tmp_path / backend, *options)
            output, _ = done.communicate()
            assert done.returncode == 0, output
    assert_same_tables(tmp_path / "local", tmp_path / "ndif")
    # Where nothing is testable there is no table of ablations to compare.
    curve = tmp_path / "local" / safe_name(given["model"]) / "subspace" / "rank_curve.csv"
    assert curve.exists() == ("subspace" in stages)


def test_a_client_that_is_killed_goes_on_where_it_was(tmp_path):
    options = ("--model=smollm2", "--backend=ndif")
    for seconds in (9, 14):
        begun = run("capture", tmp_path, *options)
        time.sleep(seconds)
        begun.send_signal(signal.SIGKILL)
        begun.communicate()
    done = run("capture", tmp_path, *options)
    output, _ = done.communicate()
    assert done.returncode == 0, output
    assert (tmp_path / "smollm2" / "capture" / "summary.json").exists()


def test_a_server_that_is_not_there_ends_in_one_line_and_its_exit_code(tmp_path):
    environment = dict(os.environ, NDIF_HOST="http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.capture", "--backend=ndif", f"--results={tmp_path}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "no NDIF server answers" in line
    assert "Traceback" not in done.stderr
