"""The seed's five findings as numbers: counted by hand, on its own table, on planted data."""

import csv
from pathlib import Path

import numpy as np
import pytest

from refusal_nn import findings
from refusal_nn.estimates import cohens_d

DATA = Path(__file__).parent / "data"
LABELS = np.arange(320) < 160
SEVERITY = [1 + i % 5 for i in range(160)]


def published(name):
    with (DATA / f"seed004_{name}.csv").open(newline="") as file:
        return [
            {k: v == "True" if k == "valid" else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def test_the_spread_of_a_case_counted_by_hand():
    # Past the other class's mean: 4 alone. In the other class's range: 1, 3 and 4.
    projections = np.array([[1.0, 3, 5, -2, 0, 4], [0, 0, 0, 0, 0, 0]])
    labels = np.array([True] * 3 + [False] * 3)
    first, second = findings.spread_by_layer(projections, labels, [10.0, 0.0])
    assert first == pytest.approx(
        {
            "layer": 0,
            "harmful_mean": 3,
            "harmful_std": np.sqrt(8 / 3),
            "harmful_min": 1,
            "harmful_max": 5,
            "harmful_range": 4,
            "harmless_mean": 2 / 3,
            "harmless_std": np.std([-2, 0, 4]),
            "harmless_min": -2,
            "harmless_max": 4,
            "harmless_range": 6,
            "mean_separation": 7 / 3,
            "overlap_count": 1,
            "overlap_range": 3,
            "separation_variance_ratio": 7 / 3 / (np.sqrt(8 / 3) + np.std([-2, 0, 4])),
            "separation_over_norm": 7 / 30,
        }
    )
    assert (second["separation_variance_ratio"], second["separation_over_norm"]) == (0, 0)


def test_the_table_of_spread_begins_with_the_columns_that_the_seed_published():
    rows = findings.spread_by_layer(np.zeros((1, 4)), np.array([1, 1, 0, 0], bool), [1.0])
    theirs = list(published("variance_by_layer")[0])
    assert list(rows[0])[: len(theirs)] == theirs


def drawn_from(row, n=4000):
    """Projections of both classes with the means, spreads and extremes of a published layer."""
    rng = np.random.default_rng(0)
    return [
        np.clip(rng.normal(row[f"{k}_mean"], row[f"{k}_std"], n), row[f"{k}_min"], row[f"{k}_max"])
        for k in ("harmful", "harmless")
    ]


def published_layers():
    """The seed's table with the two honest counts beside its own, from its minima and maxima."""
    rows = published("variance_by_layer")
    for row in rows:
        disjoint = (
            row["harmful_min"] > row["harmless_max"] or row["harmless_min"] > row["harmful_max"]
        )
        row["overlap_range"] = row["overlap_range_crossfit"] = int(not disjoint)
    return rows


def test_the_seeds_count_reaches_nought_at_layer_9_while_ranges_are_disjoint_at_15_to_17_only():
    found = findings.first_without_overlap(published_layers())
    assert found["overlap_count"]["first_layer"] == 9
    assert found["overlap_count"]["layers"] == list(range(9, 28))
    assert found["overlap_range"] == {"first_layer": 15, "layers": [15, 16, 17]}


def test_where_every_layer_overlaps_there_is_no_first_one_without():
    rows = [row | {"overlap_count": 3} for row in published_layers()]
    assert findings.first_without_overlap(rows)["overlap_count"] == {
        "first_layer": None,
        "layers": [],
    }


def test_the_ratio_of_the_seeds_peak_layer_is_that_of_its_report():
    harmful, harmless = drawn_from(published("variance_by_layer")[18])
    scores, labels = np.concatenate([harmful, harmless])[None], np.arange(8000) < 4000
    row = findings.spread_by_layer(scores, labels, [100.0])[0]
    assert row["separation_variance_ratio"] == pytest.approx(4.5, abs=0.1)
    assert cohens_d(harmful, harmless) == pytest.approx(
        published("validation_results")[18]["cohens_d"], rel=0.03
    )


def test_the_seeds_table_is_universal_by_its_own_rule():
    rows = [row | {"valid_in_sample": row["valid"]} for row in published("validation_results")]
    assert findings.universal(rows) == {
        "layers": 28,
        "valid": 28,
        "valid_in_sample": 28,
        "not_valid": [],
    }
    rows[3] |= {"valid": False}
    assert (findings.universal(rows)["valid"], findings.universal(rows)["not_valid"]) == (27, [3])


def readings(draw, severity, seeds=20):
    """What `gradient` reads from harmful scores draw(rng), for as many seeds."""
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        scores = np.concatenate([draw(rng), rng.normal(-3, 1, 160)])
        found.append(findings.gradient(scores, LABELS, severity, seed)["reading"])
    return found


def test_two_planted_groups_are_found():
    apart = np.where(np.arange(160) % 2, 3, -3)
    found = readings(lambda rng: apart + rng.normal(size=160), [None] * 160, seeds=10)
    assert found == ["two groups within harmful"] * 10


def test_one_gaussian_is_one_group():
    found = readings(lambda rng: rng.normal(size=160), [None] * 160)
    assert found.count("one group, not graded with severity") >= 18


def test_skew_alone_makes_no_second_group():
    found = readings(lambda rng: rng.exponential(size=160), [None] * 160)
    assert found.count("two groups within harmful") <= 5


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.5])
def test_scores_that_rise_with_severity_are_graded(noise):
    found = readings(lambda rng: SEVERITY + noise * rng.normal(size=160), SEVERITY, seeds=10)
    assert found.count("graded with severity") >= 9


def test_scores_that_do_not_depend_on_severity_are_not_graded():
    found = readings(lambda rng: rng.normal(size=160), SEVERITY)
    assert found.count("graded with severity") <= 3


def test_severity_is_read_only_of_prompts_that_have_one():
    scores = np.concatenate([np.arange(160.0), np.zeros(160)])
    half = [severity if i < 80 else ("", None)[i % 2] for i, severity in enumerate(SEVERITY)]
    found = findings.gradient(scores, LABELS, half, 0)["spearman_severity"]
    assert found["n"] == 80
    assert findings.gradient(scores, LABELS, [None] * 160, 0)["spearman_severity"]["low"] == -1


def test_groups_are_looked_for_in_either_class_but_few_prompts_have_none():
    apart = np.where(np.arange(160) % 2, 3, -3) + np.random.default_rng(0).normal(size=160)
    scores = np.concatenate([np.zeros(160), apart])
    found = findings.gradient(scores, LABELS, [None] * 160, 0)["mixture"]
    assert (found["harmful"]["two_groups"], found["harmless"]["two_groups"]) == (False, True)
    few = findings.gradient(np.array([-9.0, 9, -9, 9, 0, 1]), np.arange(6) < 4, [None] * 4, 0)
    assert not few["mixture"]["harmful"]["two_groups"]


def test_outliers_are_named_by_id_the_most_extreme_first():
    scores = np.array([1.0, -0.5, -2, 0, -1, 0.25, 3, -4])
    labels = np.array([True] * 4 + [False] * 4)
    found = findings.outliers(scores, labels, list("abcdefgh"))
    assert found["harmful_below_midpoint"] == [
        {"id": "c", "projection": -2.0},
        {"id": "b", "projection": -0.5},
    ]
    assert [row["id"] for row in found["harmless_above_midpoint"]] == ["g", "f"]


def test_the_build_up_is_read_up_to_the_peak():
    d = [0.5, 1.0, 2.0, 3.0, 2.5]
    rows = [{"cohens_d_crossfit": value} for value in d]
    spread = [
        {"separation_variance_ratio": i, "separation_over_norm": i / 10} for i in range(len(d))
    ]
    found = findings.build_up(rows, spread)
    assert (found["peak_layer"], found["d_first"], found["d_peak"], found["d_last"]) == (
        3,
        0.5,
        3.0,
        2.5,
    )
    assert found["spearman_layer_d_up_to_peak"]["value"] == pytest.approx(1)
    assert (found["ratio_peak"], found["separation_over_norm_last"]) == (3, 0.4)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_on_fresh_prompts_covers_the_planted_effect(paired):
    along, covered = np.eye(8)[0], 0
    clusters = np.tile(np.arange(100), 2) if paired else np.arange(200)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shared = 0.8 * rng.normal(size=(100, 8)) if paired else 0
        own = 0.6 if paired else 1.0
        harmful, harmless = (shared + own * rng.normal(size=(100, 8)) for _ in range(2))
        found = findings.on_fresh_prompts(along, harmful + along, harmless, clusters)
        covered += found["d_low"] <= 1.0 <= found["d_high"]
    assert covered >= 90
    assert found["d_high"] - found["d_low"] < 0.8
    assert found["auroc_low"] < found["auroc"] < found["auroc_high"]
    assert found["cohens_d"] == pytest.approx((found["d_low"] + found["d_high"]) / 2)
    assert (found["n_harmful"], found["n_harmless"]) == (100, 100)
