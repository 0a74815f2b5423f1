"""Rows of completions: the same however the work is cut, killed and taken up, and none dropped."""

import contextlib
import dataclasses
import hashlib
import json

import pytest
import torch

from refusal_nn import rollouts
from refusal_nn.effects import effects
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, orthonormal
from refusal_nn.journal import Journal
from refusal_nn.prompts import Prompt, load_prompts
from refusal_nn.rollouts import MARGIN, Job, Rollout, nll_limit, packs, units
from refusal_nn.scores import kl_divergence, refusal_score
from refusal_nn.tracing import next_token_logits

TOKENS = [40, 41, 300]
NEW = 8
PRIVATE = {"text", "evidence"}
FLOATS = ("refusal_score", "nll")


def direction(seed):
    return orthonormal(torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def prompts():
    return sorted(load_prompts(), key=lambda p: p.id)[::110]


@pytest.fixture(scope="module")
def arms(tiny_llama):
    """The clean model; two that stack, one at some layers; an addition, and one that stops."""
    [stop] = tiny_llama.stop_ids
    out = tiny_llama.module.lm_head.weight[stop]
    return {
        "clean": None,
        "first": DirectionalAblation(direction(1)),
        "second": DirectionalAblation(direction(2)),
        "window": DirectionalAblation(direction(1), layers=(2, 3)),
        "added": ActivationAddition(4 * direction(3)[0], 5),
        "stop": ActivationAddition(1e4 * out / out.norm(), 5),
    }


@pytest.fixture(scope="module")
def jobs(arms, prompts):
    """Each arm has prompts of its own."""
    return [Job(arm, p) for i, arm in enumerate(arms) for p in prompts[i % 3 :]]


@pytest.fixture(scope="module")
def rollout(tiny_llama):
    return Rollout(tiny_llama, TOKENS, NEW, keep_text=True)


@pytest.fixture(scope="module", autouse=True)
def units_no_larger_for_a_small_model():
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setattr(rollouts, "smallness", lambda model: 1)


@pytest.fixture(scope="module")
def rows(rollout, arms, jobs, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "progress.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "UNIT_ROWS", {"cpu": 3})
        return rollout.rows(arms, jobs, Journal(path, {}))


def alike(found, expected):
    """Equal, up to rounding of the floats."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert {k: v for k, v in a.items() if k not in FLOATS} == {
            k: v for k, v in b.items() if k not in FLOATS
        }
        for name in FLOATS:
            assert a[name] == (b[name] and pytest.approx(b[name], abs=1e-4))


@pytest.mark.parametrize(("size", "together"), [(2, 1), (7, 2), (64, 8)])
def test_rows_do_not_depend_on_how_jobs_are_cut_into_units(
    rollout, arms, jobs, rows, tmp_path, monkeypatch, size, together
):
    monkeypatch.setattr(rollouts, "UNIT_ROWS", {"cpu": size})
    monkeypatch.setattr(rollouts, "ARMS_OF_A_UNIT", together)
    alike(rollout.rows(arms, jobs, Journal(tmp_path / "j", {})), rows)


def test_a_row_per_job_in_the_order_asked_for(rollout, arms, jobs, rows, tmp_path):
    assert [(r["arm"], r["id"], r["class"]) for r in rows] == [
        (j.arm, j.prompt.id, j.prompt.label) for j in jobs
    ]
    journal = Journal(tmp_path / "j", {})
    alike(rollout.rows(arms, jobs[::-1], journal), rows[::-1])
    alike(rollout.rows(arms, jobs[:5], journal), rows[:5])
    assert rollout.rows(arms, [], journal) == []


def test_each_refusal_score_is_the_one_computed_alone(tiny_llama, arms, jobs, rows):
    for job, row in zip(jobs, rows, strict=True):
        logits = next_token_logits(tiny_llama, [job.prompt.prompt], arms[job.arm])
        expected = float(refusal_score(logits, TOKENS)[0])
        assert row["refusal_score"] == pytest.approx(expected, abs=1e-4)
    scores = {arm: [r["refusal_score"] for r in rows if r["arm"] == arm] for arm in arms}
    assert len({round(s[-1], 3) for s in scores.values()}) == len(arms)


def test_an_empty_completion_is_a_degenerate_row_and_is_not_dropped(rows):
    empty = [row for row in rows if row["arm"] == "stop"]
    assert len(empty) >= 3
    for row in empty:
        assert (row["text"], row["label"], row["coherence"]) == ("", "degenerate", 0.0)
        assert (row["tokens"], row["finished"], row["nll"]) == (1, True, None)
    assert {row["label"] for row in rows if row["arm"] == "first"} != {"degenerate"}


def test_text_is_kept_only_with_keep_text_and_else_only_its_hash(
    rollout, arms, jobs, rows, tmp_path
):
    journal = Journal(tmp_path / "j", {})
    silent = dataclasses.replace(rollout, keep_text=False).rows(arms, jobs, journal)
    alike(silent, [{k: v for k, v in row.items() if k not in PRIVATE} for row in rows])
    written = (tmp_path / "j").read_text()
    for row, kept in zip(silent, rows, strict=True):
        assert row["sha256"] == hashlib.sha256(kept["text"].encode()).hexdigest()
        assert len(kept["text"]) < 5 or json.dumps(kept["text"])[1:-1] not in written


def test_a_limit_makes_word_salad_degenerate_and_without_one_nothing_is(
    rollout, arms, jobs, rows, tmp_path, monkeypatch
):
    limited = dataclasses.replace(rollout, nll_limit=0.5)
    # Eight tokens are too few to be judged by their likelihood.
    short = limited.rows(arms, jobs, Journal(tmp_path / "short", {}))
    assert [row["label"] for row in short] == [row["label"] for row in rows]
    monkeypatch.setattr(rollouts, "NLL_FROM", 1)
    found = limited.rows(arms, jobs, Journal(tmp_path / "j", {}))
    assert all(row["nll"] is None or row["nll"] > 0.5 for row in rows)
    assert {row["label"] for row in found} == {"degenerate"}
    assert [row["nll"] for row in found] == [
        row["nll"] if row["nll"] is None else pytest.approx(row["nll"], abs=1e-4) for row in rows
    ]
    assert any(row["label"] == "compliance" for row in rows)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("after", "torn"), [(0, False), (0, True), (1, False), (1, True), (2, True)]
)
def test_a_killed_run_goes_on_with_the_missing_units_and_ends_in_the_same_rows(
    rollout, arms, jobs, tmp_path, monkeypatch, after, torn
):
    monkeypatch.setattr(rollouts, "UNIT_ROWS", {"cpu": 4})
    arms = {name: arms[name] for name in ("clean", "first", "second")}
    jobs = [job for job in jobs if job.arm in arms]
    whole, path = rollout.rows(arms, jobs, Journal(tmp_path / "whole", {})), tmp_path / "j"
    sizes, generate, seen = [len(u) for u in units(arms, jobs, 4)], rollouts.generate_scored, []

    def dying(model, texts, *rest, **options):
        if len(seen) == after:
            raise Killed
        seen.append(len(texts))
        return generate(model, texts, *rest, **options)

    monkeypatch.setattr(rollouts, "generate_scored", dying)
    with pytest.raises(Killed):
        rollout.rows(arms, jobs, Journal(path, {}))
    if torn:
        content = path.read_bytes()
        path.write_bytes(content[:-7] if after else content + b'{"unit": "0123", "ro')
    done = max(after - torn, 0)
    seen.clear()
    after = -1
    told = []
    assert rollout.rows(arms, jobs, Journal(path, {}), told.append) == whole
    assert seen == sizes[done:]
    # Units taken up count as done on the progress bar too.
    assert sum(told) == NEW * len(jobs)


def test_rows_of_one_intervention_are_not_taken_up_for_another_of_the_same_name(
    rollout, prompts, tmp_path
):
    journal, asked = Journal(tmp_path / "j", {}), [Job("best", p) for p in prompts]
    for seed in (1, 2):
        found = rollout.rows({"best": DirectionalAblation(direction(seed))}, asked, journal)
    fresh = Journal(tmp_path / "fresh", {})
    expected = rollout.rows({"best": DirectionalAblation(direction(2))}, asked, fresh)
    assert [r["refusal_score"] for r in found] == [r["refusal_score"] for r in expected]


def test_two_prompts_of_one_id_do_not_get_one_row(rollout, tmp_path):
    twins = [Prompt("p1", text, "harmless") for text in ("Name a river.", "What is 7 + 5, please?")]
    apart = [
        rollout.rows({"clean": None}, [Job("clean", p)], Journal(tmp_path / p.prompt[:4], {}))[0]
        for p in twins
    ]
    asked = [Job("clean", p) for p in twins]
    with contextlib.suppress(ValueError):  # refusing them is as good
        alike(rollout.rows({"clean": None}, asked, Journal(tmp_path / "j", {})), apart)


def test_only_arms_that_one_trace_can_hold_are_packed(arms, monkeypatch):
    names = ["clean", "first", "second", "window", "added", "stop"]
    assert list(packs(arms, names)) == [
        ["clean"],
        ["first", "second"],
        ["window"],
        ["added", "stop"],
    ]
    assert list(packs(arms, ["first", "clean", "second"])) == [["first"], ["clean"], ["second"]]
    many = {str(i): arms["first"] for i in range(20)}
    assert [len(pack) for pack in packs(many, list(many))] == [8, 8, 4]
    assert list(packs(arms, [])) == []


def test_units_hold_every_job_once_and_no_more_than_allowed(arms, jobs):
    for size in (1, 4, 100):
        cut = list(units(arms, jobs, size))
        held = [(job.arm, job.prompt.id) for unit in cut for job in unit]
        assert sorted(held) == sorted((job.arm, job.prompt.id) for job in jobs)
        assert max(map(len, cut)) <= size


def test_the_limit_is_the_95th_percentile_and_a_margin():
    assert nll_limit([1.0]) == 1.0 + MARGIN
    assert nll_limit([float(i) for i in range(101)]) == 95.0 + MARGIN
    assert nll_limit([]) == MARGIN


def test_effects_are_those_of_each_intervention_alone(tiny_llama, arms, texts):
    clean = next_token_logits(tiny_llama, texts)
    both = [arms["first"], arms["second"]]
    found = effects(tiny_llama, both, texts, TOKENS, clean)
    for i, arm in enumerate(both):
        alone = next_token_logits(tiny_llama, texts, arm)
        torch.testing.assert_close(
            found.refusal[i], refusal_score(alone, TOKENS), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(found.kl[i], kl_divergence(clean, alone), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="more than their vectors"):
        effects(tiny_llama, [arms["first"], arms["added"]], texts, TOKENS, clean)
