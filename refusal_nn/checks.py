"""The self-test on load: does this model, in this dtype, do what every experiment will take for
granted?"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from refusal_nn.directions import difference_in_means, unit
from refusal_nn.errors import ModelError
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.models import TracedModel
from refusal_nn.prompts import LABELS, load_prompts
from refusal_nn.tracing import capture, next_token_logits, shares

# Unlike lengths, so that padding matters.
PROBES = (
    "Name a river in Africa.",
    "Why is the sky blue in the daytime and red in the evening, and what changes in between?",
    "Count to five",
    "Write one line about rain on a tin roof in a small town.",
)
PROBE_PAIRS = 32
# Relative error allowed between a prompt's logits in a batch and alone, and left along an ablated
# direction.
LOGITS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
RESIDUE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def self_tested(model: TracedModel) -> TracedModel:
    """Measure four things, stop on a failure (ModelError), and return the model with the
    measurements in `self_test`.

    batch_error: a prompt's logits in a left-padded batch against alone. prefix_error: the same with
    a shared, cached prefix; too large a value only turns sharing off. noop_identical: an ablation
    of strength 0 changes no bit. ablation_residue: largest |h·v| / |h| after any block when a
    random unit v is ablated at every write.
    """
    alone = next_token_logits(model, PROBES, share_prefix=False, token_budget=1)
    together = next_token_logits(model, PROBES, share_prefix=False)
    found: dict[str, float | bool] = {"batch_error": _relative(together, alone)}
    _require(
        found["batch_error"] <= LOGITS[model.dtype],
        model,
        f"logits in a batch differ from a prompt's alone by "
        f"{found['batch_error']:.1e} (allowed {LOGITS[model.dtype]:.0e}); padding or positions "
        "are wrong, or",
    )
    if model.shares_prefix:
        found["prefix_error"] = _relative(next_token_logits(model, PROBES), alone)
    basis = _random_direction(model)
    unchanged = next_token_logits(
        model, PROBES, DirectionalAblation(basis, alpha=0.0), share_prefix=False
    )
    found["noop_identical"] = torch.equal(unchanged, together)
    _require(found["noop_identical"], model, "an ablation of strength 0 changes the logits, or")
    left = shares(model, PROBES, basis.cpu(), DirectionalAblation(basis)).max(dim=0).values
    found["ablation_residue"] = float(left.max())
    _require(
        found["ablation_residue"] <= RESIDUE[model.dtype],
        model,
        f"ablating a direction leaves {found['ablation_residue']:.1e} of the stream along it, from "
        f"block {int((left > RESIDUE[model.dtype]).int().argmax())} on (allowed "
        f"{RESIDUE[model.dtype]:.0e}): add this architecture's write sites to FAMILIES, or",
    )
    sharing = found.get("prefix_error", float("inf")) <= LOGITS[model.dtype]
    return dataclasses.replace(model, shares_prefix=sharing, self_test=found)


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest distance between two rows of logits, as a share of the spread of the reference's
    logits."""
    return float(
        ((a - b).norm(dim=1) / (b - b.mean(1, keepdim=True)).norm(dim=1))
        .nan_to_num(torch.inf)
        .max()
    )


def _random_direction(model: TracedModel) -> torch.Tensor:
    v = torch.randn(1, model.d_model, generator=torch.Generator().manual_seed(0))
    return (v / v.norm()).to(model.device)


def _require(holds: bool, model: TracedModel, fault: str) -> None:
    if not holds:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ModelError(f"{model.name} fails its self-test in {dtype}: {fault} try DTYPE=float32")


def probe_directions(model: TracedModel) -> np.ndarray:
    """Unit differences in means of the probe prompts, (layer, d_model): a hard case.

    Twins differ little, so rounding weighs more than with prompt sets that differ in form.
    """
    states = capture(model, probe_prompts()).at(-1).numpy()
    return unit(difference_in_means(states[:, :PROBE_PAIRS], states[:, PROBE_PAIRS:]))


def probe_prompts() -> list[str]:
    """PROBE_PAIRS bundled harmful prompts, then their harmless twins, over all categories."""
    bundled = load_prompts()
    classes = [[p.prompt for p in bundled if p.label == label] for label in LABELS]
    step = len(classes[0]) // PROBE_PAIRS
    return [text for texts in classes for text in texts[::step][:PROBE_PAIRS]]


def precision_loss(exact: np.ndarray, narrow: np.ndarray) -> dict[str, object]:
    """What computing below float32 does to the probe directions.

    cosine_early, cosine_late: the least cosine of all layers, and from a quarter of the depth on.
    """
    cosine = (exact * narrow).sum(-1).tolist()
    late = cosine[len(cosine) // 4 :]
    return {
        "n": 2 * PROBE_PAIRS,
        "cosine_by_layer": cosine,
        "cosine_early": min(cosine),
        "cosine_late": min(late),
    }


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    """Cast every parameter in place and return the originals, in order.

    Parameters only: `module.to(dtype)` would also round the rotary buffers, which stay in float32.
    """
    originals = [parameter.data for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return originals
