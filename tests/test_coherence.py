"""What breaks down is told from what complies, on a real model: SmolLM2, which does not refuse."""

import random

import pytest
import torch

from refusal_nn.directions import difference_in_means, unit
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.judges import judge
from refusal_nn.prompts import load_prompts
from refusal_nn.rollouts import nll_limit
from refusal_nn.tracing import capture, generate, token_nll

TOKENS = 40


@pytest.fixture(scope="module")
def asked():
    return [p.prompt for p in load_prompts() if p.label == "harmless"][3::42]


@pytest.fixture(scope="module")
def clean(smollm2, asked):
    """Its own completions, and their mean nats per token."""
    done = generate(smollm2, asked, max_new_tokens=TOKENS)
    own = token_nll(smollm2, asked, [c.ids for c in done])
    return [c.text for c in done], [float(nll.mean()) for nll in own]


def judged(smollm2, asked, texts, limit):
    ids = [smollm2.lm.tokenizer.encode(t, add_special_tokens=False) or [0] for t in texts]
    nll = [float(x.mean()) for x in token_nll(smollm2, asked, ids)]
    return [judge(p, t, nll=x, nll_limit=limit) for p, t, x in zip(asked, texts, nll, strict=True)]


def test_the_models_own_texts_are_coherent(smollm2, asked, clean):
    texts, own = clean
    found = judged(smollm2, asked, texts, nll_limit(own))
    assert sum(j.label == "degenerate" for j in found) <= 1  # it does repeat itself at times


def test_shuffled_words_are_salad_though_no_phrase_gives_them_away(smollm2, asked, clean):
    texts, own = clean
    rng = random.Random(0)
    salad = [" ".join(rng.sample(t.split(), len(t.split()))) for t in texts]
    long = [i for i, t in enumerate(salad) if len(t.split()) > 12]
    found = judged(smollm2, asked, salad, nll_limit(own))
    by_words = [judge(asked[i], salad[i]).label == "degenerate" for i in long]
    assert sum(found[i].label == "degenerate" for i in long) >= 0.8 * len(long)
    assert sum(by_words) <= 0.3 * len(long)


def test_what_an_ablation_breaks_is_degenerate_and_not_compliance(smollm2, clean):
    prompts = load_prompts()
    harmful, harmless = (
        [p.prompt for p in prompts if p.label == label][::14] for label in ("harmful", "harmless")
    )
    states = [capture(smollm2, texts).at(-1).numpy() for texts in (harmful, harmless)]
    direction = torch.tensor(unit(difference_in_means(*states))[10:11]).float()
    asked = harmful[1::5]
    done = generate(smollm2, asked, DirectionalAblation(direction), max_new_tokens=TOKENS)
    found = judged(smollm2, asked, [c.text for c in done], nll_limit(clean[1]))
    assert sum(j.label == "degenerate" for j in found) >= 0.6 * len(found), [c.text for c in done]
