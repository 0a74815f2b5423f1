"""The published systems' ways of writing a conversation: what each writes by itself, and what
SYSTEM= makes of it."""

import pytest
from chats import (
    CHATML,
    DATED,
    GIVEN,
    GLM,
    HEADER,
    IGNORED,
    INJECTED,
    INST,
    MACHINE,
    SHAPES,
    THINKING,
    TODAY,
    TURN,
    tokenizer_of,
)
from transformers import GenerationConfig

from refusal_nn.errors import InputError
from refusal_nn.loading import load
from refusal_nn.templates import read_template, stop_ids


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
        (GLM, "none", ("system prompt: none",)),
        (GLM, "Be kind.", ("system prompt: given, '<|system|>\\nBe kind.'",)),
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
    once = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + INJECTED
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


def test_where_nothing_ends_an_answer_the_next_question_does():
    template = read_template(tokenizer_of(GLM))
    ends = template.tokenizer.convert_ids_to_tokens(list(stop_ids(None, template)))
    assert "<|user|>" in ends


@pytest.mark.parametrize(
    "end",
    [
        # Left open: else the end of its own system prompt would be taken for a part of what opens
        # a question.
        "{% if m.role != 'assistant' or not loop.last %}<|im_end|>\n{% endif %}",
        # OLMo 3: no new line after the last.
        "<|im_end|>{{ '\n' if m.role != 'assistant' or not loop.last }}",
    ],
)
def test_a_last_answer_that_ends_otherwise_leaves_nothing_before_the_first_question(end):
    source = INJECTED.replace("<|im_end|>\n{% endfor %}", f"{end}{{% endfor %}}")
    template = read_template(tokenizer_of(source), "none")
    assert template.cut == MACHINE
    assert template.tokenizer.decode(template.render(["hi"])[0]) == TURN


def test_an_empty_turn_that_a_given_system_prompt_takes_is_a_system_prompt():
    # EXAONE 3.5; also behind a BOS.
    empty = "{% if messages[0].role != 'system' %}<|header|><|eot|>{% endif %}"
    turns = HEADER.removeprefix("<|begin|>")
    for begin, bos in (("", None), ("<|begin|>", "<|begin|>")):
        tokenizer = tokenizer_of(begin + empty + turns, bos_token=bos)
        assert read_template(tokenizer).system == "<|header|><|eot|>"
        template = read_template(tokenizer, "none")
        text = tokenizer.decode(template.render(["hi"])[0])
        assert text.startswith(f"{begin}<|header|>user<|end_header|>")
        assert not read_template(tokenizer, "Hm.").system.startswith("<|begin|>")


def test_a_template_that_ignores_system_prompts_takes_none_whose_words_it_writes_itself():
    for system in ("user", "model", "e"):
        with pytest.raises(InputError, match="takes no system prompt"):
            read_template(tokenizer_of(IGNORED), system)


def test_what_a_template_writes_around_a_given_system_prompt_is_told_too():
    # Command R7B opens the answer whether asked to or not, so no end of a turn can be told.
    source = (
        "<|begin|><|header|>Preamble."
        "{{ ' ' + messages[0].content if messages[0].role == 'system' }}<|eot|>"
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}<|eot|>{% endif %}"
        "{% endfor %}<|header|>"
    )
    template = read_template(tokenizer_of(source), "Be kind.")
    assert template.system == "<|header|>Preamble. Be kind.<|eot|>"
    assert template.notes[0] == f"system prompt: given, {template.system!r}"


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


def test_a_first_token_is_the_same_where_the_system_prompt_stands_in_the_last_question():
    # Mistral 7B: once the answer is there, it no longer does.
    source = (
        "{% set said = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "<|begin|>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ said if loop.last }}"
        "{{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}<|eot|>{% endif %}"
        "{% endfor %}"
    )
    firsts = {read_template(tokenizer_of(source), s).first_token("I") for s in ("default", "Hm.")}
    assert tokenizer_of(source).decode(list(firsts)) == " I"


def test_of_a_template_made_for_one_turn_a_first_token_is_the_words_own():
    once = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML
    template = read_template(tokenizer_of(once))
    assert template.tokenizer.decode([template.first_token("I")]) == "I"


@pytest.mark.parametrize("before", ["\n", "<|header|>final<|end_header|>"])
def test_that_the_template_writes_something_before_an_answer_is_said(before):
    # GLM-4.5; gpt-oss.
    written = f"{{{{ '{before}' if m.role == 'assistant' }}}}{{{{ m.content }}}}"
    source = CHATML.replace("{{ m.content }}", written)
    template = read_template(tokenizer_of(source))
    assert template.first_token("I") is None
    assert template.notes[-1].startswith("answers begin with ")
    assert template.notes[-1].endswith("no refusal word comes first")
    assert not any("answers begin" in note for note in read_template(tokenizer_of(INST)).notes)


@pytest.mark.parametrize("eos", ["<|return|>", ["<|return|>", "<|call|>"], None])
def test_what_ends_a_part_of_an_answer_does_not_end_it(eos):
    # gpt-oss: an analysis, ended with what also ends a question, and then the final answer.
    special = ["<|return|>", "<|call|>"]
    source = (
        "{% for m in messages %}<|header|>{{ m.role }}{% if m.role == 'assistant' %}<|end_header|>"
        "final{% endif %}<|im_start|>{{ m.content }}{{ '<|return|>' if m.role == 'assistant' and "
        "loop.last and not add_generation_prompt else '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|header|>assistant{% endif %}"
    )
    tokenizer = tokenizer_of(source, eos_token="<|return|>", extra_special_tokens=special)
    ids = tokenizer.convert_tokens_to_ids(eos) if eos else None
    config = GenerationConfig(eos_token_id=ids)
    stops = stop_ids(config if eos else None, read_template(tokenizer))
    assert set(tokenizer.convert_ids_to_tokens(list(stops))) == {
        "<|return|>",
        *(special if isinstance(eos, list) else []),
    }
