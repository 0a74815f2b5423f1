"""The everyday harmless prompts: what their documentation promises, checked on the file."""

import hashlib
import json
import re
from collections import Counter

import pytest
from test_prompts import BARRED, COLUMNS, closing

from refusal_nn.prompts import BUNDLED, EVERYDAY, SCARY, load_prompts, read_class, surface, words
from refusal_nn.splits import near_duplicate_clusters

CATEGORIES = re.findall(
    r"\w+",
    """
cooking gardening travel homework letters programming science history rewording ideas leisure
pets office wellbeing languages crafts
""",
)
# Words, and beginnings of words, that would make an everyday prompt sound dangerous.
DANGEROUS_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
bleed bled brawl choke crash crime dead deadly death die died dies dying fake fire fires gang
gangs gore gun guns hate hit hits hurt loot mob pests punch raid rob robs robbed shoot shoots
shot shots sniff spy spies stab stole stolen trap traps war wars weed
""",
    )
)
DANGEROUS_STEMS = tuple(
    re.findall(
        r"\w+",
        """
abduct abus ambush ammuni arson assassin assault attack behead betray blackmail blast blood bomb
brib burgl casualt corpse counterfeit crimin cruel cyanide dagger damag danger deceiv decept
destr detonat drown drug dynamit embezzl enem evil execut exploit explosi extort fatal fight
firearm forge fraud genocid grenad hack harass harm hijack hostage hostil illegal illicit
impersonat infect injur insult intimidat intrud invad kidnap kill knife knives launder lethal
lynch malware manipulat massacr missile molotov murder nazi overdos phish pickpocket poison
prison racis ransom riot robber sabotag scam shoplift slaughter slaver smash smuggl sniper stalk
steal strangl suicid surveil swindl tamper terror theft thief thieves threat tortur toxi
traffick trespass vandal venom victim violen virus vulnerab weapon wiretap wound
""",
    )
)
N = 16 * 20
README = EVERYDAY.with_name("README.md")


@pytest.fixture(scope="module")
def everyday():
    return read_class(EVERYDAY, "harmless")


@pytest.fixture(scope="module")
def pairs():
    return load_prompts()


@pytest.fixture(scope="module")
def every():
    """The pairs, the scary prompts and the everyday prompts, read as one set."""
    notes = []
    prompts = load_prompts(f"{BUNDLED},{SCARY},{EVERYDAY}", notes)
    assert notes == []
    return prompts


def dangerous(prompt):
    found = words(prompt.prompt)
    return [w for w in found if w in DANGEROUS_WORDS or w.startswith(DANGEROUS_STEMS)]


def shares(prompts):
    counts = Counter(closing(prompt.prompt) for prompt in prompts)
    return {mark: counts[mark] / len(prompts) for mark in (".", "?", "none")}


def test_every_line_has_the_columns_of_the_pairs():
    lines = [json.loads(line) for line in EVERYDAY.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == N
    assert all(set(line) == COLUMNS for line in lines)


def test_the_file_is_the_one_that_the_documentation_names():
    digest = hashlib.sha256(EVERYDAY.read_bytes()).hexdigest()
    assert digest in README.read_text(encoding="utf-8")


def test_there_are_twenty_harmless_prompts_of_each_category(everyday):
    assert Counter(prompt.category for prompt in everyday) == dict.fromkeys(CATEGORIES, 20)
    assert {(p.label, p.pair, p.severity, p.source) for p in everyday} == {
        ("harmless", None, None, "refusal_nn")
    }


def test_ids_are_numbered_in_order_and_none_is_repeated(everyday, every):
    assert [prompt.id for prompt in everyday] == [f"everyday-{i:03d}" for i in range(1, N + 1)]
    assert max(Counter(prompt.id for prompt in every).values()) == 1


def test_none_is_a_near_duplicate_of_another_or_of_the_other_sets(every):
    clusters = near_duplicate_clusters(every)
    pairs = {prompt.pair for prompt in every if prompt.pair is not None}
    scary = sum(prompt.id.startswith("scary-") for prompt in every)
    assert len(set(clusters)) == len(pairs) + scary + N
    assert len(every) == 2 * len(pairs) + scary + N


def test_every_prompt_is_one_line_of_printable_ascii(everyday):
    for prompt in everyday:
        assert re.fullmatch(r"[A-Z][\x20-\x7e]+", prompt.prompt), prompt.id
        assert prompt.prompt == prompt.prompt.strip()
        assert "  " not in prompt.prompt, prompt.id
        assert 4 <= len(prompt.prompt.split()) <= 25, prompt.id


def test_they_are_as_long_as_the_pairs(everyday, pairs):
    ours, theirs = ([len(words(p.prompt)) for p in prompts] for prompts in (everyday, pairs))
    assert min(theirs) <= min(ours)
    assert max(ours) <= max(theirs)
    assert abs(sum(ours) / len(ours) - sum(theirs) / len(theirs)) < 1


def test_they_close_as_often_with_each_mark_as_the_pairs(everyday, pairs):
    ours, theirs = shares(everyday), shares(pairs)
    assert max(abs(ours[mark] - theirs[mark]) for mark in ours) <= 0.10


def test_no_category_stands_out_by_how_it_closes(everyday):
    for category in CATEGORIES:
        within = shares([prompt for prompt in everyday if prompt.category == category])
        assert min(within.values()) >= 0.2, category


def test_questions_and_imperatives_are_mixed_as_in_the_pairs(everyday, pairs):
    ours, theirs = (
        sum(surface(p.prompt)["question_form"] for p in prompts) / len(prompts)
        for prompts in (everyday, pairs)
    )
    assert abs(ours - theirs) <= 0.10


def test_first_words_are_varied(everyday):
    first = Counter(surface(prompt.prompt)["first_word"] for prompt in everyday)
    assert len(first) >= 60
    assert max(first.values()) <= N / 10


def test_no_two_open_with_the_same_four_words(everyday):
    openings = Counter(tuple(words(prompt.prompt)[:4]) for prompt in everyday)
    assert [opening for opening, n in openings.items() if n > 1] == []


def test_none_is_sexual_or_about_minors(everyday):
    assert [p.id for p in everyday if BARRED & set(words(p.prompt))] == []


def test_none_sounds_dangerous(everyday):
    found = {prompt.id: dangerous(prompt) for prompt in everyday}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_the_dangerous_words_are_those_of_harmful_prompts(pairs):
    found = Counter(prompt.label for prompt in pairs if dangerous(prompt))
    assert found["harmful"] > 100 > 5 * found["harmless"]
