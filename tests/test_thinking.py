"""Whether a model thinks before it answers: off where its template can, and said as it is."""

import pytest
from chats import CHATML, IGNORED, NO_SYSTEM, THINKING, tokenizer_of

from refusal_nn import conversations, thoughts
from refusal_nn.errors import InputError
from refusal_nn.templates import read_template

OFF = "thinking is switched off"
UNSWITCHED = "the template opens a thinking block and has no switch for it"
YET = "thinking is switched off, yet the template opens a thinking block"
BY_SYSTEM = "the template opens a thinking block; SYSTEM=/no_think switches it off"
LETS = "the template lets the model think; SYSTEM=/no_think switches it off"
LEFT_OUT = "; what the template's system prompt says of it is left out"
ASKS = "the template asks for thinking (reasoning_effort) and has no switch for it"


def opening(text):
    """A template that begins an answer with this."""
    return CHATML.replace("assistant\n{% endif", f"assistant\n{text}{{% endif")


def effort(default, known):
    """What a template begins with that takes these efforts and no others."""
    return (
        f"{{% set reasoning_effort = reasoning_effort | default('{default}') %}}"
        f"{{% if reasoning_effort not in {known} %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
    )


# Written here, in the form of each family's: template, how an answer begins, what is said of it.
FORMS = {
    "qwen3": (THINKING, "<think>\n\n</think>\n\n", OFF),
    "deepseek-v3.1": (opening("{{ '<think>' if thinking else '</think>' }}"), "</think>", OFF),
    "command a reasoning": (
        opening(
            "<|START_THINKING|>{% if reasoning is defined and not reasoning %}<|END_THINKING|>"
            "{% endif %}"
        ),
        "<|START_THINKING|><|END_THINKING|>",
        OFF,
    ),
    "gemma 4": (
        opening("{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}"),
        "<|channel>thought\n<channel|>",
        OFF,
    ),
    "glm-4.5": (
        opening("{% if enable_thinking is false %}<think></think>{% endif %}").replace(
            "{{ m.content }}", "{{ m.content }}{{ '/nothink' if enable_thinking is false }}"
        ),
        "<think></think>",
        OFF,
    ),
    "granite": ("{% if thinking %}<|im_start|>system\nThink.{% endif %}" + CHATML, "", OFF),
    "seed-oss": (
        opening("{% if thinking_budget == 0 %}<seed:think><seed:budget>{% endif %}"),
        "<seed:think><seed:budget>",
        YET,
    ),
    "kimi-k3": (
        "{% set thinking = thinking is not defined or thinking %}{% if thinking and thinking_effort"
        " | default('max') != 'max' %}{{ raise_exception('not so') }}{% endif %}"
        + opening("<|open|>{{ 'think' if thinking else 'response' }}<|sep|>"),
        "<|open|>response<|sep|>",
        OFF,
    ),
    "deepseek-r1": (opening("<think>\n"), "<think>\n", UNSWITCHED),
    "nemotron": (
        opening("<think>{{ '</think>' if '/no_think' in messages[0].content }}").replace(
            "{{ m.content }}", "{{ m.content | replace('/no_think', '') }}"
        ),
        "<think>",
        BY_SYSTEM,
    ),
    "gpt-oss": (
        "<|im_start|>system\nReasoning: {{ reasoning_effort | default('medium') }}<|im_end|>\n"
        + CHATML,
        "",
        ASKS,
    ),
    "minimax-m3": (
        opening(
            "{% set mode = thinking_mode | default('enabled') %}{% if mode == 'enabled' %}"
            "<mm:think>{% elif mode == 'disabled' %}</mm:think>{% endif %}"
        ),
        "</mm:think>",
        OFF,
    ),
    "hunyuan 3": (
        effort("no_think", ["no_think", "low", "high"])
        + opening(
            "<think:opensource>{{ '</think:opensource>' if reasoning_effort == 'no_think' }}"
        ),
        "<think:opensource></think:opensource>",
        "thinking is off, by the template's default (reasoning_effort=no_think)",
    ),
    "hunyuan 4": (
        effort("high", ["no_think", "high"])
        + opening(
            "<think:opensource>{{ '</think:opensource>' if reasoning_effort == 'no_think' }}"
        ),
        "<think:opensource>",
        "the template opens a thinking block; reasoning_effort=no_think would switch it off, and "
        "is not set here",
    ),
    "mistral small 4": (
        effort("none", ["none", "high"])
        + "<|im_start|>system\nEffort: {{ reasoning_effort }}<|im_end|>\n"
        + CHATML,
        "",
        "thinking is off, by the template's default (reasoning_effort=none)",
    ),
    "solar open": (
        opening("{{ '<|header|><|eot|>' if reasoning_effort in ['low', 'minimal'] }}"),
        "",
        "the template lets the model think; reasoning_effort=minimal would switch it off, and is "
        "not set here",
    ),
    "an effort that is written down": (
        opening("{{ 'Effort: ' + reasoning_effort if reasoning_effort is defined }}"),
        "",
        ASKS,
    ),
    # Any word but one is as good as the default: that none is one says nothing.
    "an effort of any words": (
        "<|im_start|>system\n{{ 'Much.' if reasoning_effort == 'high' else 'Some.' }}<|im_end|>\n"
        + CHATML,
        "",
        ASKS,
    ),
    "nemotron super 1.5": (
        opening("{{ '<think>\n\n</think>\n\n' if '/no_think' in messages[0].content }}"),
        "",
        LETS,
    ),
    # Its system prompt says how to think; that opens nothing.
    "magistral": ("<|im_start|>system\nFirst [THINK].<|im_end|>\n" + CHATML, "", None),
    "no thinking at all": (CHATML, "", None),
}


@pytest.mark.parametrize("form", FORMS)
def test_thinking_is_off_where_it_can_be_and_what_is_said_is_true(form):
    source, begun, said = FORMS[form]
    template = read_template(tokenizer_of(source))
    text = template.tokenizer.decode(template.render(["hi"])[0])
    assert text.endswith(f"<|im_end|>\n<|im_start|>assistant\n{begun}")
    assert template.notes[1:] == ((said,) if said else ())


@pytest.mark.parametrize(("name", "yes"), conversations.YES.items())
def test_each_switch_alone_keeps_a_block_from_being_opened(name, yes):
    source = opening(f"{{{{ '<think>' if {name} is not defined or {name} == {yes!r} }}}}")
    template = read_template(tokenizer_of(source))
    assert "<think>" not in template.tokenizer.decode(template.render(["hi"])[0])
    assert template.notes[1:] == (OFF,)


@pytest.mark.parametrize(("opens", "closes"), thoughts.BLOCKS)
def test_each_kind_of_block_is_seen_while_it_is_open(opens, closes):
    for text, said in ((f"{opens}\n", (UNSWITCHED,)), (f"{opens}\n{closes}", ()), (closes, ())):
        assert read_template(tokenizer_of(opening(text))).notes[1:] == said


def test_a_block_that_the_system_prompt_switches_off_is_not_said_to_be_open():
    source, *_ = FORMS["nemotron"]
    for system, notes in (("/no_think", ()), ("/no_think Be kind.", ()), ("Hm.", (BY_SYSTEM,))):
        assert read_template(tokenizer_of(source), system).notes[1:] == notes


def test_a_switch_in_the_system_prompt_is_refused_by_a_template_without_one():
    for source in (IGNORED, NO_SYSTEM):
        with pytest.raises(InputError, match="takes no system prompt"):
            read_template(tokenizer_of(source), "/no_think")


THINKS = "{{ 'Think' if enable_thinking is not defined or enable_thinking else 'Answer' }}"
SAYS = f"<|im_start|>system\n{THINKS} now.<|im_end|>\n" + CHATML
ADDS = "<|im_start|>system\nHi.{{ ' Think.' if thinking }}<|im_end|>\n" + CHATML


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SAYS, OFF + LEFT_OUT),
        (FORMS["mistral small 4"][0], FORMS["mistral small 4"][2] + LEFT_OUT),
        (ADDS, OFF),  # only where it thinks does it say so (Granite 3)
        (THINKING, OFF),  # said after the question
    ],
)
def test_that_the_words_against_thinking_go_with_the_system_prompt_is_said(source, said):
    assert read_template(tokenizer_of(source), "none").notes[1:] == (said,)
    assert LEFT_OUT not in read_template(tokenizer_of(source)).notes[1]


@pytest.mark.parametrize("system", ["/no_think", "/think", "Be kind. /think", "a /no_think\nb"])
def test_a_switch_may_stand_in_a_system_prompt_whether_it_is_left_in_cut_out_or_the_default(system):
    cut_out = CHATML.replace(
        "{{ m.content }}", "{{ m.content.replace('/no_think', '').replace('/think', '') }}"
    )
    for source in (CHATML, cut_out):
        assert read_template(tokenizer_of(source), system).asked == system


def test_a_template_that_hears_nothing_but_a_switch_takes_that_alone():
    heard = "{% if '/no_think' in messages[0].content %}<|im_start|>{% endif %}" + IGNORED
    assert read_template(tokenizer_of(heard), "/no_think").asked == "/no_think"
    for system in ("Be kind.", "Be kind. /no_think", "/think"):
        with pytest.raises(InputError, match="takes no system prompt"):
            read_template(tokenizer_of(heard), system)
