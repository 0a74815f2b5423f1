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


@pytest.mark.parametrize(
    "fault",
    [
        "{{ 'Reasoning: ' + 1 }}",
        "{{ unknown | tojson }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('not so') }}",
    ],
)
def test_whatever_a_template_raises_is_told_with_what_to_do(fault):
    tokenizer = _tokenizer(CHATML)
    tokenizer.chat_template = fault + CHATML
    with pytest.raises(ModelError, match=r"cannot be used: .*; fetch the tokenizer again, or put"):
        read_template(tokenizer)


def test_named_templates_of_which_none_is_the_default_are_told():
    tokenizer = _tokenizer(CHATML)
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(ModelError, match=r"cannot be used: .*rag"):
        read_template(tokenizer)
    tokenizer.chat_template = {"rag": "", "default": CHATML}
    assert read_template(tokenizer).post_ids == read_template(_tokenizer(CHATML)).post_ids


@pytest.mark.parametrize(
    ("refusal", "name"),
    [
        ("{{ 'Reasoning: ' + reasoning if reasoning is defined }}", "reasoning=False"),
        (
            "{% if enable_thinking is false %}{{ raise_exception('it always thinks') }}{% endif %}",
            "enable_thinking=False",
        ),
    ],
)
def test_a_template_that_does_not_take_what_it_is_given_is_told_with_its_name(refusal, name):
    tokenizer = _tokenizer(CHATML)
    tokenizer.chat_template = refusal + CHATML
    with pytest.raises(ModelError, match=rf"it does not take {name}, .* as chat_template\.jinja"):
        read_template(tokenizer)


def test_an_option_that_a_template_cannot_take_is_no_fault_where_it_is_only_looked_at():
    tokenizer = _tokenizer(CHATML)
    tokenizer.chat_template = (
        "{% if reasoning_effort is defined and reasoning_effort > 0.5 %}x{% endif %}" + CHATML
    )
    read_template(tokenizer)


@pytest.mark.parametrize("system", ["default", "none", "Be kind."])
def test_a_template_that_does_not_write_the_prompt_is_refused(system):
    # SmolVLM's reads a list of parts, and finds none in a text.
    tokenizer = _tokenizer(CHATML)
    parts = "{% for part in m['content'] if part.type == 'text' %}{{ part.text }}{% endfor %}"
    tokenizer.chat_template = CHATML.replace("{{ m['content'] }}", parts)
    assert parts in tokenizer.chat_template
    with pytest.raises(ModelError, match="does not write the prompt"):
        read_template(tokenizer, system)
