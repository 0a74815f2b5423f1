"""validate_layers rejects null data, which the in-sample rule does not, and covers the truth."""

import numpy as np
import pytest

from refusal_nn import crossfit
from refusal_nn.statistics import crossfit_projections, validate_layers

WIDTH, SEEDS = 1536, 100
SPECTRA = {
    "isotropic": np.ones(WIDTH),
    "decaying": np.exp(-np.arange(WIDTH) / 50.0) ** 0.5,
}


def sample(rng, n, spread, shift=0.0):
    harmful, harmless = rng.standard_normal((2, 2, n, WIDTH), dtype=np.float32) * np.float32(spread)
    return harmful + np.float32(shift), harmless


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n", [64, 256])
def test_null_data_have_no_valid_layer_although_the_seeds_rule_finds_them(n, spectrum):
    found, naive = 0, 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        rows = validate_layers(*sample(rng, n, SPECTRA[spectrum]), seed=seed)
        found += any(row["valid"] for row in rows)
        naive += any(row["valid_in_sample"] for row in rows)
    assert found <= 5
    if spectrum == "isotropic":
        assert naive >= 99


def test_null_p_values_are_no_smaller_than_chance_makes_them():
    p = [
        validate_layers(*sample(np.random.default_rng(s), 16, 1.0), permutations=99, seed=s)[0][
            "p_permutation"
        ]
        for s in range(200)
    ]
    # 200 draws at level .1: 20 expected, 32 is the 99.5 % point; none may be 0.
    assert np.mean(np.array(p) <= 0.1) <= 0.16
    assert min(p) >= 0.01


@pytest.mark.parametrize(
    ("n", "length", "paired"), [(64, 4.0, False), (64, 3.0, True), (256, 2.0, False)]
)
def test_the_interval_covers_the_expected_d_on_fresh_prompts(n, length, paired):
    rng = np.random.default_rng(7)
    spread = SPECTRA["decaying"]
    shift = rng.standard_normal(WIDTH)
    shift *= length / np.linalg.norm(shift)
    clusters = np.tile(np.arange(n), 2) if paired else None
    common, fitted_on = 0.7 if paired else 0.0, int(0.8 * n)
    # The estimand, simulated: a direction fitted on 4/5 of the sample, d on an endless fresh one.
    truth = []
    for _ in range(400):
        noise = rng.standard_normal(WIDTH) * spread * np.sqrt(2 / fitted_on)
        direction = shift + noise
        sd = np.sqrt(((spread * direction) ** 2).sum() * (1 + common**2))
        truth.append(direction @ shift / sd)
    covered = 0
    for seed in range(SEEDS):
        draw = np.random.default_rng(seed)
        harmful, harmless = sample(draw, n, spread, shift)
        pair = common * draw.standard_normal((2, n, WIDTH)) * spread
        row = validate_layers(
            (harmful + pair)[:1],
            (harmless + pair)[:1],
            clusters=clusters,
            permutations=10,
            seed=seed,
        )[0]
        covered += row["d_low"] <= np.mean(truth) <= row["d_high"]
    assert covered >= 93


def test_a_planted_shift_is_valid_at_its_layer_only():
    rng = np.random.default_rng(0)
    harmful, harmless = rng.standard_normal((2, 6, 64, WIDTH), dtype=np.float32)
    harmful[4, :, :10] += 3
    rows = validate_layers(harmful, harmless)
    assert [row["layer"] for row in rows if row["valid"]] == [4]
    assert rows[4]["auroc_low"] > 0.9
    assert all(row["p_familywise"] >= row["p_permutation"] >= 1 / 201 for row in rows)


def test_copies_of_a_prompt_give_separation_only_if_clusters_are_ignored():
    # Ten copies of 16 noise prompts a class: copies on both sides of a fold look like signal.
    told, untold = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        harmful, harmless = (np.repeat(x[:1], 10, axis=1) for x in sample(rng, 16, 1.0))
        clusters = np.concatenate([np.repeat(np.arange(16), 10), np.repeat(np.arange(16, 32), 10)])
        told.append(validate_layers(harmful, harmless, clusters=clusters, seed=seed)[0])
        untold.append(validate_layers(harmful, harmless, seed=seed)[0])
    assert not any(row["valid"] for row in told)
    assert abs(np.mean([row["cohens_d_crossfit"] for row in told])) < 0.3
    assert np.mean([row["cohens_d_crossfit"] for row in untold]) > 1.5
    assert all(row["valid"] for row in untold)


def test_pairs_that_share_a_topic_do_not_hide_a_small_difference():
    # The pair's own vector dwarfs the class effect; permuting within pairs still sees it.
    rng = np.random.default_rng(0)
    topic = 5 * rng.standard_normal((1, 80, 200))
    harmful, harmless = topic + rng.standard_normal((2, 1, 80, 200))
    harmful[..., 0] += 3
    clusters = np.tile(np.arange(80), 2)
    row = validate_layers(harmful, harmless, clusters=clusters)[0]
    assert row["p_permutation"] < 0.01


def test_the_same_seed_gives_the_same_rows_and_projections():
    harmful, harmless = sample(np.random.default_rng(0), 20, 1.0, 0.1)
    assert validate_layers(harmful, harmless, seed=3) == validate_layers(harmful, harmless, seed=3)
    assert validate_layers(harmful, harmless, seed=3) != validate_layers(harmful, harmless, seed=4)
    scores = crossfit_projections(harmful, harmless, seed=3)
    row = validate_layers(harmful, harmless, seed=3)[0]
    p, q = scores[0, :20], scores[0, 20:]
    pooled = np.sqrt((p.var(ddof=1) + q.var(ddof=1)) / 2)
    assert row["cohens_d_crossfit"] == pytest.approx((p.mean() - q.mean()) / pooled)


def test_zero_and_constant_activations_are_a_status_not_a_division():
    harmful, harmless = np.zeros((3, 8, 5)), np.zeros((3, 8, 5))
    harmful[1] = 1.0
    harmful[2] = np.random.default_rng(0).normal(size=(8, 5))
    with np.errstate(divide="raise", invalid="raise"):
        rows = validate_layers(harmful, harmless)
    assert [row["status"] for row in rows] == ["no direction", "constant classes", "ok"]
    assert not rows[0]["valid"]
    assert rows[0]["auroc_crossfit"] == 0.5
    assert rows[1]["auroc_crossfit"] == 1.0
    assert all(np.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))


@pytest.mark.parametrize(
    ("harmful", "harmless", "word"),
    [
        (np.zeros((2, 4, 3)), np.zeros((3, 4, 3)), "expected two"),
        (np.zeros((4, 3)), np.zeros((4, 3)), "expected two"),
        (np.full((2, 4, 3), np.nan), np.zeros((2, 4, 3)), r"layers \[0, 1\]"),
        (np.zeros((2, 1, 3)), np.zeros((2, 4, 3)), "two clusters"),
    ],
)
def test_bad_activations_are_named(harmful, harmless, word):
    with pytest.raises(ValueError, match=word):
        validate_layers(harmful, harmless)


def test_clusters_of_the_wrong_length_are_named():
    with pytest.raises(ValueError, match="8 cluster numbers"):
        validate_layers(np.zeros((1, 4, 3)), np.zeros((1, 4, 3)), clusters=np.arange(4))


def test_a_small_class_that_varies_more_is_no_separation():
    # On these seeds permuting d itself rejects 10 times of 100, Welch's t of the scores 5 times.
    rejected = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        harmful, harmless = 2 * rng.standard_normal((1, 30, 60)), rng.standard_normal((1, 200, 60))
        row = validate_layers(harmful, harmless, permutations=99, seed=seed)[0]
        rejected += row["p_permutation"] <= 0.05
    assert rejected <= 8


def test_permuting_welch_t_orders_draws_as_d_does_in_classes_of_one_size():
    rng = np.random.default_rng(0)
    base = crossfit.observed(np.arange(40) < 20, np.arange(40), 5, rng)
    draws = crossfit.permuted(base, np.arange(40), 50, rng)
    scores = rng.normal(size=(50, 40))
    d, t = crossfit.effect_size(scores, draws), crossfit.welch_t(scores, draws)
    np.testing.assert_allclose(t, d * np.sqrt(10), rtol=1e-12)
