"""Against a real NDIF server on this machine (`make test-ndif` starts one): what it gives is what
this machine gives."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from refusal_nn import prompts
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.loading import load
from refusal_nn.ndif import Remote
from refusal_nn.tracing import capture, generate, next_token_logits, token_nll

ROOT = Path(__file__).parent.parent.parent
TEXTS = [p.prompt for p in prompts.load_prompts()[::40]]
NEW = 12
SMALL = ["--n=40", "--val=8", "--tokens=8", "--controls=2", "--layers=12-14", "--max-rank=2"]


@pytest.fixture(scope="module", params=["smollm2", "organism-1"])
def both(request, tmp_path_factory):
    jobs = tmp_path_factory.mktemp("jobs")
    here = load(request.param, dtype="float32", device="cpu")
    return here, load(request.param, remote=Remote(jobs))


def ablation(model, sets):
    basis = torch.randn(sets, 1, model.d_model, generator=torch.Generator().manual_seed(1))
    return DirectionalAblation(torch.nn.functional.normalize(basis, dim=-1))


def test_capture_is_the_same(both):
    one, two = (capture(model, TEXTS, (-1, -3)) for model in both)
    assert (one.states - two.states).norm() / one.states.norm() < 1e-4
    torch.testing.assert_close(one.means["all"], two.means["all"], atol=1e-3, rtol=1e-4)


def test_ablated_generation_is_the_same_token_for_token(both):
    edit = ablation(both[0], len(TEXTS))
    one, two = (generate(model, TEXTS, edit, max_new_tokens=NEW, chunk=5) for model in both)
    assert [c.ids for c in one] == [c.ids for c in two]


def test_logits_and_likelihoods_are_the_same(both):
    one, two = (next_token_logits(model, TEXTS) for model in both)
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)
    ids = [c.ids for c in generate(both[0], TEXTS, max_new_tokens=NEW)]
    for a, b in zip(*(token_nll(model, TEXTS, ids) for model in both), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def run(stage, results, *options):
    small = SMALL if stage != "capture" else SMALL[:1]
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{stage}", f"--results={results}", *options, *small],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def table(path):
    with path.open() as file:
        return list(csv.reader(file))


def assert_same_tables(one, two):
    files = sorted(path.relative_to(one) for path in one.rglob("*.csv"))
    assert files
    for name in files:
        for ours, theirs in zip(table(one / name), table(two / name), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                try:
                    assert float(a) == pytest.approx(float(b), rel=2e-3, abs=2e-3), name
                except ValueError:
                    assert a == b, name


@pytest.mark.parametrize("model", ["smollm2", "organism-1"])
def test_every_stage_gives_the_same_tables(tmp_path, model):
    for stage in ("select", "sweep", "subspace"):
        for backend in ("local", "ndif"):
            done = run(stage, tmp_path / backend, f"--model={model}", f"--backend={backend}")
            output, _ = done.communicate()
            assert done.returncode == 0, output
    assert_same_tables(tmp_path / "local", tmp_path / "ndif")


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
