"""Fit, val and test: disjoint up to twins and near-duplicates, sized as asked for, stratified."""

import dataclasses
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_nn.prompts import LABELS, Prompt, load_prompts, words
from refusal_nn.splits import near_duplicate_clusters, prompts_hash, split


@pytest.fixture(scope="module")
def bundled():
    return load_prompts()


@pytest.fixture(scope="module")
def parts(bundled):
    return split(bundled, 320, 0)


def prompt(text, label="harmful", pair=None, category=None):
    return Prompt(id=f"{label}: {text}", prompt=text, label=label, pair=pair, category=category)


def unpaired(n, shared=""):
    """n prompts of each class without a word in common, or with the words in `shared`."""
    return [prompt(f"{shared} {label}{i}", label) for label in LABELS for i in range(n)]


def sizes(parts):
    return {s: tuple(sum(p.label == k for p in rows) for k in LABELS) for s, rows in parts.items()}


def jaccard(a, b):
    x, y = set(words(a.prompt)), set(words(b.prompt))
    return len(x & y) / len(x | y) if x | y else 0.0


def test_320_a_class_are_dealt_into_160_60_and_100(parts):
    assert sizes(parts) == {"fit": (160, 160), "val": (60, 60), "test": (100, 100)}


def test_no_prompt_is_in_two_splits_or_twice_in_one(parts):
    ids = [p.id for rows in parts.values() for p in rows]
    assert len(ids) == len(set(ids))


def test_the_splits_hold_only_prompts_that_were_given(bundled, parts):
    assert {p for rows in parts.values() for p in rows} <= set(bundled)


def test_twins_are_in_one_split(parts):
    pairs = [{p.pair for p in rows} for rows in parts.values()]
    assert all(not a & b for a, b in itertools.combinations(pairs, 2))


def test_no_two_splits_share_near_duplicates():
    # The bundled set has none: a set in which every text occurs in two wordings.
    texts = [p for p in load_prompts() if p.label == "harmful"][:80]
    doubled = [
        dataclasses.replace(
            p, id=f"{p.id}{end}", prompt=f"{p.prompt} {end}", label=label, pair=None
        )
        for p, label in zip(texts, itertools.cycle(LABELS), strict=False)
        for end in ("please", "now")
    ]
    parts = split(doubled, 60, 0)
    for a, b in itertools.combinations(parts, 2):
        assert max(jaccard(x, y) for x in parts[a] for y in parts[b]) < 0.6


def test_each_category_has_an_equal_share_of_fit_to_within_one(bundled, parts):
    categories = {p.category for p in bundled}
    for label in LABELS:
        counts = Counter(p.category for p in parts["fit"] if p.label == label)
        assert set(counts) == categories
        assert all(abs(count - 160 / len(categories)) <= 1 for count in counts.values())


@pytest.mark.parametrize("name", ["val", "test"])
def test_each_category_is_in_val_and_test_too(bundled, parts, name):
    counts = Counter(p.category for p in parts[name])
    assert set(counts) == {p.category for p in bundled}
    assert max(counts.values()) <= 2 * min(counts.values())


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(bundled, parts):
    assert split(bundled, 320, 0) == parts
    other = split(bundled, 320, 1)
    assert all(other[name] != parts[name] for name in parts)
    assert sizes(other) == sizes(parts)


def test_the_order_within_a_split_is_harmful_first_and_by_id(parts):
    for rows in parts.values():
        assert rows == sorted(rows, key=lambda p: (p.label == "harmless", p.id))


@pytest.mark.parametrize("n", [8, 16, 40, 64, 128, 200])
def test_a_smaller_n_keeps_the_shares(bundled, n):
    assert sizes(split(bundled, n, 3)) == {
        "fit": (n // 2,) * 2,
        "val": (round(0.1875 * n),) * 2,
        "test": (round(0.3125 * n),) * 2,
    }


@pytest.mark.parametrize("n", [4, 5, 15, 31, 51, 95])
def test_no_more_than_n_of_a_class_are_taken(bundled, n):
    assert all(
        sum(counts) <= n for counts in zip(*sizes(split(bundled, n, 0)).values(), strict=True)
    )


def test_an_n_above_the_set_takes_what_there_is(bundled):
    found = sizes(split(bundled, 10_000, 0))
    assert found == {"fit": (168, 168), "val": (63, 63), "test": (105, 105)}


def test_a_set_without_pairs_or_categories_is_split_just_so():
    assert sizes(split(unpaired(64), 64, 0)) == {"fit": (32, 32), "val": (12, 12), "test": (20, 20)}


def test_classes_of_unlike_size_each_keep_the_shares():
    prompts = unpaired(64)[: 64 + 16]
    assert sizes(split(prompts, 64, 0)) == {"fit": (32, 8), "val": (12, 3), "test": (20, 5)}


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("matched", [True, False])
def test_the_smallest_sets_leave_two_clusters_of_each_class_to_fit_on(n, matched):
    prompts = [dataclasses.replace(p, pair=p.prompt[-1] if matched else None) for p in unpaired(n)]
    fit = split(prompts, 320, 0)["fit"]
    assert min(sum(p.label == label for p in fit) for label in LABELS) >= 2


def test_a_cluster_too_large_for_any_split_is_left_out_and_the_rest_is_dealt():
    giant = unpaired(40, shared="the very same six words in each")
    parts = split(giant + unpaired(20), 320, 0)
    assert not {p for rows in parts.values() for p in rows} & set(giant)
    assert sum(a + b for a, b in sizes(parts).values()) == 40


def test_a_large_cluster_is_not_divided():
    large = unpaired(10, shared="the very same six words in each")
    parts = split(large + unpaired(60), 320, 0)
    assert [set(large) & set(rows) for rows in parts.values()].count(set()) == 2


def test_near_duplicates_are_those_that_share_six_words_in_ten():
    at, below = "a b c d e f g h", "a b c d e f g h"
    assert clusters(at, "a b c d e f x y") == [0, 0]  # 6 of 10
    assert clusters(below, "a b c d e u x y") == [0, 1]  # 5 of 11
    assert clusters("a b c", "a b c d e") == [0, 0]  # 3 of 5
    assert clusters("a b c", "a b c d e f") == [0, 1]  # 3 of 6


def test_case_order_and_repetition_of_words_do_not_tell_prompts_apart():
    assert clusters("Pick the LOCK!", "lock, pick the lock the") == [0, 0]


def test_nearness_is_passed_on_from_one_prompt_to_the_next():
    chain = ["a b c d e", "b c d e f", "c d e f g", "d e f g h", "e f g h i"]
    assert clusters(*chain) == [0] * 5
    assert clusters(chain[0], chain[4]) == [0, 1]


def test_twins_share_a_cluster_and_bring_their_near_duplicates_along():
    prompts = [
        prompt("a b c d e", pair="1"),
        prompt("v w x y z", "harmless", pair="1"),
        prompt("v w x y q", "harmless", pair="2"),
        prompt("l m n o p", pair="2"),
        prompt("one two three", pair="3"),
    ]
    assert near_duplicate_clusters(prompts) == [0, 0, 0, 0, 1]


def test_prompts_without_a_word_are_no_near_duplicates():
    assert clusters("???", "!!!", "a") == [0, 1, 2]


def clusters(*texts):
    return near_duplicate_clusters([prompt(text) for text in texts])


def test_the_hash_of_a_set_knows_texts_and_classes_but_no_order(bundled):
    changed = [dataclasses.replace(bundled[0], prompt="Another text"), *bundled[1:]]
    turned = [dataclasses.replace(bundled[0], label="harmless"), *bundled[1:]]
    hashes = [prompts_hash(rows) for rows in (bundled, bundled[::-1], changed, turned)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


some_prompts = st.lists(
    st.builds(
        prompt,
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5).map(" ".join),
        st.sampled_from(LABELS),
        st.sampled_from([None, None, "1", "2", "3"]),
        st.sampled_from([None, "theft", "fraud"]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda p: p.id,
)


@settings(deadline=None)
@given(some_prompts)
def test_clusters_are_just_the_components_of_nearness_and_pairing(prompts):
    numbers = near_duplicate_clusters(prompts)
    linked = {i: {i} for i in range(len(prompts))}
    for i, j in itertools.combinations(range(len(prompts)), 2):
        a, b = prompts[i], prompts[j]
        if jaccard(a, b) >= 0.6 or (a.pair is not None and a.pair == b.pair):
            union = linked[i] | linked[j]
            for member in union:
                linked[member] = union
    assert all((numbers[i] == numbers[j]) == (j in linked[i]) for i in linked for j in linked)


@settings(deadline=None)
@given(some_prompts, st.integers(4, 50), st.integers(0, 5))
def test_no_split_exceeds_its_share_and_no_cluster_is_divided(prompts, n, seed):
    parts = split(prompts, n, seed)
    number = dict(zip(prompts, near_duplicate_clusters(prompts), strict=True))
    ids = [p.id for rows in parts.values() for p in rows]
    assert len(ids) == len(set(ids))
    assert len({(number[p], name) for name, rows in parts.items() for p in rows}) == len(
        {number[p] for rows in parts.values() for p in rows}
    )
    for label in LABELS:
        available = min(n, sum(p.label == label for p in prompts))
        chosen = [sum(p.label == label for p in rows) for rows in parts.values()]
        assert sum(chosen) <= available
        assert all(
            k <= max(2, share * available + 1)
            for k, share in zip(chosen, (0.5, 0.1875, 0.3125), strict=True)
        )
