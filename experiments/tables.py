"""From captured activations to the validate stage's tables, and from those to what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from refusal_nn import confounds as form
from refusal_nn import findings as seed004
from refusal_nn import saved_directions, statistics
from refusal_nn.captured import Captured, Classes
from refusal_nn.directions import difference_in_means, unit

Row = dict[str, object]
ORIGIN = ("model", "revision", "dtype", "device", "backend", "seed")
ORIGIN += ("template_sha256", "system_prompt", "prompt_set_sha256")
PROMPT_COLUMNS = ("id", "label", "split", "category", "severity")


class Analysis(NamedTuple):
    """All of the validate stage's tables. directions: (layer, d_model), raw, of the fit prompts."""

    rows: list[Row]
    directions: np.ndarray
    projections: list[Row]
    spread: list[Row]
    confounds: Row
    by_position: list[Row]
    summary: Row


def analyse(captured: Captured, permutations: int, folds: int, seed: int) -> Analysis:
    """Experiment 0 at the first captured position; every position together in by_position."""
    pos = captured.positions[0]
    fit, test = captured.classes("fit", pos), captured.classes("test", pos)
    options = {"clusters": fit.clusters, "folds": folds, "seed": seed}
    rows = statistics.validate_layers(
        fit.harmful, fit.harmless, permutations=permutations, **options
    )
    directions = difference_in_means(fit.harmful, fit.harmless)
    projected = projections(captured, directions, options)
    spread = seed004.spread_by_layer(*in_sample(projected, len(rows)), mean_norms(fit))
    found = findings(rows, spread, projected, seed)
    peak = found["4_progressive_build_up"]["peak_layer"]
    about = {"position": pos, "token": captured.tokens[0], "folds": folds}
    about |= {"permutations": permutations, **summary(rows, found)}
    labels = np.array([row["label"] == "harmful" for row in test.rows], dtype=bool)
    if min(len(np.unique(test.clusters[chosen])) for chosen in (labels, ~labels)) > 1:
        about["peak_on_test"] = seed004.on_fresh_prompts(
            unit(directions)[peak], test.harmful[peak], test.harmless[peak], test.clusters
        )
    several = len(captured.positions) > 1
    everywhere = by_position(captured, permutations, options) if several else []
    confounded = confounds(fit, projected, peak)
    return Analysis(rows, directions, projected, spread, confounded, everywhere, about)


def projections(
    captured: Captured, directions: np.ndarray, options: Mapping[str, object]
) -> list[Row]:
    """A row per prompt and layer. projection: onto the unit direction fitted on all fit prompts.
    held_out: from the midpoint, by a direction that has not seen the prompt's cluster (cross-fitted
    within fit; the fit direction on val and test)."""
    units, pos = unit(directions), captured.positions[0]
    fit = captured.classes("fit", pos)
    found: list[Row] = []
    for split in ("fit", "val", "test"):
        part = captured.classes(split, pos)
        states = np.concatenate([part.harmful, part.harmless], axis=1).astype(np.float64)
        along = np.einsum("lnd,ld->ln", states, units)
        if split == "fit":
            middle = (
                along[:, : fit.harmful.shape[1]].mean(1) + along[:, fit.harmful.shape[1] :].mean(1)
            ) / 2
            unseen = statistics.crossfit_projections(fit.harmful, fit.harmless, **options)
        else:
            unseen = along - middle[:, None]
        found += [
            {
                **{k: row[k] for k in PROMPT_COLUMNS},
                "layer": layer,
                "projection": float(along[layer, i]),
                "held_out": float(unseen[layer, i]),
            }
            for layer in range(len(units))
            for i, row in enumerate(part.rows)
        ]
    return found


def held_out(rows: Sequence[Row], layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out projections (layer, prompt) of the fit prompts, and their labels (True: harmful)."""
    return _of_fit(rows, layers, "held_out")


def in_sample(rows: Sequence[Row], layers: int) -> tuple[np.ndarray, np.ndarray]:
    """In-sample projections (layer, prompt) of the fit prompts, and their labels (True:
    harmful)."""
    return _of_fit(rows, layers, "projection")


def _of_fit(rows: Sequence[Row], layers: int, column: str) -> tuple[np.ndarray, np.ndarray]:
    fit = [row for row in rows if row["split"] == "fit"]
    values = np.array([row[column] for row in fit], dtype=float).reshape(layers, -1)
    return values, np.array([row["label"] == "harmful" for row in fit[: values.shape[1]]])


def mean_norms(part: Classes) -> list[float]:
    return [
        float(np.linalg.norm(np.concatenate([h, s]), axis=1).mean())
        for h, s in zip(part.harmful, part.harmless, strict=True)
    ]


def findings(
    rows: Sequence[Row], spread: Sequence[Row], projected: Sequence[Row], seed: int
) -> dict[str, Row]:
    """Seed 004's findings 1-5 as numbers."""
    scores, labels = held_out(projected, len(rows))
    prompts = [row for row in projected if row["split"] == "fit"][: labels.size]
    progress = seed004.build_up(rows, spread)
    at_peak = scores[progress["peak_layer"]]
    severity = [row["severity"] for row, harmful in zip(prompts, labels, strict=True) if harmful]
    return {
        "1_universal_separation": seed004.universal(rows),
        "2_first_layer_without_overlap": seed004.first_without_overlap(rows),
        "3_gradient_or_binary": seed004.gradient(at_peak, labels, severity, seed),
        "4_progressive_build_up": progress,
        "5_outliers": seed004.outliers(at_peak, labels, [str(row["id"]) for row in prompts]),
    }


def confounds(fit: Classes, projected: Sequence[Row], peak: int) -> Row:
    """Surface features by class, the direction's cosine with the one at equal form, and its overlap
    with each feature."""
    layers = len(fit.harmful)
    scores, labels = held_out(projected, layers)
    cosine = form.adjusted_cosine(fit.harmful, fit.harmless, fit.rows)
    overlap = form.projection_overlap(scores, labels, fit.rows)
    return {
        "features": form.confound_table(fit.rows, labels, fit.clusters),
        "adjusted_cosine_by_layer": cosine.tolist(),
        "peak_layer": peak,
        "adjusted_cosine_at_peak": float(cosine[peak]),
        "correlation_with_projection_at_peak": {k: v[peak] for k, v in overlap.items()},
        "correlation_with_projection_by_layer": overlap,
    }


def by_position(captured: Captured, permutations: int, options: Mapping[str, object]) -> list[Row]:
    """validate_layers at every captured position at once, so that p_familywise covers layers and
    positions together."""
    parts = [captured.classes("fit", pos) for pos in captured.positions]
    harmful, harmless = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("harmful", "harmless")
    )
    layers = len(parts[0].harmful)
    rows = statistics.validate_layers(harmful, harmless, permutations=permutations, **options)
    return [
        {
            "pos": captured.positions[i // layers],
            "token": captured.tokens[i // layers],
            **row,
            "layer": i % layers,
        }
        for i, row in enumerate(rows)
    ]


def summary(rows: Sequence[Row], found: Mapping[str, Row]) -> Row:
    """Seed 004's summary.json keys, and the repaired ones beside them."""
    strongest, largest = (max(rows, key=lambda r, k=k: r[k]) for k in ("cohens_d", "magnitude"))
    peak = rows[found["4_progressive_build_up"]["peak_layer"]]
    return {
        "n_layers": len(rows),
        "n_harmful_prompts": rows[0]["n_harmful"],
        "n_harmless_prompts": rows[0]["n_harmless"],
        "valid_layers": found["1_universal_separation"]["valid"],
        "valid_layers_in_sample": found["1_universal_separation"]["valid_in_sample"],
        "strongest_layer": strongest["layer"],
        "max_cohens_d": strongest["cohens_d"],
        "max_magnitude_layer": largest["layer"],
        "max_magnitude": largest["magnitude"],
        "peak_layer": peak["layer"],
        "peak_cohens_d_crossfit": peak["cohens_d_crossfit"],
        "peak_d_low": peak["d_low"],
        "peak_d_high": peak["d_high"],
        "findings": dict(found),
    }


def write_directions(
    folder: Path, found: Analysis, captured: Captured, origin: Mapping[str, object]
) -> None:
    """validated_directions.safetensors: `directions` (layer, d_model), raw difference in means.

    The layers at which they are valid stand in the metadata.
    """
    pos = captured.positions[0]
    fit = captured.classes("fit", pos)
    saved_directions.write_directions(
        folder / "validated_directions.safetensors",
        torch.from_numpy(found.directions).float(),
        origin,
        layers=range(len(found.directions)),
        positions=[pos],
        tokens=captured.tokens[:1],
        n={"harmful": fit.harmful.shape[1], "harmless": fit.harmless.shape[1]},
        fitted_on="all fit prompts",
        valid_layers=[row["layer"] for row in found.rows if row["valid"]],
    )
