"""Random directions vary as the activations do, and where these do not vary there are none."""

import numpy as np
import pytest

from refusal_nn.controls import random_directions


def activations(n=60, width=4, seed=0, mean=50.0):
    """Of unlike and correlated coordinates, far from the origin, as a residual stream is."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) * np.geomspace(1, 8, width)
    return rng.normal(size=(n, width)) @ mix + mean * rng.normal(size=width)


def shape_of(directions, steps=200):
    """Tyler's estimate (1987) of the covariance, up to scale, that unit directions came from."""
    n, width = directions.shape
    found = np.eye(width)
    for _ in range(steps):
        reach = np.einsum("ni,ij,nj->n", directions, np.linalg.inv(found), directions)
        found = width / n * (directions / reach[:, None]).T @ directions
        found /= np.trace(found)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_directions_come_from_the_covariance_of_the_activations(seed):
    x = activations(seed=seed)
    expected = np.cov(x.T) / np.trace(np.cov(x.T))
    found = shape_of(random_directions(x, 8000, seed=3))
    size = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert (np.abs(found - expected) / size).max() < 0.06


def test_the_estimate_of_the_covariance_would_see_isotropic_directions():
    x, rng = activations(), np.random.default_rng(0)
    isotropic = rng.normal(size=(8000, 4))
    isotropic /= np.linalg.norm(isotropic, axis=1, keepdims=True)
    assert np.abs(shape_of(isotropic) - np.cov(x.T) / np.trace(np.cov(x.T))).max() > 0.2


def test_no_side_is_preferred_and_the_mean_plays_no_part():
    x = activations()
    drawn = random_directions(x, 8000, seed=0)
    assert np.abs(drawn.mean(0)).max() < 4 / np.sqrt(8000)
    np.testing.assert_allclose(random_directions(x + 1000, 50, 1), random_directions(x, 50, 1))


def test_a_random_direction_removes_more_of_what_varies_than_an_isotropic_one():
    x = activations(200, 64, seed=5)
    covariance = np.cov(x.T)
    drawn = random_directions(x, 2000, seed=0)
    removed = np.einsum("ni,ij,nj->n", drawn, covariance, drawn).mean()
    assert removed > 2 * np.trace(covariance) / 64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_directions_are_unit_and_in_the_span_of_what_varies(dtype):
    x = activations(5, 40, mean=1.0).astype(dtype)
    drawn = random_directions(x, 30, seed=0)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
    centred = x.astype(float) - x.astype(float).mean(0)
    assert np.linalg.matrix_rank(np.concatenate([centred, drawn]), tol=1e-8) == 4


def test_the_seed_decides_and_more_directions_begin_with_the_same_ones():
    x = activations()
    np.testing.assert_array_equal(random_directions(x, 9, 1)[:4], random_directions(x, 4, 1))
    assert not np.allclose(random_directions(x, 4, 1), random_directions(x, 4, 2))
    assert random_directions(x, 0, 1).shape == (0, 4)


def test_two_prompts_leave_one_direction_up_to_its_sign():
    drawn = random_directions(np.array([[0.0, 3.0], [4.0, 0.0]]), 10, seed=0)
    np.testing.assert_allclose(np.abs(drawn), [[0.8, 0.6]] * 10)


@pytest.mark.parametrize(
    "flat",
    [
        np.ones((1, 4)),
        activations(1),
        np.zeros((7, 4)),
        np.full((7, 4), 0.1, np.float32),
        # The mean of seven times 0.1 is not 0.1.
        np.full((7, 4), 0.1),
        np.tile(activations(1, 9), (7, 1)),
        np.full((7, 4), np.nan),
    ],
)
def test_activations_that_do_not_vary_have_no_random_direction(flat):
    with pytest.raises(ValueError, match="do not vary"):
        random_directions(flat, 3, seed=0)
