"""The selection rule returns the published choices on the published grids; scores are what their
formulas say."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_nn.directions import select_candidate
from refusal_nn.errors import ModelError
from refusal_nn.scores import kl_divergence, refusal_score, refusal_tokens

DATA = Path(__file__).parent / "data" / "published_grids.json"
LAYERS = {"gemma-2b-it": 18, "qwen-1_8b-chat": 24, "llama-2-7b-chat-hf": 32}


@pytest.mark.parametrize("name", LAYERS)
def test_the_published_choice_is_returned_on_the_published_grid(name):
    published = json.loads(DATA.read_text())[name]
    rows = [
        dict(zip(("pos", "layer", "ablated", "added", "kl"), r, strict=True))
        for r in published["grid"]
    ]
    chosen = select_candidate(rows, LAYERS[name])
    assert {k: chosen[k] for k in ("pos", "layer")} == published["selected"]
    # Bypass alone would have chosen a direction that breaks the model.
    unfiltered = select_candidate(
        rows, LAYERS[name], max_kl=math.inf, min_induce=-math.inf, drop_last=0
    )
    assert unfiltered["kl"] > 0.1


def row(**values):
    return {"layer": 1, "pos": -1, "ablated": -1.0, "added": 1.0, "kl": 0.01} | values


@pytest.mark.parametrize(
    "worse",
    [
        {"ablated": math.nan},
        {"added": math.nan},
        {"kl": math.nan},
        {"kl": 0.1000001},
        {"added": -0.001},
        {"layer": 8},
    ],
)
def test_a_row_that_breaks_a_rule_is_never_chosen(worse):
    bad = row(ablated=-9.0) | worse
    assert select_candidate([bad], 10) is None
    assert select_candidate([bad, row()], 10) == row()


def test_the_limits_themselves_are_allowed():
    edge = row(kl=0.1, added=0.0, layer=7)
    assert select_candidate([edge], 10) == edge


@given(st.permutations([row(ablated=x) for x in (-3.0, -1.0, 0.0, 2.0)]))
def test_order_does_not_matter(rows):
    assert select_candidate(rows, 10)["ablated"] == -3.0


def test_refusal_score_is_the_log_odds():
    logits = torch.tensor([[0.0, 1.0, 2.0, -50.0]])
    p = logits.double().softmax(-1)[0]
    expected = math.log((p[0] + p[2]) / (p[1] + p[3]))
    assert float(refusal_score(logits, [0, 2])) == pytest.approx(expected, abs=1e-6)
    assert refusal_score(torch.tensor([100.0, -100.0]), [0]).isfinite()


def test_kl_is_zero_only_for_equal_distributions_and_is_the_textbook_sum():
    a, b = torch.randn(3, 7), torch.randn(3, 7)
    assert torch.equal(kl_divergence(a, a), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(kl_divergence(a, a + 5), torch.zeros(3).double(), atol=1e-6, rtol=0)
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    torch.testing.assert_close(kl_divergence(a, b), (p * (p / q).log()).sum(-1))


def test_refusal_tokens_are_whole_words_at_the_start_of_an_answer(smollm2):
    tokenizer = smollm2.lm.tokenizer
    tokens = refusal_tokens(smollm2.template, ("I", "As", "I", "Unquestionably"))
    assert [tokenizer.decode([t]) for t in tokens] == ["I", "As"]
    with pytest.raises(ModelError, match="is one token"):
        refusal_tokens(smollm2.template, ("Unquestionably",))
