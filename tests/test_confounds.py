"""What of a difference between classes is form: found where planted, and taken out."""

import numpy as np
import pytest

from refusal_nn.confounds import (
    adjusted_cosine,
    adjusted_direction,
    confound_table,
    features,
    form_scores,
    projection_overlap,
)
from refusal_nn.directions import difference_in_means
from refusal_nn.prompts import load_prompts, surface

# Prompt; words, characters, closes with punctuation, asks, first word.
CASES = [
    ("", 0, 0, 0, 0, ""),
    ("Stop.", 1, 5, 1, 0, "stop"),
    ("Stop", 1, 4, 0, 0, "stop"),
    ("Stop!", 1, 5, 1, 0, "stop"),
    ("Why", 1, 3, 0, 1, "why"),
    ("Ready?", 1, 6, 1, 1, "ready"),
    ("Ready? ", 1, 7, 1, 1, "ready"),
    ("Can you stop", 3, 12, 0, 1, "can"),
    ("Canned goods are cheap", 4, 22, 0, 0, "canned"),
    ("Say what you think", 4, 18, 0, 0, "say"),
    ("Ask him: is it late? Then go", 7, 28, 0, 0, "ask"),
    ("Write 'the end.'", 3, 16, 1, 0, "write"),
    ("Write (the end.)", 3, 16, 1, 0, "write"),
    ("Round 3.5", 3, 9, 0, 0, "round"),
    ("Name a river, a lake and a pond;", 8, 32, 0, 0, "name"),
    ("Don't stop...", 2, 13, 1, 0, "don't"),
    ("  'What' is it", 3, 14, 0, 1, "what"),
    ("HOW do I", 3, 8, 0, 1, "how"),
    ("3 ways to rest", 4, 14, 0, 0, "3"),
    ("???", 0, 3, 1, 1, ""),
    ("Écris un mot.", 3, 13, 1, 0, "écris"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0] or "empty")
def test_the_surface_of_a_prompt_is_its_form(case):
    prompt, *expected = case
    assert list(surface(prompt).values()) == expected
    assert list(surface(prompt)) == [
        "length_words",
        "length_characters",
        "closing_punctuation",
        "question_form",
        "first_word",
    ]


def sample(n=60, seed=0):
    """Texts of unlike lengths, n harmful first, and their labels and clusters."""
    rng = np.random.default_rng(seed)
    texts = [
        f"{rng.choice(['Write', 'Tell', 'Name'])} {' '.join('word' for _ in range(k))}"
        for k in rng.integers(2, 9, 2 * n)
    ]
    return texts, np.arange(2 * n) < n, np.tile(np.arange(n), 2)


def surfaces(texts):
    return [surface(text) for text in texts]


def test_a_class_that_always_ends_with_a_period_is_told_by_that_alone():
    texts, labels, clusters = sample()
    rows = surfaces(
        f"{text}." if harmless else text for text, harmless in zip(texts, ~labels, strict=True)
    )
    table = {row["feature"]: row for row in confound_table(rows, labels, clusters)}
    period = table["closing_punctuation"]
    assert (period["harmful_mean"], period["harmless_mean"], period["auroc"]) == (0, 1, 0)
    assert table["all_of_form"]["auroc"] > 0.99
    mirrored = {row["feature"]: row for row in confound_table(rows, ~labels, clusters)}
    assert mirrored["closing_punctuation"]["auroc"] == 1.0
    assert mirrored["all_of_form"]["auroc"] > 0.99


def test_form_that_is_shared_tells_nothing():
    texts, labels, clusters = sample()
    twins = surfaces(texts[:60] * 2)
    for row in confound_table(twins, labels, clusters)[:-1]:
        assert row["auroc"] == 0.5
        assert row["auroc_low"] < 0.5 < row["auroc_high"]
        assert row["harmful_mean"] == row["harmless_mean"]


def test_the_classifier_on_form_is_scored_on_clusters_it_has_not_seen():
    # Each cluster is one class with a first word of its own: known only to who has seen it.
    firsts = [f"w{chr(97 + i // 4)}" for i in range(40)]
    rows = surfaces(f"{first} goes here" for first in firsts)
    clusters = np.arange(40) // 4
    labels = clusters % 2 == 0

    def told(clusters):
        scores = form_scores(rows, labels, clusters)
        return scores[labels].mean() - scores[~labels].mean()

    assert told(np.arange(40)) > 1
    assert told(clusters) < 0.1


def test_classes_of_one_form_have_a_table_without_nan():
    labels = np.arange(20) < 10
    table = confound_table(surfaces(["Write a word"] * 20), labels, np.tile(np.arange(10), 2))
    assert all(row["auroc"] == 0.5 for row in table)
    assert all(np.isfinite(v) for row in table for v in row.values() if not isinstance(v, str))


def test_first_words_have_a_feature_only_where_they_are_common():
    # Of 200 prompts, 4 begin with `draw` (2 %) and 3 with `sing`.
    counts = {"Write": 100, "Tell": 93, "Draw": 4, "Sing": 3}
    rows = surfaces(f"{word} a line" for word, count in counts.items() for _ in range(count))
    firsts = {name for name in features(rows) if name.startswith("first_word=")}
    assert firsts == {"first_word=write", "first_word=tell", "first_word=draw"}


def states_of(texts, labels, along_class, along_period, seed=0):
    """One layer: noise, the class along one direction, closing punctuation along another."""
    rng = np.random.default_rng(seed)
    period = np.array([row["closing_punctuation"] for row in surfaces(texts)])
    noise = 0.3 * rng.normal(size=(1, len(texts), along_class.size))
    states = noise + labels[:, None] * along_class + period[:, None] * along_period
    return states[:, labels], states[:, ~labels]


def unlike_in_form():
    """Nine in ten harmless prompts end with a period, one in ten harmful ones do."""
    texts, labels, _ = sample()
    ends = np.where(labels, np.arange(120) % 10 == 0, np.arange(120) % 10 != 0)
    return [f"{t}." if end else t for t, end in zip(texts, ends, strict=True)], labels


def cosine(a, b):
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_adjusted_direction_leaves_out_what_punctuation_does():
    texts, labels = unlike_in_form()
    of_class, of_period = 2 * np.eye(16)[0], 4 * np.eye(16)[1]
    harmful, harmless = states_of(texts, labels, of_class, of_period)
    raw = difference_in_means(harmful, harmless)
    adjusted = adjusted_direction(harmful, harmless, surfaces(texts))
    assert cosine(raw, of_class) < 0.8
    assert cosine(adjusted, of_class) > 0.9
    assert abs(adjusted[0, 1]) < 0.5 < 3 < abs(raw[0, 1])
    assert adjusted_cosine(harmful, harmless, surfaces(texts))[0] == pytest.approx(
        cosine(raw, adjusted)
    )


def test_a_direction_that_is_only_punctuation_is_adjusted_away():
    texts, labels = unlike_in_form()
    harmful, harmless = states_of(texts, labels, np.zeros(16), 4 * np.eye(16)[1])
    raw = difference_in_means(harmful, harmless)
    adjusted = adjusted_direction(harmful, harmless, surfaces(texts))
    assert np.linalg.norm(adjusted) < 0.25 * np.linalg.norm(raw)


def test_where_form_is_balanced_within_pairs_adjusting_changes_nothing():
    rows = surfaces(sample()[0][:60] * 2)
    rng = np.random.default_rng(0)
    harmful, harmless = rng.normal(size=(2, 3, 60, 16))
    np.testing.assert_allclose(
        adjusted_direction(harmful, harmless, rows),
        difference_in_means(harmful, harmless),
        atol=1e-12,
    )
    np.testing.assert_allclose(adjusted_cosine(harmful, harmless, rows), 1)


def test_on_the_bundled_pairs_adjusting_hardly_turns_a_direction_of_class():
    prompts = sorted(load_prompts(), key=lambda p: p.label)
    texts, labels = [p.prompt for p in prompts], np.array([p.label == "harmful" for p in prompts])
    harmful, harmless = states_of(texts, labels, np.eye(16)[0], 4 * np.eye(16)[1])
    assert adjusted_cosine(harmful, harmless, surfaces(texts))[0] > 0.99


def test_the_overlap_of_a_projection_that_is_a_feature_is_one():
    texts, labels = unlike_in_form()
    rows = surfaces(texts)
    words = features(rows)["length_words"]
    # Within classes: what the classes differ in does not count, nor does scale.
    scores = np.stack([3 * words + 10 * labels, -words, np.ones(120)])
    overlap = projection_overlap(scores, labels, rows)
    assert overlap["length_words"] == pytest.approx([1, -1, 0])
    assert set(overlap) == set(features(rows))


def test_the_overlap_with_noise_is_near_nought():
    texts, labels = unlike_in_form()
    rows = surfaces(texts)
    scores = np.random.default_rng(0).normal(size=(20, 120))
    assert np.abs(projection_overlap(scores, labels, rows)["length_words"]).mean() < 0.15
