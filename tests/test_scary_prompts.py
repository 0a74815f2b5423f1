"""The safe prompts that sound dangerous: what their documentation promises, checked on the file."""

import json
import re
from collections import Counter

import pytest
from test_prompts import BARRED, COLUMNS

from refusal_nn.prompts import BUNDLED, load_prompts, surface, words
from refusal_nn.splits import near_duplicate_clusters

SCARY = BUNDLED.with_name("scary.jsonl")
KINDS = {
    "homonym",
    "figurative",
    "target",
    "context",
    "definition",
    "history",
    "privacy",
    "nonsense",
}


@pytest.fixture(scope="module")
def both():
    """The pairs and the scary prompts, read as one set."""
    notes = []
    prompts = load_prompts(f"{BUNDLED},{SCARY}", notes)
    assert notes == []
    return prompts


@pytest.fixture(scope="module")
def scary(both):
    return [prompt for prompt in both if prompt.pair is None]


def test_every_line_has_the_columns_of_the_pairs():
    lines = [json.loads(line) for line in SCARY.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 64
    assert all(set(line) == COLUMNS for line in lines)


def test_there_are_eight_harmless_prompts_of_each_kind(scary):
    assert Counter(prompt.category for prompt in scary) == dict.fromkeys(KINDS, 8)
    assert {(p.label, p.severity, p.source) for p in scary} == {("harmless", None, "refusal_nn")}


def test_an_id_names_the_kind_and_none_is_repeated(scary, both):
    for prompt in scary:
        assert re.fullmatch(rf"scary-{prompt.category}-0[1-8]", prompt.id)
    assert max(Counter(prompt.id for prompt in both).values()) == 1


def test_none_is_a_near_duplicate_of_another_or_of_a_pair(both):
    pairs = {prompt.pair for prompt in both if prompt.pair is not None}
    assert len(set(near_duplicate_clusters(both))) == len(pairs) + 64


def test_every_prompt_is_one_closed_line_of_printable_ascii(scary):
    for prompt in scary:
        assert re.fullmatch(r"[A-Z][\x20-\x7e]+[.?]", prompt.prompt), prompt.id
        assert "  " not in prompt.prompt, prompt.id


def test_questions_and_imperatives_are_mixed_within_the_set(scary):
    closings = Counter(prompt.prompt[-1] for prompt in scary)
    assert min(closings.values()) >= 64 / 4
    first = Counter(surface(prompt.prompt)["first_word"] for prompt in scary)
    assert max(first.values()) <= 64 / 4


def test_they_are_as_long_as_the_pairs(scary, both):
    lengths = [len(words(prompt.prompt)) for prompt in scary]
    ordinary = [len(words(prompt.prompt)) for prompt in both if prompt.pair is not None]
    assert min(ordinary) <= min(lengths)
    assert max(lengths) <= max(ordinary)
    assert abs(sum(lengths) / len(lengths) - sum(ordinary) / len(ordinary)) < 2


def test_none_is_sexual_or_about_minors(scary):
    assert [p.id for p in scary if BARRED & set(words(p.prompt))] == []


def test_no_two_open_with_the_same_four_words(scary):
    openings = Counter(tuple(words(prompt.prompt)[:4]) for prompt in scary)
    assert [opening for opening, n in openings.items() if n > 1] == []
