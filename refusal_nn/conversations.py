"""A conversation as a chat template writes it: with which system prompt, of which date, thinking or
not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from refusal_nn.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Read only by templates that know them: no thinking block (Qwen3, Granite), and no date of today
# (Llama 3.x), which would give other activations tomorrow. The date is Llama 3.1's own default.
OPTIONS = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}
DIRECTIVES = ("%-d", "%-m", "%d", "%b", "%B", "%Y", "%y", "%m", "%a", "%A", "%H", "%M", "%S")
DEFAULT, NONE = "default", "none"
# Stand for what people and models say, where a template is looked at.
ASKED, ANSWERED, ASKED_AGAIN = "QUESTION-1", "ANSWER-1", "QUESTION-2"
SHOWN = 160  # characters


def written(
    tokenizer: PreTrainedTokenizerBase,
    *said: str,
    system: str = DEFAULT,
    generation: bool = True,
    options: Mapping[str, object] = OPTIONS,
) -> str:
    """A conversation as the template writes it; user and assistant speak in turns."""
    turns = [{"role": "system", "content": system}] if system not in (DEFAULT, NONE) else []
    turns += [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)
    ]
    source = tokenizer.get_chat_template()
    if "strftime_now" in source:
        source = _dated(options["date_string"]) + source
    return tokenizer.apply_chat_template(
        turns, chat_template=source, add_generation_prompt=generation, tokenize=False, **options
    )


def _dated(date: str) -> str:
    """A macro that takes the place of transformers' strftime_now: always this day, at midnight."""
    day = datetime.strptime(date, "%d %b %Y")
    parts = "".join(f" | replace('{d}', '{day.strftime(d)}')" for d in DIRECTIVES)
    # The line break is the block's own, and taken away with it.
    return f"{{% macro strftime_now(form) %}}{{{{ form{parts} }}}}{{% endmacro %}}\n"


def placed(tokenizer: PreTrainedTokenizerBase, system: str) -> tuple[str | None, str]:
    """What stands before the user's turn with this system prompt (None: cannot be told), and what
    is cut for it. Raises InputError."""
    if not system.strip():
        raise InputError("SYSTEM= is empty; choose default, none, or give a text")
    own = _before_user(tokenizer, DEFAULT)
    if system == DEFAULT:
        return own, ""
    if system == NONE:
        if own is None:
            raise InputError(
                "SYSTEM=none: it cannot be told where this template's own system prompt ends; "
                "choose default or give a text"
            )
        return "", own
    try:
        takes = system.strip() in written(tokenizer, ASKED, system=system)
    except TemplateError:
        takes = False
    if not takes:
        raise InputError(
            "SYSTEM=: this model's template takes no system prompt; choose default or none"
        )
    return _before_user(tokenizer, system) or system, ""


def _before_user(tokenizer: PreTrainedTokenizerBase, system: str) -> str | None:
    """What a template writes between the BOS and the user's turn; None where that cannot be
    told."""
    bos = tokenizer.bos_token or ""
    head, asked, _ = written(tokenizer, ASKED, system=system).partition(ASKED)
    try:
        talk = written(tokenizer, ASKED, ANSWERED, ASKED_AGAIN)
        ended = written(tokenizer, ASKED, ANSWERED, generation=False)
    except TemplateError:  # made for one turn
        return None
    between = talk.partition(ANSWERED)[2].partition(ASKED_AGAIN)[0]
    if between.endswith(head) or between.endswith(head.removeprefix(bos)):
        return ""
    # Between two turns stand the end of an answer and the opening of a question.
    opening = between.removeprefix(ended.partition(ANSWERED)[2])
    if not asked or opening in ("", between) or not head.endswith(opening):
        return None
    own = head.removesuffix(opening)
    # A BOS that begins turns (SmolLM2's <|im_start|>) belongs to the system prompt's turn.
    return own if bos and opening.startswith(bos) else own.removeprefix(bos)


def note(system: str, written: str | None, cut: str) -> str:
    """The system prompt in words."""
    if written is None:
        return "system prompt: the template's own, if any; which part is it cannot be told"
    shown = repr(written if len(written) <= SHOWN else written[:SHOWN] + "…")
    if system == NONE:
        return (
            "system prompt: none, the template's own is left out" if cut else "system prompt: none"
        )
    if system != DEFAULT:
        return f"system prompt: given, {shown}"
    return f"system prompt: the template's own, {shown}" if written else "system prompt: none"


def switches(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What is fixed that the template would let vary."""
    text = written(tokenizer, ASKED)
    notes = []
    thinking = {"enable_thinking": True, "thinking": True}
    if written(tokenizer, ASKED, options=OPTIONS | thinking) != text:
        notes.append("thinking is switched off")
    elif text.rpartition("<think>")[1] and "</think>" not in text.rpartition("<think>")[2]:
        notes.append("the template opens a thinking block and has no switch for it")
    if written(tokenizer, ASKED, options=OPTIONS | {"date_string": "26 Jul 2030"}) != text:
        notes.append(f"the template's date is fixed at {OPTIONS['date_string']}")
    return notes
