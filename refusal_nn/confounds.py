"""Could form alone tell the classes apart? Surface features per class, and the direction with them
regressed out.

A prompt's surface is taken once, at capture, and kept in prompts.csv: analysis needs no prompt
text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from refusal_nn.directions import difference_in_means, unit
from refusal_nn.estimates import auroc, auroc_interval

Surface = Mapping[str, object]
NUMERIC = ("length_words", "length_characters", "closing_punctuation", "question_form")


def features(rows: Sequence[Surface], commonest: int = 12) -> dict[str, np.ndarray]:
    """One number a prompt for each feature, (prompt,) each; a first word that begins >= 2 % of
    prompts has an indicator."""
    firsts = [str(row["first_word"]) for row in rows]
    chosen = sorted(
        w for w, n in Counter(firsts).most_common(commonest) if n >= max(2, 0.02 * len(rows))
    )
    columns = {name: np.array([row[name] for row in rows], dtype=float) for name in NUMERIC}
    return columns | {
        f"first_word={w}": np.array([first == w for first in firsts], dtype=float) for w in chosen
    }


def form_scores(
    rows: Sequence[Surface], labels: np.ndarray, clusters: np.ndarray, folds: int = 5
) -> np.ndarray:
    """Held-out log-odds of the class given all features, by logistic regression cross-validated
    over clusters: (prompt,)."""
    design, scores = _design(rows), np.zeros(len(rows))
    for train, held_out in GroupKFold(min(folds, len(np.unique(clusters)))).split(
        design, labels, clusters
    ):
        if len(np.unique(labels[train])) == 2:
            fitted = LogisticRegression(max_iter=1000).fit(design[train], labels[train])
            scores[held_out] = fitted.decision_function(design[held_out])
    return scores


def _design(rows: Sequence[Surface]) -> np.ndarray:
    varying = [c for c in features(rows).values() if np.ptp(c) > 0]
    return (
        np.stack([(c - c.mean()) / c.std() for c in varying], axis=1)
        if varying
        else np.zeros((len(rows), 1))
    )


def confound_table(
    rows: Sequence[Surface], labels: np.ndarray, clusters: np.ndarray
) -> list[dict[str, object]]:
    """A row per feature: its mean in each class and its AUROC for harmful (0.5: tells nothing),
    with a 95 % interval.

    The last row, all_of_form, is a classifier on all of them, cross-validated over clusters.
    """
    m, n = (len(np.unique(clusters[chosen])) for chosen in (labels, ~labels))
    found = []
    for name, values in (
        features(rows) | {"all_of_form": form_scores(rows, labels, clusters)}
    ).items():
        area = auroc(values[labels], values[~labels])
        low, high = auroc_interval(area, m, n)
        found.append(
            {
                "feature": name,
                "harmful_mean": float(values[labels].mean()),
                "harmless_mean": float(values[~labels].mean()),
                "auroc": area,
                "auroc_low": low,
                "auroc_high": high,
            }
        )
    return found


def adjusted_direction(
    harmful: np.ndarray, harmless: np.ndarray, rows: Sequence[Surface]
) -> np.ndarray:
    """Difference between the classes at equal form: the class coefficient of h ~ class + features,
    (layer, d_model) float64.

    harmful, harmless: (layer, prompt, d_model); rows: the prompts in that order, harmful first.
    Least squares, intercept.
    """
    x = np.concatenate([harmful, harmless], axis=1).astype(np.float64)
    label = np.arange(x.shape[1]) < harmful.shape[1]
    # The label's coefficient is one row of the pseudo-inverse, the same for all layers and
    # coordinates.
    weights = np.linalg.pinv(np.column_stack([label, np.ones(label.size), _design(rows)]))[0]
    return np.einsum("n,lnd->ld", weights, x)


def adjusted_cosine(
    harmful: np.ndarray, harmless: np.ndarray, rows: Sequence[Surface]
) -> np.ndarray:
    """Cosine between the raw difference in means and the one at equal form, (layer,)."""
    raw, adjusted = (
        difference_in_means(harmful, harmless),
        adjusted_direction(harmful, harmless, rows),
    )
    return (unit(raw) * unit(adjusted)).sum(-1)


def projection_overlap(
    projections: np.ndarray, labels: np.ndarray, rows: Sequence[Surface]
) -> dict[str, list[float]]:
    """Correlation, within classes, of each feature with the projections (layer, prompt): how much
    of a direction is form."""
    return {
        name: [_within_classes(p, values, labels) for p in projections]
        for name, values in features(rows).items()
    }


def _within_classes(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    a, b = (np.where(labels, v - v[labels].mean(), v - v[~labels].mean()) for v in (x, y))
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0
