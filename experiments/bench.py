"""A causal stage at work: what the stages before it found, the model, its arms and their rows."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors import safe_open

from experiments import baseline, capture, causes, cli, progress, select
from refusal_nn import causal, controls, files, rollouts
from refusal_nn.activations import require_finite
from refusal_nn.captured import Captured, read_capture
from refusal_nn.effects import effects
from refusal_nn.errors import InputError, ModelError
from refusal_nn.interventions import DirectionalAblation, Intervention
from refusal_nn.journal import Journal
from refusal_nn.models import TracedModel
from refusal_nn.prompts import Prompt
from refusal_nn.runs import Run
from refusal_nn.tracing import next_token_logits

# Fewer prompts refused, or answered, at baseline than these leave nothing to compare.
LEAST = 5


@dataclass(frozen=True)
class Found:
    """What select, baseline and capture found.

    directions: (layer, pos, d_model), raw. baseline: judged completions of the clean model, by set
    of prompts, in the precision text_dtype. reasons: why nothing can be tested, in words.
    """

    parts: dict[str, list[Prompt]]
    chosen: dict[str, object] | None
    directions: torch.Tensor | None
    baseline: dict[str, list[causes.Row]]
    nll_limit: float
    reasons: list[str]
    origin: dict[str, object]
    text_dtype: str

    def refused(self, split: str) -> list[Prompt]:
        """Harmful prompts of a split that the clean model refuses, by the rule judge."""
        return self._labelled(f"{split}.harmful", "refusal")

    def answered(self, split: str) -> list[Prompt]:
        """Harmless prompts of a split that the clean model answers."""
        return self._labelled(f"{split}.harmless", "compliance")

    def _labelled(self, name: str, label: str) -> list[Prompt]:
        ids = {row["id"] for row in self.baseline.get(name, []) if row["label"] == label}
        return [p for p in self.parts[name.partition(".")[0]] if p.id in ids]


def found_before(args: argparse.Namespace) -> Found:
    """The finished stages that this one stands on, computed first where they are missing."""
    chose = cli.up_to_date(args, select.NAME, select.settings(args), select.compute)
    about, directions = chose.about(), None
    if about["verdict"] is None:
        with safe_open(chose.artefact("directions.safetensors"), "pt") as file:
            directions = file.get_tensor("directions")
        _require_position(args, directions)
    asked = cli.up_to_date(args, baseline.NAME, baseline.settings(args), baseline.compute)
    limit = asked.about()["nll_limit"]
    rows = causal.grouped(files.read_jsonl(asked.artefact("completions.jsonl")), "set")
    origin = files.read_json(chose.folder / "manifest.json")
    origin = {k: v for k, v in origin.items() if k in causes.ORIGIN}
    dtype = files.read_json(asked.folder / "manifest.json")["dtype"]
    found = Found(causes.parts(args), about["chosen"], directions, rows, limit, [], origin, dtype)
    found.reasons.extend(_why_not(about, _too_few(found)))
    return found


def _why_not(selected: causes.Row, few: Sequence[str]) -> list[str]:
    """Why nothing can be tested: what select lacks, what the baseline does, and where first words
    alone tell of too few refusals, that."""
    reasons = [*selected["reasons"], *few]
    harmful = [row for row in selected["counts"] if row["class"] == "harmful"]
    if select.lacking(harmful) and not few:
        words = ", ".join(selected["refusal_tokens"])
        reasons.append(
            f"by its completions the model does refuse, but few refusals begin with {words}: give "
            "their first words as REFUSAL_WORDS="
        )
    return reasons


def _require_position(args: argparse.Namespace, directions: torch.Tensor) -> None:
    if -causes.first_position(args) > directions.shape[1]:
        raise InputError(
            f"POSITIONS={args.positions}: directions are fitted at tokens after the instruction, "
            f"-1 to -{directions.shape[1]}"
        )


def _too_few(found: Found) -> list[str]:
    did = {
        "harmful prompts refused at baseline in val": (found.refused("val"), "val.harmful"),
        "harmful prompts refused at baseline in test": (found.refused("test"), "test.harmful"),
        "harmless prompts answered at baseline in val": (found.answered("val"), "val.harmless"),
        "harmless prompts answered at baseline in test": (found.answered("test"), "test.harmless"),
    }
    return [
        f"{len(prompts)} {what}, of {len(found.baseline.get(name, []))} asked: fewer than {LEAST}"
        for what, (prompts, name) in did.items()
        if len(prompts) < LEAST
    ]


@dataclass(frozen=True)
class Bench:
    """The loaded model and how arms run on it; every row goes through the stage's journal."""

    args: argparse.Namespace
    found: Found
    rollout: rollouts.Rollout
    journal: Journal
    per_second: float
    clean: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, args: argparse.Namespace, found: Found, run: Run) -> Bench:
        model = causes.load_for_text(args)
        require_same(found.origin, capture.origin(args, model))
        _require_precision(found.text_dtype, model)
        rollout = baseline.rollout_of(args, model, found.nll_limit)
        per_second = progress.speed(rollout.model, found.parts["val"])
        return cls(args, found, rollout, run.journal(rollout.model.where), per_second)

    @property
    def model(self) -> TracedModel:
        return self.rollout.model

    def has_direction(self, layer: int, pos: int) -> bool:
        """A layer at which all prompts have one state, such as an embedding, has none."""
        return bool(self.found.directions[layer, pos].norm() > 0)

    def vector(self, layer: int, pos: int) -> torch.Tensor:
        """Raw difference in means, (d_model,), on the model's device."""
        return self.found.directions[layer, pos].to(self.model.device)

    def ablation(
        self, layer: int, pos: int, alpha: float, at: Sequence[int] | None = None
    ) -> DirectionalAblation:
        """Ablate the direction of one place everywhere, or in the stream after the layers `at`."""
        return _ablation(self.vector(layer, pos), alpha, at)

    def span(self, basis: np.ndarray) -> DirectionalAblation:
        """Ablate a subspace everywhere: rows (rank, d_model) orthonormal.

        Rows of zeros, which remove nothing, bring all ranks to one shape: one trace can hold them.
        """
        rows = np.zeros((max(self.args.max_rank, len(basis)), self.model.d_model))
        rows[: len(basis)] = basis
        return DirectionalAblation(
            torch.tensor(rows, dtype=torch.float32, device=self.model.device)
        )

    @functools.cached_property
    def captured(self) -> Captured:
        """The capture of these settings, made first if it is missing."""
        done = cli.up_to_date(
            self.args, capture.NAME, cli.capture_settings(self.args), capture.compute
        )
        return read_capture(done.folder)

    @functools.cached_property
    def harmless(self) -> np.ndarray:
        """Activations of harmless fit prompts, (layer, prompt, d_model)."""
        return self.captured.classes("fit", causes.first_position(self.args)).harmless

    def random_vectors(self, layer: int, count: int) -> torch.Tensor:
        """Unit directions (count, d_model) drawn from the covariance of harmless prompts at one
        layer."""
        drawn = controls.random_directions(self.harmless[layer], count, self.args.seed + layer)
        return torch.tensor(drawn, dtype=torch.float32, device=self.model.device)

    def controls(
        self, layer: int, count: int, alpha: float, at: Sequence[int] | None = None
    ) -> list[Intervention]:
        """The ablation's matched controls: random directions at the same sites."""
        return [_ablation(vector, alpha, at) for vector in self.random_vectors(layer, count)]

    def roll(
        self, arms: rollouts.Arms, asked: Mapping[str, Sequence[Prompt]], what: str
    ) -> list[causes.Row]:
        """Judged completions of each arm's own prompts, arm by arm."""
        jobs = [rollouts.Job(name, prompt) for name in arms for prompt in asked[name]]
        with progress.completing(what, len(jobs), self.args.tokens, self.per_second) as on_tokens:
            return self.rollout.rows(arms, jobs, self.journal, on_tokens)

    def kl(self, arms: rollouts.Arms, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Mean KL of each arm from the clean model on the next token after these prompts, nats."""
        texts, found = tuple(p.prompt for p in prompts), {}
        for names in rollouts.packs(arms, list(arms)):
            unit = rollouts.fingerprint(arms, names, ("kl", names, texts))
            if unit not in self.journal.done:
                self.journal.add(unit, self._kl([arms[name] for name in names], texts))
            found |= {
                name: row["kl"] for name, row in zip(names, self.journal.done[unit], strict=True)
            }
        return found

    def _kl(self, arms: Sequence[Intervention], texts: Sequence[str]) -> list[causes.Row]:
        tokens, clean = self.rollout.refusal_tokens, self.clean_logits(texts)
        kl = effects(self.model, arms, texts, tokens, clean).kl
        require_finite(kl.isfinite(), range(len(texts)), self.model, what="KL of an ablation")
        return [{"kl": float(row.mean())} for row in kl]

    def clean_logits(self, texts: Sequence[str]) -> torch.Tensor:
        """The untouched model's next-token logits, asked for once."""
        key = tuple(texts)
        if key not in self.clean:
            self.clean[key] = next_token_logits(self.model, key)
        return self.clean[key]


def require_same(then: causes.Row, now: causes.Row) -> None:
    """Raises ModelError where directions were fitted on other weights or another template than
    are loaded: a repository may have moved on meanwhile."""
    for name in ("revision", "template_sha256"):
        if then.get(name) != now[name]:
            raise ModelError(
                f"{now['model']}: its directions were fitted at {name} {then.get(name)}, loaded is "
                f"{now[name]}; give another RESULTS= folder, or remove this one's"
            )


def _require_precision(then: str, model: TracedModel) -> None:
    """Raises ModelError where the untouched model completed in another precision: DTYPE=auto may
    choose another on another machine, or beside what fills its memory."""
    if then != str(model.dtype):
        raise ModelError(
            f"{model.name}: its baseline completed in {then}, now it would be {model.dtype} "
            f"({'; '.join(model.notes)}); give DTYPE=, or another RESULTS= folder"
        )


def _ablation(vector: torch.Tensor, alpha: float, at: Sequence[int] | None) -> DirectionalAblation:
    unit = (vector / vector.norm())[None]
    return DirectionalAblation(unit, alpha, None if at is None else tuple(at))
