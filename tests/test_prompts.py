"""The bundled matched pairs: what their documentation promises, checked on the file itself."""

import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from refusal_nn import confounds
from refusal_nn.estimates import auroc
from refusal_nn.prompts import BUNDLED, load_prompts, surface, words
from refusal_nn.splits import NEAR, near_duplicate_clusters

IDS_SHA256 = "0f96edb8c52d55babc2caf603933d25d3ebb9368b95ca757a1ebaa5f11438dd0"
TEXTS_SHA256 = "6c90e22b55c38da37664f423a5ea5454a2f89f67eb3329443693fcafa72f7858"
COLUMNS = {"id", "prompt", "label", "pair", "category", "severity", "source"}
# Whole words that a set without minors and without sex has no use for.
BARRED = frozenset(
    re.findall(
        r"\w+",
        """
child children childs kid kids minor minors underage teen teens teenager teenagers teenage toddler
toddlers infant infants baby babies boy boys girl girls schoolboy schoolgirl schoolchildren
adolescent adolescents juvenile juveniles preteen preteens youngster youngsters pupil pupils
kindergarten schooler schoolers sex sexy sexual sexually sexuality rape raped rapes rapist nude
nudes nudity naked porn porno pornography pornographic erotic erotica incest molest molested
molester pedophile paedophile pedophilia prostitute prostitution escort genital genitals fetish
orgasm intercourse lolita grope groped groping upskirt sextortion voyeur voyeurism stripper
""",
    )
)


@pytest.fixture(scope="module")
def bundled():
    return load_prompts()


@pytest.fixture(scope="module")
def pairs(bundled):
    found = defaultdict(list)
    for prompt in bundled:
        found[prompt.pair].append(prompt)
    return {pair: sorted(twins, key=lambda p: p.label) for pair, twins in found.items()}


def closing(text):
    return text[-1] if text[-1] in ".?!" else "none"


def test_every_line_of_the_file_has_the_documented_columns():
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(load_prompts())
    assert all(set(json.loads(line)) == COLUMNS for line in lines)


def test_loading_the_bundled_set_drops_and_warns_of_nothing():
    notes = []
    load_prompts(notes=notes)
    assert notes == []


def test_there_are_at_least_320_pairs_of_one_harmful_and_one_harmless_prompt(pairs):
    assert len(pairs) >= 320
    assert None not in pairs
    assert all([p.label for p in twins] == ["harmful", "harmless"] for twins in pairs.values())


def test_twins_share_their_category(pairs):
    assert all(a.category == b.category is not None for a, b in pairs.values())


def test_at_least_twelve_categories_are_of_nearly_equal_size(pairs):
    counts = Counter(harmful.category for harmful, _ in pairs.values())
    assert len(counts) >= 12
    assert max(counts.values()) - min(counts.values()) <= 3


def test_every_category_has_at_least_four_levels_of_severity(bundled):
    levels = defaultdict(set)
    for prompt in bundled:
        if prompt.label == "harmful":
            levels[prompt.category].add(prompt.severity)
    assert min(len(found) for found in levels.values()) >= 4


def test_harmful_prompts_have_a_severity_from_1_to_5_and_harmless_ones_none(bundled):
    for prompt in bundled:
        allowed = {1, 2, 3, 4, 5} if prompt.label == "harmful" else {None}
        assert prompt.severity in allowed, prompt.id


def test_twins_differ_by_at_most_30_per_cent_in_length(pairs):
    for harmful, harmless in pairs.values():
        ratio = len(harmful.prompt) / len(harmless.prompt)
        assert 1 / 1.3 <= ratio <= 1.3, harmful.pair


def test_twins_close_with_the_same_punctuation(pairs):
    for harmful, harmless in pairs.values():
        assert closing(harmful.prompt) == closing(harmless.prompt), harmful.pair


def test_every_form_of_closing_occurs_often_enough_to_be_told_from_the_class(bundled):
    share = Counter(closing(prompt.prompt) for prompt in bundled)
    assert min(share[mark] for mark in (".", "?", "none")) > 0.1 * len(bundled)


def test_both_questions_and_imperatives_occur_in_each_class(bundled):
    for label in ("harmful", "harmless"):
        asks = [surface(p.prompt)["question_form"] for p in bundled if p.label == label]
        assert 0.2 < np.mean(asks) < 0.8


def test_every_prompt_is_one_line_of_printable_ascii(bundled):
    for prompt in bundled:
        assert re.fullmatch(r"[\x20-\x7e]+", prompt.prompt), prompt.id
        assert prompt.prompt == prompt.prompt.strip()
        assert "  " not in prompt.prompt, prompt.id


def test_no_two_prompts_are_near_duplicates(bundled):
    bags = [(prompt.id, set(words(prompt.prompt))) for prompt in bundled]
    near = [
        (a, b)
        for (a, x), (b, y) in itertools.combinations(bags, 2)
        if len(x & y) >= NEAR * len(x | y)
    ]
    assert near == []


def test_the_clusters_are_just_the_pairs(bundled, pairs):
    clusters = near_duplicate_clusters(bundled)
    assert len(set(clusters)) == len(pairs)
    assert len({(p.pair, c) for p, c in zip(bundled, clusters, strict=True)}) == len(pairs)


def test_no_id_is_repeated(bundled):
    assert max(Counter(prompt.id for prompt in bundled).values()) == 1


def test_an_id_names_the_pair_and_the_class(bundled):
    assert all(prompt.id == f"{prompt.pair}-{prompt.label}" for prompt in bundled)


def test_form_alone_cannot_tell_the_classes_apart(bundled, pairs):
    rows = [surface(prompt.prompt) for prompt in bundled]
    labels = np.array([prompt.label == "harmful" for prompt in bundled])
    numbers = {pair: i for i, pair in enumerate(pairs)}
    clusters = np.array([numbers[prompt.pair] for prompt in bundled])
    scores = confounds.form_scores(rows, labels, clusters)
    # Far below .5 would tell the classes apart just as well, with the sign turned.
    assert 0.40 <= auroc(scores[labels], scores[~labels]) <= 0.60


def test_no_single_feature_of_form_tells_the_classes_apart(bundled):
    labels = np.array([prompt.label == "harmful" for prompt in bundled])
    for name, values in confounds.features([surface(prompt.prompt) for prompt in bundled]).items():
        assert 0.45 <= auroc(values[labels], values[~labels]) <= 0.55, name


def test_no_prompt_mentions_minors_or_sex(bundled):
    found = {p.id: BARRED & set(re.findall(r"[a-z]+", p.prompt.lower())) for p in bundled}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_the_ids_are_those_that_published_tables_refer_to(bundled):
    listed = "\n".join(sorted(prompt.id for prompt in bundled))
    assert hashlib.sha256(listed.encode()).hexdigest() == IDS_SHA256


def test_the_texts_are_those_that_published_numbers_were_measured_on(bundled):
    listed = json.dumps(sorted((p.id, p.prompt) for p in bundled))
    assert hashlib.sha256(listed.encode()).hexdigest() == TEXTS_SHA256
