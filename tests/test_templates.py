"""Prompts are rendered as the template gives them, or not at all."""

import pytest

from refusal_nn.errors import ModelError
from refusal_nn.templates import read_template
from refusal_nn.tiny import CHATML, _tokenizer


def test_ids_are_those_of_the_template_for_every_family(tiny_model, texts):
    tokenizer = tiny_model.lm.tokenizer
    for text, ids in zip(texts, tiny_model.template.render(texts), strict=True):
        turn = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(ids) == whole
        assert tuple(ids[-len(tiny_model.template.post_ids) :]) == tiny_model.template.post_ids


def test_post_instruction_tokens_do_not_depend_on_how_an_instruction_ends(tiny_llama):
    template = tiny_llama.template
    assert template.tokens[0] == "<|eot|>"
    assert template.token(-1) == template.tokens[-1]
    assert template.token(-len(template.tokens) - 1) == "(instruction)"
    for ids in template.render(["x", "x?", "x.", "x\n", "x )"]):
        assert tuple(ids[-len(template.post_ids) :]) == template.post_ids


def test_the_hash_changes_with_the_template():
    tokenizer = _tokenizer(CHATML)
    before = read_template(tokenizer).hash
    assert read_template(_tokenizer(CHATML)).hash == before
    tokenizer.chat_template = CHATML.replace("small", "smaller")
    assert read_template(tokenizer).hash != before


def test_a_tokenizer_without_a_template_is_no_chat_model():
    tokenizer = _tokenizer(CHATML)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"instruction-tuned .* chat_template\.jinja"):
        read_template(tokenizer)


def test_a_second_bos_is_refused():
    tokenizer = _tokenizer(CHATML)
    tokenizer.bos_token = "<|begin|>"
    tokenizer.chat_template = "<|begin|>" + CHATML
    read_template(tokenizer)
    tokenizer.chat_template = "<|begin|><|begin|>" + CHATML
    with pytest.raises(ModelError, match=r"writes <\|begin\|> 2 times"):
        read_template(tokenizer)
    tokenizer.chat_template = CHATML.replace("assistant\n", "assistant\n<|begin|>")
    read_template(tokenizer)  # in the generation prompt it is a turn marker, as SmolLM2's is


def test_a_template_with_nothing_after_the_instruction_is_refused():
    tokenizer = _tokenizer(CHATML)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ModelError, match="no token after the instruction"):
        read_template(tokenizer)


def test_todays_date_and_thinking_are_fixed():
    tokenizer = _tokenizer(CHATML)
    dated = CHATML.replace("You are", "Today Date: {{ date_string }}. You are")
    tokenizer.chat_template = dated + "{% if enable_thinking %}<think>{% endif %}"
    text = tokenizer.decode(read_template(tokenizer).render(["hello"])[0])
    assert "26 Jul 2024" in text
    assert "<think>" not in text
