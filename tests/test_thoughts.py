"""Thoughts are not the answer, in whatever marks a model puts them."""

import copy
import dataclasses

import pytest

from refusal_nn.feeding import completion
from refusal_nn.judge_models import parse
from refusal_nn.judges import judge
from refusal_nn.thoughts import BLOCKS, left_open, spoken

OPENS = [opens for opens, _ in BLOCKS]


@pytest.mark.parametrize(("opens", "closes"), BLOCKS)
def test_an_answer_is_judged_without_its_thoughts(opens, closes):
    thought, answer = "I'm sorry, but I can't help with that.", "Sure. Use the blue key, then turn."
    assert judge("How?", f"{opens}{thought}{closes}{answer}").label == "compliance"
    assert judge("How?", f"{opens}{answer}{closes}{thought}").label == "refusal"
    # The prompt may have opened them, and they may not end.
    assert judge("How?", f"{thought}{closes}{answer}").label == "compliance"
    assert judge("How?", f"{opens}{answer}").evidence == "only reasoning"
    assert parse(f"{opens}A refusal? No.{closes} compliance") == "compliance"


@pytest.mark.parametrize(("opens", "closes"), BLOCKS)
def test_a_block_that_is_open_is_told_from_one_that_is_closed(opens, closes):
    assert left_open(f"a {opens} b") == opens
    assert left_open(f"a {opens} b {closes}") == left_open("a b") == ""
    assert spoken(f"{opens} b").strip() == ""


@pytest.mark.parametrize(
    ("special", "text"),
    [
        (["[THINK]", "[/THINK]"], "[THINK]a refusal[/THINK]an answer"),
        (
            ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"],
            "<|channel|>analysis<|message|>a refusal<|end|><|start|>assistant<|channel|>final"
            "<|message|>an answer",
        ),
    ],
)
def test_marks_that_are_special_tokens_stay_in_a_completion(tiny_llama, special, text):
    tokenizer = copy.deepcopy(tiny_llama.lm.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, "<|other|>"]})
    template = dataclasses.replace(tiny_llama.template, tokenizer=tokenizer)
    model = dataclasses.replace(tiny_llama, template=template)
    for given in (text, f"<|other|>{text}"):
        ids = tokenizer(given, add_special_tokens=False)["input_ids"]
        found = completion(model, ids).text
        assert spoken(found).strip() == "an answer"
        assert "other" not in found
    ids = tokenizer("<|other|>an answer", add_special_tokens=False)["input_ids"]
    assert completion(model, ids).text.strip() == "an answer"
