"""Is refusal in a chat model one direction, a low-rank subspace, or neither, and how sure are we?

    from refusal_nn import load, load_prompts, capture, difference_in_means, validate_layers

    model = load("smollm2")
    prompts = load_prompts()
    ...

Names are imported when first used, so that reading a table needs no torch.
"""

from __future__ import annotations

import importlib

_HOME = {
    "load": "loading",
    "Remote": "ndif",
    "MODELS": "models",
    "FAMILIES": "models",
    "TracedModel": "models",
    "Prompt": "prompts",
    "load_prompts": "prompts",
    "split": "splits",
    "near_duplicate_clusters": "splits",
    "capture": "tracing",
    "next_token_logits": "tracing",
    "generate": "tracing",
    "token_nll": "tracing",
    "Completion": "tracing",
    "Activations": "activations",
    "DirectionalAblation": "interventions",
    "ActivationAddition": "interventions",
    "project_out": "interventions",
    "orthonormal": "interventions",
    "difference_in_means": "directions",
    "masked_difference_in_means": "directions",
    "standardised_difference_in_means": "directions",
    "winsorised_difference_in_means": "directions",
    "layer_similarity": "directions",
    "select_candidate": "directions",
    "random_directions": "controls",
    "refusal_score": "scores",
    "kl_divergence": "scores",
    "judge": "judges",
    "Judgement": "judges",
    "load_judge": "judge_models",
    "single_direction": "verdicts",
    "Verdict": "verdicts",
    "cohens_kappa": "agreement",
    "mcnemar": "agreement",
    "split_half_cosine": "directions",
    "read_directions": "published",
    "load_direction": "saved_directions",
    "Direction": "saved_directions",
    "validate_layers": "statistics",
    "crossfit_projections": "statistics",
    "wilson": "statistics",
    "Estimate": "statistics",
    "confound_table": "confounds",
    "adjusted_direction": "confounds",
    "read_capture": "captured",
    "Subspace": "subspaces",
    "stack": "subspaces",
    "prompt_differences": "subspaces",
    "group_differences": "subspaces",
    "cluster_differences": "subspaces",
    "effective_rank": "subspaces",
    "principal_angles": "subspaces",
    "random_subspaces": "subspaces",
    "iterate_directions": "selection",
    "rank_of_refusal": "ranks",
    "RankVerdict": "ranks",
    "Adapter": "organisms",
    "read_organism": "organisms",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
