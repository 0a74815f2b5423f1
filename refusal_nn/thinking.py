"""Whether a model thinks before it answers, as far as its chat template says, and what else of the
template is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from refusal_nn.conversations import (
    ASKED,
    DEFAULT,
    NONE,
    OPTIONS,
    UNTHINKING,
    YES,
    opens,
    tail,
    written,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where the choice is of how much: they are left alone, for what means not at all to one template
# is refused or written down by another.
EFFORTS = ("reasoning_effort", "thinking_effort")
NOT_AT_ALL = ("none", "no_think")  # Mistral Small 4, Command A+; Hunyuan 3
NO_EFFORT = "no-such-effort"  # what a template does with any word
OPENED = "the template opens a thinking block"


def switches(tokenizer: PreTrainedTokenizerBase, system: str = DEFAULT) -> list[str]:
    """What is fixed that the template would let vary."""
    text = written(tokenizer, ASKED, system=system)
    notes = [_thinking(tokenizer, system, text)]
    if _varied(tokenizer, system, {"date_string": "26 Jul 2030"}) not in (None, text):
        notes.append(f"the template's date is fixed at {OPTIONS['date_string']}")
    return [note for note in notes if note]


def _varied(
    tokenizer: PreTrainedTokenizerBase, system: str, options: Mapping[str, object]
) -> str | None:
    """A rendering with other options; None of a template that does not take them."""
    try:
        return written(tokenizer, ASKED, system=system, options=OPTIONS | options)
    except TemplateError:
        return None


def _thinking(tokenizer: PreTrainedTokenizerBase, system: str, text: str) -> str:
    """Whether the model thinks, in words; text: a rendering."""
    if on := _switched_on(tokenizer, system, text):
        yet = f", yet {OPENED}" if opens(text) else ""
        return "thinking is switched off" + yet + _lost(text, on, system)
    if default := _off_by_default(tokenizer, system, text):
        effort, on = default
        return f"thinking is off, by the template's default ({effort})" + _lost(text, on, system)
    if switch := _switch(tokenizer, system, text):
        says = OPENED if opens(text) else "the template lets the model think"
        return f"{says}; {switch}"
    if opens(text):
        return f"{OPENED} and has no switch for it"
    asked = _asked(tokenizer, system, text)
    return f"the template asks for thinking ({asked}) and has no switch for it" if asked else ""


def _switched_on(tokenizer: PreTrainedTokenizerBase, system: str, text: str) -> str:
    """A rendering with a switch the other way round; empty where the template has none."""
    ways = [YES, *({name: yes} for name, yes in YES.items())]
    found = (_varied(tokenizer, system, way) for way in ways)
    return next((on for on in found if on not in (None, text)), "")


def _off_by_default(
    tokenizer: PreTrainedTokenizerBase, system: str, text: str
) -> tuple[str, str] | None:
    """The effort that means not at all, where it is the template's default (Hunyuan 3), and a
    rendering with another."""
    for name in EFFORTS:
        on = _varied(tokenizer, system, {name: "high"})
        # Where any word is as good as the default, that a known one is says nothing.
        any_word = _varied(tokenizer, system, {name: NO_EFFORT}) == text
        if any_word or on in (None, text) or opens(text):
            continue
        for effort in NOT_AT_ALL:
            if _varied(tokenizer, system, {name: effort}) == text:
                return f"{name}={effort}", on
    return None


def _switch(tokenizer: PreTrainedTokenizerBase, system: str, text: str) -> str:
    """What would begin the answer without a thinking block or with a closed one, in words."""

    def begins_otherwise(other: str | None, word: str) -> bool:
        # What writes the word down is told of it, and may think as before.
        begins = None if other is None or opens(other) else tail(other)
        return begins not in (None, tail(text)) and word not in begins

    if begins_otherwise(_varied(tokenizer, UNTHINKING, {}), UNTHINKING):
        return f"SYSTEM={UNTHINKING} switches it off"
    for name in EFFORTS:
        for effort in (*NOT_AT_ALL, "minimal"):  # Solar Open
            if begins_otherwise(_varied(tokenizer, system, {name: effort}), effort):
                return f"{name}={effort} would switch it off, and is not set here"
    return ""


def _asked(tokenizer: PreTrainedTokenizerBase, system: str, text: str) -> str:
    """The name by which a template asks how much the model is to think."""
    for name in EFFORTS:
        for effort in ("low", "high"):
            if _varied(tokenizer, system, {name: effort}) not in (None, text):
                return name
    return ""


def _lost(text: str, on: str, system: str) -> str:
    """That SYSTEM=none leaves out what tells the model not to think."""
    if system != NONE:
        return ""
    off, on = (t.partition(ASKED)[0] for t in (text, on))
    # What only lacks something says nothing of its own (Granite 3).
    lacks = any(on.startswith(off[:i]) and on.endswith(off[i:]) for i in range(len(off) + 1))
    return "" if lacks else "; what the template's system prompt says of it is left out"
