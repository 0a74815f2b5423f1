"""The published systems' ways of writing a conversation: what each writes by itself, and what
SYSTEM= makes of it."""

import pytest
from transformers import PreTrainedTokenizerFast

from refusal_nn.errors import InputError
from refusal_nn.loading import load
from refusal_nn.templates import read_template, stop_ids
from refusal_nn.tiny import _trained

# Written here, in the form of each family's: its turns, its system prompt, its switches.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INJECTED = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a machine.<|im_end|>\n"
    "{% endif %}" + CHATML
)
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
).replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
)
HEADER = "<|begin|>{% for m in messages %}" + (
    "<|header|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)
DATED = (
    "<|begin|>{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|header|>system<|end_header|>\n\nToday Date: {{ date_string }}\n\n{{ said }}<|eot|>"
) + HEADER.removeprefix("<|begin|>")
TODAY = INJECTED.replace("machine", "machine on {{ strftime_now('%Y-%m-%d') }}")
NO_SYSTEM = (
    "<|begin|>{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}<|header|>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|eot|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|header|>model\n{% endif %}"
)
IGNORED = "{% set messages = messages | selectattr('role', 'ne', 'system') | list %}" + NO_SYSTEM
INST = (
    "{% if messages[0].role == 'system' %}{% set said = '<<SYS>>\n' + messages[0].content + "
    "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|begin|>[INST] {% if loop.first %}{{ said }}"
    "{% endif %}{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} <|eot|>{% endif %}"
    "{% endfor %}"
)
ENDED = CHATML.replace("{% endif %}", "{% else %}<|eot|>{% endif %}")  # Phi-3
TURN = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
HEADED = "<|header|>user<|end_header|>\n\nhi<|eot|><|header|>assistant<|end_header|>\n\n"
MODEL = "<|begin|><|header|>user\nhi<|eot|>\n<|header|>model\n"
MACHINE = "<|im_start|>system\nYou are a machine.<|im_end|>\n"
GIVEN = "<|im_start|>system\nBe kind.<|im_end|>\n"
TODAYS = "<|header|>system<|end_header|>\n\nToday Date: 26 Jul 2024\n\n"
# Template: rendering of `hi` by default, with none, and with `Be kind.` (None: refused).
SHAPES = {
    "qwen1, qwen": (INJECTED, MACHINE + TURN, TURN, GIVEN + TURN),
    "qwen3": (THINKING, *(f"{s}{TURN}<think>\n\n</think>\n\n" for s in ("", "", GIVEN))),
    "gemma2b": (NO_SYSTEM, MODEL, MODEL, None),
    "a system prompt that is ignored": (IGNORED, MODEL, MODEL, None),
    "phi3": (ENDED, TURN, TURN, GIVEN + TURN),
    "llama 3": (
        HEADER,
        f"<|begin|>{HEADED}",
        f"<|begin|>{HEADED}",
        f"<|begin|><|header|>system<|end_header|>\n\nBe kind.<|eot|>{HEADED}",
    ),
    "llama1b, llama3b, llama8b": (
        DATED,
        f"<|begin|>{TODAYS}<|eot|>{HEADED}",
        f"<|begin|>{HEADED}",
        f"<|begin|>{TODAYS}Be kind.<|eot|>{HEADED}",
    ),
    "llama 2": (
        INST,
        "<|begin|>[INST] hi [/INST]",
        "<|begin|>[INST] hi [/INST]",
        "<|begin|>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nhi [/INST]",
    ),
    "today": (
        TODAY,
        MACHINE.replace("machine", "machine on 2024-07-26") + TURN,
        TURN,
        GIVEN + TURN,
    ),
}


def tokenizer_of(template, **options):
    chatml = "<|im_start|>" in template
    bos, eos = (None, "<|im_end|>") if chatml else ("<|begin|>", "<|eot|>")
    names = {"bos_token": bos, "eos_token": eos, "padding_side": "left"} | options
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_trained(), **names)
    tokenizer.chat_template = template
    return tokenizer


def text_of(template, system):
    return template.tokenizer.decode(read_template(template.tokenizer, system).render(["hi"])[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_system_prompt_is_the_templates_own_or_none_or_the_given_one(shape):
    source, default, none, given = SHAPES[shape]
    tokenizer = tokenizer_of(source)
    for system, expected in (("default", default), ("none", none), ("Be kind.", given)):
        if expected is None:
            with pytest.raises(InputError, match="takes no system prompt"):
                read_template(tokenizer, system)
            continue
        template = read_template(tokenizer, system)
        assert tokenizer.decode(template.render(["hi"])[0]) == expected
        assert (template.hash == read_template(tokenizer).hash) == (expected == default)


@pytest.mark.parametrize("shape", SHAPES)
def test_post_instruction_tokens_are_the_same_under_any_system_prompt(shape):
    source, *_, given = SHAPES[shape]
    tokenizer = tokenizer_of(source)
    systems = ["default", "none", *(["Be kind."] if given else [])]
    assert len({read_template(tokenizer, system).post_ids for system in systems}) == 1


def test_a_bos_that_begins_turns_is_not_doubled_where_the_system_prompt_is_left_out():
    tokenizer = tokenizer_of(INJECTED, bos_token="<|im_start|>")
    template = read_template(tokenizer, "none")
    assert tokenizer.decode(template.render(["hi"])[0]) == TURN
    assert template.cut == MACHINE


@pytest.mark.parametrize(
    ("source", "system", "notes"),
    [
        (INJECTED, "default", (f"system prompt: the template's own, {MACHINE!r}",)),
        (INJECTED, "none", ("system prompt: none, the template's own is left out",)),
        (CHATML, "none", ("system prompt: none",)),
        (CHATML, "Be kind.", (f"system prompt: given, {GIVEN!r}",)),
        (THINKING, "default", ("system prompt: none", "thinking is switched off")),
        (
            CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"),
            "none",
            ("system prompt: none", "the template opens a thinking block and has no switch for it"),
        ),
        (TODAY, "none", ("system prompt: none, the template's own is left out",)),
    ],
)
def test_what_was_chosen_is_said(source, system, notes):
    assert read_template(tokenizer_of(source), system).notes[: len(notes)] == notes


@pytest.mark.parametrize("source", [DATED, TODAY])
def test_no_date_of_today_is_written_and_that_is_said(source):
    template = read_template(tokenizer_of(source))
    assert "2024" in template.tokenizer.decode(template.render(["hi"])[0])
    assert template.notes[-1] == "the template's date is fixed at 26 Jul 2024"


def test_an_empty_system_prompt_and_one_that_cannot_be_cut_are_refused():
    with pytest.raises(InputError, match="SYSTEM= is empty"):
        read_template(tokenizer_of(CHATML), " ")
    # Made for one turn: where a question opens cannot be told from a second one.
    once = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + INJECTED
    template = read_template(tokenizer_of(once))
    assert template.system is None
    assert template.notes[0].endswith("cannot be told")
    with pytest.raises(InputError, match=r"SYSTEM=none: it cannot be told"):
        read_template(tokenizer_of(once), "none")


def test_an_end_of_turn_without_a_role_still_ends_an_answer():
    # Llama 3: eos is <|end_of_text|>, turns end with <|eot_id|>.
    tokenizer = tokenizer_of(HEADER, eos_token="<|im_end|>")
    end = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert end not in tokenizer.all_special_ids
    assert stop_ids(None, read_template(tokenizer)) == {end, tokenizer.eos_token_id}


def test_a_first_token_is_the_one_that_stands_after_the_prompt():
    # After [/INST] an answer begins with a space, after a new line it does not (Llama 2).
    for source, expected in ((INST, " I"), (CHATML, "I"), (THINKING, "I"), (INJECTED, "I")):
        template = read_template(tokenizer_of(source), "none")
        assert template.tokenizer.decode([template.first_token("I")]) == expected
        assert template.first_token("Unquestionably") is None


def test_a_loaded_model_has_the_system_prompt_asked_for_and_says_so(texts):
    models = {s: load("tiny-qwen2", dtype="float32", system=s) for s in ("default", "none", "Hm.")}
    heads = {
        s: model.lm.tokenizer.decode(model.template.render(["hi"])[0])
        for s, model in models.items()
    }
    assert heads["default"].startswith("<|im_start|>system\nYou are a small model.<|im_end|>\n")
    assert heads["none"].startswith("<|im_start|>user\nhi")
    assert heads["Hm."].startswith("<|im_start|>system\nHm.<|im_end|>\n<|im_start|>user\nhi")
    assert [m.notes[-1].partition(",")[0] for m in models.values()] == [
        "system prompt: the template's own",
        "system prompt: none",
        "system prompt: given",
    ]
