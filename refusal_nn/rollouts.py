"""Completions of prompts under interventions, judged: what the causal experiments are made of.

An arm is a named intervention (or none: the clean model); a job is one prompt under one arm. Jobs
are cut into units of fixed composition, each kept by the journal as it is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from refusal_nn.activations import require_finite
from refusal_nn.errors import InputError
from refusal_nn.feeding import smallness
from refusal_nn.interventions import Intervention, stacked
from refusal_nn.journal import Journal, Rows
from refusal_nn.judge_models import ModelJudge
from refusal_nn.judges import Judgement, judge
from refusal_nn.models import TracedModel
from refusal_nn.prompts import Prompt
from refusal_nn.scores import begins_refusal, refusal_score
from refusal_nn.tracing import Completion, generate_scored, token_nll

# Arms asked together: for logits, of as many prompts each; for completions, where controls have few
# prompts each and a unit should be full. And rows of a unit, by device.
ARMS_TOGETHER, ARMS_OF_A_UNIT = 8, 32
UNIT_ROWS = {"cpu": 128, "cuda": 256, "mps": 128}
# Nats per token. Coherent texts under ablation were seen up to 0.7 above the clean model's own
# (SmolLM2, Qwen2.5-Coder-0.5B), word salad 3 and more: LOG.md.
MARGIN = 1.5
NLL_FROM = 12  # tokens; shorter texts are not judged by their likelihood

Arms = Mapping[str, Intervention | None]


class Job(NamedTuple):
    arm: str
    prompt: Prompt


@dataclass(frozen=True)
class Rollout:
    """How completions are made and read.

    refusal_tokens: of the refusal score. nll_limit: nats per token above which the clean model
    holds a text for word salad; None: not looked at. second: a judge model beside the rule judge.
    keep_text: rows keep completion and evidence.
    """

    model: TracedModel
    refusal_tokens: Sequence[int]
    max_new_tokens: int = 100
    nll_limit: float | None = None
    second: ModelJudge | None = None
    keep_text: bool = False

    def rows(
        self,
        arms: Arms,
        jobs: Sequence[Job],
        journal: Journal,
        on_tokens: Callable[[int], object] = lambda tokens: None,
    ) -> Rows:
        """A row per job, in the order of `jobs`; units in the journal are not run again."""
        if len({(job.arm, job.prompt.id) for job in jobs}) < len(jobs):
            raise InputError("two prompts of one arm have the same id; ids must be unique")
        found: dict[tuple[str, str], dict[str, object]] = {}
        most = UNIT_ROWS.get(self.model.device_type, 128) * smallness(self.model)
        for unit in units(arms, jobs, most):
            about = [(job.arm, job.prompt.id, job.prompt.prompt) for job in unit]
            name = fingerprint(arms, list(dict.fromkeys(job.arm for job in unit)), about)
            if name not in journal.done:
                journal.add(name, self._unit(arms, unit, on_tokens))
            else:
                on_tokens(self.max_new_tokens * len(unit))
            found |= {(row["arm"], row["id"]): row for row in journal.done[name]}
        return [found[job.arm, job.prompt.id] for job in jobs]

    def _unit(
        self, arms: Arms, unit: Sequence[Job], on_tokens: Callable[[int], object]
    ) -> Iterator[dict[str, object]]:
        names = list(dict.fromkeys(job.arm for job in unit))
        intervention = arms[names[0]] if len(names) == 1 else stacked([arms[n] for n in names])
        sets = [names.index(job.arm) for job in unit] if len(names) > 1 else None
        texts = [job.prompt.prompt for job in unit]
        completions, logits = generate_scored(
            self.model, texts, intervention, sets=sets, max_new_tokens=self.max_new_tokens
        )
        called = [f"{job.prompt.id} ({job.arm})" for job in unit]
        require_finite(logits.isfinite().all(-1), range(len(unit)), self.model, called, "logits")
        scores = refusal_score(logits, self.refusal_tokens).tolist()
        begins = begins_refusal(logits, self.refusal_tokens).tolist()
        on_tokens(self.max_new_tokens * len(unit))
        judged = [
            judge(job.prompt.prompt, done.text) for job, done in zip(unit, completions, strict=True)
        ]
        nll = self._nll(unit, completions, judged)
        seconds = self._seconds(unit, completions)
        for i, job in enumerate(unit):
            first = {"refusal_score": scores[i], "begins_refusal": begins[i]}
            yield first | self._row(job, completions[i], judged[i], nll.get(i)) | seconds[i]

    def _seconds(
        self, unit: Sequence[Job], completions: Sequence[Completion]
    ) -> list[dict[str, object]]:
        """The judge model's labels, None where it gave none that can be read."""
        if self.second is None:
            return [{} for _ in unit]
        pairs = [
            (job.prompt.prompt, done.text) for job, done in zip(unit, completions, strict=True)
        ]
        return [{"judge_label": label} for label in self.second.judge_all(pairs)]

    def _nll(
        self, unit: Sequence[Job], completions: Sequence[Completion], judged: Sequence[Judgement]
    ) -> dict[int, float]:
        """Mean nats per token of those not seen to refuse or break down by their words alone."""
        asked = [i for i, by in enumerate(judged) if by.label not in ("refusal", "degenerate")]
        if not asked:
            return {}
        values = token_nll(
            self.model,
            [unit[i].prompt.prompt for i in asked],
            [completions[i].ids for i in asked],
        )
        means = torch.stack([v.double().mean() for v in values])
        called = [job.prompt.id for job in unit]
        require_finite(means.isfinite(), asked, self.model, called, "likelihoods")
        return dict(zip(asked, means.tolist(), strict=True))

    def _row(
        self, job: Job, done: Completion, found: Judgement, nll: float | None
    ) -> dict[str, object]:
        """found: by the words alone."""
        limit = self.nll_limit
        # The first tokens of an answer that the clean model would refuse are unlikely in any case.
        if nll is not None and limit is not None and len(done.ids) >= NLL_FROM:
            found = judge(job.prompt.prompt, done.text, nll=nll, nll_limit=limit)
        row = {
            "arm": job.arm,
            "id": job.prompt.id,
            "class": job.prompt.label,
            "label": found.label,
            "compliance": found.compliance,
            "coherence": found.coherence,
            "nll": nll,
            "tokens": len(done.ids),
            "finished": done.finished,
            "sha256": hashlib.sha256(done.text.encode()).hexdigest(),
        }
        return row | ({"text": done.text, "evidence": found.evidence} if self.keep_text else {})


def units(arms: Arms, jobs: Sequence[Job], rows: int) -> Iterator[list[Job]]:
    """Jobs in units of at most `rows`, of arms that one trace can hold, like lengths together."""
    by_arm: dict[str, list[Job]] = {}
    for job in jobs:
        by_arm.setdefault(job.arm, []).append(job)
    for pack in packs(arms, list(by_arm), ARMS_OF_A_UNIT):
        together = [job for name in pack for job in by_arm[name]]
        together.sort(key=lambda job: len(job.prompt.prompt))
        for i in range(0, len(together), rows):
            yield together[i : i + rows]


def packs(arms: Arms, names: Sequence[str], most: int = ARMS_TOGETHER) -> Iterator[list[str]]:
    """Names of arms that one trace can hold, at most so many, in order."""
    pack: list[str] = []
    for name in names:
        new = [*pack, name]
        fits = len(new) <= most and None not in (arms[n] for n in new)
        if pack and not (fits and stacked([arms[n] for n in new])):
            yield pack
            new = [name]
        pack = new
    if pack:
        yield pack


def fingerprint(arms: Arms, names: Sequence[str], about: object) -> str:
    """Of all that decides a unit's rows: `about` (its prompts), and its interventions number by
    number."""
    digest = hashlib.sha256(repr(about).encode())
    for name in names:
        arm = arms[name]
        for field in () if arm is None else dataclasses.fields(arm):
            value = getattr(arm, field.name)
            digest.update(
                value.cpu().numpy().tobytes() if torch.is_tensor(value) else repr(value).encode()
            )
    return digest.hexdigest()[:16]


def nll_limit(own: Sequence[float]) -> float:
    """Nats per token above which a text is salad to the clean model: its own texts' 95th percentile
    and MARGIN more."""
    return (float(np.quantile(own, 0.95)) if len(own) else 0.0) + MARGIN
