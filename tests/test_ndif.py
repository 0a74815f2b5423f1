"""A model on a server gives what it gives here; every fault ends in one line, nothing is lost."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nnsight
import pytest
import torch
from fake_ndif import FakeNdif, methods_kept

from experiments import console, progress
from refusal_nn import (
    feeding,
    interventions,
    jobs,
    models,
    ndif,
    organisms,
    passes,
    services,
    sources,
)
from refusal_nn.batch_files import BatchFiles
from refusal_nn.errors import InputError, RemoteFailure
from refusal_nn.interventions import ActivationAddition, DirectionalAblation
from refusal_nn.journal import Journal
from refusal_nn.loading import load
from refusal_nn.ndif import Remote
from refusal_nn.prompts import load_prompts
from refusal_nn.tracing import capture, generate, next_token_logits, token_nll

NEW = 9
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model as a folder that both sides read."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    fetched = sources.fetch("tiny-llama", torch.float32)
    fetched.model.save_pretrained(path)
    fetched.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def here(folder):
    return load(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def server(here, folder, monkeypatch):
    fake = FakeNdif(here, str(folder))
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", fake.host)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    monkeypatch.setattr(nnsight.ndif, "_REMOTE_ENV", None)
    monkeypatch.setattr(jobs, "WAITS", (0.01,) * 5)
    monkeypatch.setattr(jobs, "POLL", 0.01)
    with methods_kept(passes, interventions, models, feeding, organisms):
        yield fake
    fake.close()


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path / "jobs")


@pytest.fixture
def there(server, folder, remote):
    return load(str(folder), remote=remote)


def directions(model, sets):
    generator = torch.Generator().manual_seed(3)
    return torch.nn.functional.normalize(
        torch.randn(sets, 1, model.d_model, generator=generator), dim=-1
    )


def test_no_weights_are_loaded_here(there):
    assert {p.device.type for p in there.module.parameters()} == {"meta"}
    assert there.service.dtype == torch.float32
    assert there.self_test["noop_identical"] is True


def test_what_a_server_gives_is_what_this_machine_gives(here, there, texts):
    ablation = DirectionalAblation(directions(here, len(texts)))
    for edit in (None, ablation, ActivationAddition(torch.ones(here.d_model), layer=2)):
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(
            next_token_logits(there, texts, edit), next_token_logits(here, texts, edit), **close
        )
        ours, theirs = (
            generate(m, texts, edit, max_new_tokens=NEW, chunk=4) for m in (here, there)
        )
        assert ours == theirs
    one, two = (capture(m, texts, (-1, -4), groups=["a", "b"] * 6) for m in (here, there))
    torch.testing.assert_close(one.states, two.states, **close)
    torch.testing.assert_close(one.means["b"], two.means["b"], **close)
    ids = [c.ids for c in ours]
    for a, b in zip(token_nll(here, texts, ids), token_nll(there, texts, ids), strict=True):
        torch.testing.assert_close(a, b, **close)


def test_one_call_is_one_request_and_brings_back_little(server, there, texts):
    before, size = len(server.ran), server.bytes
    capture(there, texts, (-1,), token_budget=60)  # many batches
    assert len(server.ran) == before + 1
    numbers = there.n_layers * there.d_model * (len(texts) + 2 * len(there.template.tokens))
    assert server.bytes - size < 1.2 * 4 * numbers + 20_000


def test_large_answers_are_cut_into_several_requests(server, there, texts, monkeypatch):
    monkeypatch.setattr(services, "REQUEST_BYTES", 4 * there.module.config.vocab_size * 5)
    whole = len(server.ran)
    next_token_logits(there, texts, token_budget=1)
    assert len(server.ran) == whole + -(-len(texts) // 5)


def test_a_simulated_model_is_the_same_model(here, folder, texts):
    simulated = load(str(folder), dtype="float32", device="cpu", remote="simulate")
    assert any("simulated" in note for note in simulated.notes)
    assert generate(simulated, texts, max_new_tokens=NEW) == generate(
        here, texts, max_new_tokens=NEW
    )


def test_a_run_that_was_killed_takes_up_what_it_had_asked(server, there, texts, monkeypatch):
    server.silent = True
    monkeypatch.setattr(
        "refusal_nn.jobs.time.sleep", lambda s: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        next_token_logits(there, texts)
    monkeypatch.undo()
    asked = len(server.jobs)
    server.silent = False
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", server.host)
    found = next_token_logits(there, texts)
    assert len(server.jobs) == asked  # no second request
    assert found.shape[0] == len(texts)


def test_answers_that_are_no_longer_kept_are_asked_again(server, there, texts):
    first = next_token_logits(there, texts)
    server.jobs.clear()
    assert torch.equal(next_token_logits(there, texts), first)


@pytest.mark.parametrize("batches", [1, 6])
def test_a_killed_capture_asks_for_nothing_again_that_was_answered(
    server, there, texts, tmp_path, monkeypatch, batches
):
    monkeypatch.setattr(services, "REQUEST_ROWS", 5)
    before, done = len(server.jobs), iter(range(1, 99))
    about = {"groups": ["a", "b"] * (len(texts) // 2), "token_budget": 60}  # a row a batch
    whole = capture(there, texts, (-1, -2), **about)
    requests, answered = len(server.jobs) - before, -(-batches // 5)

    def killed(_):
        if next(done) == batches:
            raise KeyboardInterrupt

    def kept():
        return BatchFiles(tmp_path / "kept", Journal(tmp_path / "kept.jsonl", there.where))

    with pytest.raises(KeyboardInterrupt):
        capture(there, texts, (-1, -2), **about, kept=kept(), on_batch=killed)
    server.jobs.clear()  # the server's store dies with it
    again = capture(there, texts, (-1, -2), **about, kept=kept())
    assert len(server.jobs) == requests - answered
    assert torch.equal(again.states, whole.states)
    assert all(torch.equal(again.means[name], whole.means[name]) for name in "ab")


def test_what_is_timed_is_not_an_earlier_answer(server, there, texts):
    before, prompts = len(server.ran), load_prompts()[:3]
    for _ in range(2):
        progress.speed(there, prompts)
    assert len(server.ran) - before == 4
    with console.forecast_progress(there, texts, (-1,)):
        assert len(server.ran) - before == 6


def test_a_job_that_died_with_its_server_is_asked_again(server, there, texts, monkeypatch):
    first = next_token_logits(there, texts)
    # The server's store has outlived it, and says for ever that the job runs.
    server.dead = set(server.jobs)
    monkeypatch.setattr(jobs, "STALE", 0.05)
    assert torch.equal(next_token_logits(there, texts), first)


def test_a_job_that_the_server_lost_is_asked_again(server, there, texts, monkeypatch):
    monkeypatch.setattr(jobs, "LOST_FRESH", 5)
    submitted = server.submit

    def loses(envelope, blob):
        server.submit = submitted
        return "lost"

    server.submit = loses
    assert len(next_token_logits(there, texts)) == len(texts)


def test_a_batch_larger_than_a_request_is_cut(server, here, there, texts, monkeypatch):
    monkeypatch.setattr(services, "REQUEST_ROWS", 5)
    before = len(server.ran)
    assert (
        next_token_logits(there, texts).argmax(-1).equal(next_token_logits(here, texts).argmax(-1))
    )
    assert len(server.ran) - before == -(-len(texts) // 3)
    sums = [
        capture(m, texts, (-1,), groups=["a", "b"] * (len(texts) // 2)).means["a"]
        for m in (here, there)
    ]
    torch.testing.assert_close(*sums, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fault", [{"posts": [503, 502]}, {"posts": [0]}, {"looks": [503, 500]}])
def test_faults_of_the_transport_are_waited_out(server, there, texts, fault):
    for name, value in fault.items():
        setattr(server, name, list(value))
    assert len(next_token_logits(there, texts)) == len(texts)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"posts": [503] * 9}, r"answered 503 .* run the same command"),
        ({"looks": [503] * 9}, r"answered 503 .* run the same command"),
        ({"key": "right"}, r"does not accept this key .* NDIF_API_KEY"),
        (
            {"error": 'Traceback\n  File "refusal_nn/passes.py", line 9\nValueError: no'},
            "ValueError: no .*passes.py",
        ),
        ({"answer": {"found": [1, 2, 3]}}, "something else than was asked for"),
        ({"answer": {"other": 1}}, "something else than was asked for"),
        ({"posts": [422]}, "not now"),
    ],
)
def test_each_fault_ends_in_one_line_and_the_same_call_goes_on(server, there, texts, fault, words):
    clean = {name: getattr(server, name) for name in fault}
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(RemoteFailure, match=words) as raised:
        next_token_logits(there, texts)
    assert "\n" not in str(raised.value)
    for name in fault:
        setattr(server, name, [] if name in ("posts", "looks") else clean[name])
    assert len(next_token_logits(there, texts)) == len(texts)


def test_an_answer_that_never_comes_ends_at_the_deadline(server, there, texts):
    server.silent = True
    late = dataclasses.replace(there, service=dataclasses.replace(there.service, deadline=0.0))
    with pytest.raises(RemoteFailure, match="by the deadline; the same command takes its answer"):
        next_token_logits(late, texts)
    asked = len(server.jobs)
    # A job that is waited for in vain a second time may be dead.
    with pytest.raises(RemoteFailure, match="it will be asked again"):
        next_token_logits(late, texts)
    server.silent = False
    assert len(server.jobs) == asked
    next_token_logits(there, texts)
    assert len(server.jobs) == asked + 1
    next_token_logits(there, texts)
    assert len(server.jobs) == asked + 1


def test_a_server_that_goes_down_is_named(server, there, texts):
    server.close()
    with pytest.raises(RemoteFailure, match="no connection"):
        next_token_logits(there, texts)


def test_a_server_that_falls_silent_is_not_waited_for_past_the_deadline(server, there, texts):
    server.frozen = 40.0
    soon = dataclasses.replace(there.service, deadline=time.time() + 1)
    begun = time.monotonic()
    with pytest.raises(RemoteFailure, match=r"no connection \(ReadTimeout\)"):
        next_token_logits(dataclasses.replace(there, service=soon), texts)
    assert time.monotonic() - begun < 20
    server.frozen = 0.0
    assert len(next_token_logits(there, texts)) == len(texts)


def test_a_server_that_is_down_at_the_start_is_named(server, folder, remote):
    server.close()
    with pytest.raises(RemoteFailure, match=r"no NDIF server answers at .* BACKEND=local"):
        load(str(folder), remote=remote)


def test_other_versions_are_refused_unless_told_otherwise(server, folder, remote):
    server.env["packages"]["transformers"] = "4.0.0"
    with pytest.raises(RemoteFailure, match=r"transformers 4.0.0 there"):
        load(str(folder), remote=remote)
    said = []
    load(str(folder), remote=dataclasses.replace(remote, mismatch=True), say=said.append)
    assert any("versions differ" in line for line in said)


def test_before_anything_is_sent_the_user_is_told(server, folder, remote):
    said = []
    load(str(folder), remote=remote, say=said.append)
    assert "prompts leave this machine" in said[0]
    assert "HOT, RUNNING" in said[1]
    assert "versions match" in said[2]


@pytest.mark.parametrize("name", ["no-such-model", "tiny-llama", "planted-1-0"])
def test_a_model_that_no_server_has_is_refused(server, remote, name):
    with pytest.raises(InputError, match="cannot be on a server"):
        load(name, remote=remote)


def test_answers_kept_on_an_untrusted_host_are_not_fetched(server, there, texts):
    server.store = "http://store.example:9000"
    with pytest.raises(RemoteFailure, match=r"store.example:9000, neither https .* INSECURE_HOST"):
        next_token_logits(there, texts)


def test_an_answer_that_cannot_be_read_is_asked_for_again(server, there, texts):
    server.garbled = True
    with pytest.raises(RemoteFailure, match="cannot be read"):
        next_token_logits(there, texts)
    server.garbled = False
    assert len(next_token_logits(there, texts)) == len(texts)


def test_a_proxy_is_not_used_for_this_machine(server, folder, remote, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    assert load(str(folder), remote=remote).service.host == server.host


def test_a_server_that_changed_is_looked_at_anew(server, folder, remote):
    load(str(folder), remote=remote)
    ran = len(server.ran)
    load(str(folder), remote=remote)
    assert len(server.ran) == 2 * ran


def test_only_https_and_this_machine_are_trusted():
    for host in (
        "https://api.ndif.us",
        "http://127.0.0.1:8001",
        "http://localhost",
        "http://[::1]",
    ):
        ndif.require_safe(host, insecure=False)
    for host in ("http://api.ndif.us", "http://10.0.0.1", "http://127.0.0.1.example.org"):
        with pytest.raises(InputError, match="SECURITY"):
            ndif.require_safe(host, insecure=False)
        ndif.require_safe(host, insecure=True)
    for host in ("api.ndif.us", "http://[::1", "https://h:abc", "HTTPS://h", "https://me:pw@h"):
        with pytest.raises(InputError, match="must be as"):
            ndif.require_safe(host, insecure=True)


def test_dtype_and_device_are_the_servers(server, folder, remote):
    with pytest.raises(InputError, match="leave them auto"):
        load(str(folder), dtype="bfloat16", remote=remote)


def test_another_edit_is_another_request(server, there, texts):
    asked = len(server.jobs)
    for scale in (1.0, 0.5):
        next_token_logits(there, texts, DirectionalAblation(directions(there, 1)[0], alpha=scale))
    assert len(server.jobs) == asked + 2


def experiment(stage, host, *options):
    """An experiment in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", f"experiments.{stage}", "--n=40", *options]
    environment = os.environ | {"NDIF_HOST": host, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_stage_on_a_server_writes_the_tables_that_it_writes_here(server, folder, tmp_path):
    names = ("validation_results.csv", "variance_by_layer.csv", "projections.csv")
    found = {}
    for backend in ("local", "ndif"):
        for stage in ("capture", "validate"):
            options = [f"--model={folder}", f"--backend={backend}", f"--results={tmp_path}"]
            options += ["--dtype=float32"] * (backend == "local")
            done = experiment(stage, server.host, *options)
            assert done.returncode == 0, done.stderr
        [run] = tmp_path.glob("*/validate")
        found[backend] = [(run / name).read_text() for name in names]
    # All that differs are the last digits of other batches.
    for one, two in zip(found["local"], found["ndif"], strict=True):
        for a, b in zip(re.split(r"[,\n]", one), re.split(r"[,\n]", two), strict=True):
            if re.fullmatch(r"-?[\d.]+(e-?\d+)?", a):
                assert float(a) == pytest.approx(float(b), rel=1e-2, abs=1e-4)
            else:
                assert a == b


def test_a_fault_ends_a_stage_in_one_line_and_exit_code_5(server, folder, tmp_path):
    server.key = "another"
    done = experiment(
        "capture", server.host, f"--model={folder}", "--backend=ndif", f"--results={tmp_path}"
    )
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "NDIF_API_KEY" in line
