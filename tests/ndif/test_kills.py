"""A server that dies as a machine does, in every stage at a random moment, and clients beside it:
the same command goes on, and ends in the tables of this machine. It starts the server itself:
make test-ndif-kills, which prints what was seen of each death."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_chain import ROOT, assert_same_tables, trained

from refusal_nn.names import safe_name

# So many prompts that capture takes two requests.
OPTIONS = ["N=280", "VAL=8", "TOKENS=8", "CONTROLS=2", "LAYERS=3,4", "MAX_RANK=2"]
# In the order of make; each begins when the one before has its summary. validate asks no server.
STAGES = ("capture", "validate", "select", "baseline", "sweep", "subspace")
BEFORE = dict(zip(STAGES[1:], STAGES[:-1], strict=True))
KILLS = [
    ("capture", "server"),
    ("select", "client and server"),
    ("baseline", "server"),
    ("sweep", "server"),
    ("sweep", "client"),
    ("subspace", "client and server"),
    ("subspace", "server"),
]
# Seconds from a server's death to the client's end: 30 of waits, and what a busy machine adds.
GIVES_UP = 90
# Jobs of a process, not of a unit of its journal; select has most: its filters, its fits, and the
# clean model's logits.
OWN = 5


def serve(*words):
    subprocess.run([Path(__file__).with_name("serve.sh"), *words], check=True)


class Chain:
    """`make` to validate, sweep and subspace in one results folder."""

    def __init__(self, results, given):
        self.results, self.run = results, results / safe_name(given["model"])
        self.log = results / "log"
        self.options = [*OPTIONS, *(f"{name.upper()}={value}" for name, value in given.items())]
        results.mkdir()

    def begin(self, *options, prefix=()):
        targets = [self.run / stage / "summary.json" for stage in ("validate", "subspace")]
        inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
        self.started = time.time()
        with self.log.open("w") as log:
            self.client = subprocess.Popen(
                [*prefix, "make", f"RESULTS={self.results}", *self.options, *options, *targets],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name not in inherited},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def begin_there(self):
        self.begin("BACKEND=ndif", prefix=(Path(__file__).with_name("serve.sh"), "run"))

    def ends_well(self):
        assert self.client.wait(timeout=1800) == 0, self.log.read_text()

    def finished(self, stage):
        """When a stage was; 0 if it is not."""
        path = self.run / stage / "summary.json"
        return path.stat().st_mtime if path.exists() else 0.0

    def jobs(self, stage):
        """Jobs that the last command has submitted in a stage, and when, by their file."""
        before = self.finished(BEFORE[stage]) if stage in BEFORE else 1.0
        if not before:
            return {}
        times = {path: path.stat().st_mtime for path in (self.run / "jobs").glob("*.json")}
        since, until = max(self.started, before), self.finished(stage) or np.inf
        return {path: when for path, when in times.items() if since <= when <= until}

    def wait_for(self, stage, jobs, seconds):
        while len(self.jobs(stage)) < jobs and not self.finished(stage):
            assert self.client.poll() is None, self.log.read_text()
            time.sleep(0.1)
        time.sleep(seconds)

    def journalled(self, stage):
        """Jobs of the last command whose answers are in a stage's journal, and its length."""
        journal = self.run / stage / "progress.jsonl"
        units = len(journal.read_text().splitlines()) - 1 if journal.exists() else 0
        until = journal.stat().st_mtime if units else 0.0
        return {path: when for path, when in self.jobs(stage).items() if when < until}, units

    def die(self, who):
        """Kill; what the client says at its end, and seconds until then."""
        begun = time.time()
        if "client" in who:
            os.killpg(self.client.pid, signal.SIGKILL)
        if "server" in who:
            serve("down")
        code, text = self.client.wait(timeout=GIVES_UP), self.log.read_text()
        assert "Traceback" not in text, text
        said = [line for line in text.splitlines() if line.startswith("error:")]
        if "client" in who:
            assert (code, said) == (-signal.SIGKILL, [])
            return "", time.time() - begun
        [line] = said
        assert "run the same command" in line or "no NDIF server answers" in line
        assert code == 2, text  # make's own
        assert "Error 5" in text
        return line, time.time() - begun


@pytest.fixture
def server():
    serve("up", "trusted")
    yield
    serve("down")


def killed_at_random(chain, whole, stage, who, rng):
    """Begin the chain, kill at a random job of a stage; jobs whose answers were journalled."""
    chain.begin_there()
    # In the first half, where the rest is for a second kill in the same stage.
    kills = [where for where, _ in KILLS].count(stage)
    asked = int(rng.integers(1, max(2, len(whole.jobs(stage)) // kills)))
    later = round(float(rng.uniform(0, 1.5)), 1)
    chain.wait_for(stage, asked, later)
    line, seconds = chain.die(who)
    kept, units = chain.journalled(stage)
    print(
        f"{who} killed in {stage}, {later} s after job {asked} of {len(whole.jobs(stage))}; ended "
        f"after {seconds:.0f} s; {units} units ({len(kept)} jobs) are in the journal; {line}"
    )
    return kept


def assert_not_asked_again(kept):
    again = [path for path, when in kept.items() if path.exists() and path.stat().st_mtime != when]
    print(f"asked again of those in the journal: {len(again)}")
    assert len(again) <= OWN, again


@pytest.mark.timeout(7200)
def test_a_chain_whose_server_dies_in_every_stage_ends_in_the_same_tables(tmp_path, server):
    given = trained(tmp_path)
    here, whole, killed = (Chain(tmp_path / name, given) for name in ("here", "whole", "killed"))
    here.begin("DTYPE=float32")
    here.ends_well()
    assert (here.run / "subspace" / "rank_curve.csv").exists(), "nothing was testable"
    whole.begin_there()
    whole.ends_well()
    assert_same_tables(here.run, whole.run)
    rng, kept = np.random.default_rng(int(os.environ.get("KILLS_SEED", "0"))), {}
    for stage, who in KILLS:
        before, kept = kept, killed_at_random(killed, whole, stage, who, rng)
        assert_not_asked_again(before)
        if "server" in who:
            serve("up", "trusted")
    killed.begin_there()
    killed.ends_well()
    assert_not_asked_again(kept)
    assert_same_tables(here.run, killed.run)
    files = [path for kind in ("*.csv", "completions.jsonl") for path in whole.run.rglob(kind)]
    for name in [path.relative_to(whole.run) for path in files]:
        assert (killed.run / name).read_bytes() == (whole.run / name).read_bytes(), name
