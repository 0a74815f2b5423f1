"""Random directions to compare an ablated direction with: they remove as much of what varies."""

from __future__ import annotations

import numpy as np

from refusal_nn.directions import unit


def random_directions(activations: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Unit directions (count, d_model) drawn from the covariance of activations (prompt, d_model).

    Gaussian weights on the centred activations: z X / sqrt(n) has covariance XᵀX / n exactly. An
    isotropic direction would be too easy a control: it removes next to nothing. Raises ValueError
    where the activations do not vary.
    """
    centred = np.asarray(activations, dtype=np.float64)
    centred = centred - centred.mean(0)
    if not np.abs(centred).max() > 1e-10 * np.abs(activations).max():
        raise ValueError("the activations do not vary, so no direction can be drawn from them")
    weights = np.random.default_rng(seed).standard_normal((count, len(centred)))
    return unit(weights @ centred)
