"""A conversation as a chat template writes it: with which system prompt, of which date, thinking or
not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from refusal_nn.errors import InputError
from refusal_nn.thoughts import left_open

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# By what name a template reads whether to think, and what says no and yes.
THINKING = {
    "enable_thinking": (False, True),  # Qwen3, GLM-4.5, SmolLM3, Hunyuan, Gemma 4
    "thinking": (False, True),  # Granite 3, DeepSeek-V3.1, Kimi
    "reasoning": (False, True),  # Command A Reasoning
    "thinking_budget": (0, 512),  # Seed-OSS: tokens
    "thinking_mode": ("disabled", "enabled"),  # MiniMax-M3
}
# System prompts that are switches: obeyed, and left out where they stood (Nemotron, SmolLM3).
UNTHINKING, TO_THINK = "/no_think", "/think"
# Raised in templates by values that they were not written for.
FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
# Read only by templates that know them: no thinking, and no date of today (Llama 3.x), which would
# give other activations tomorrow. The date is Llama 3.1's own default.
OPTIONS = {name: no for name, (no, _) in THINKING.items()} | {"date_string": "26 Jul 2024"}
YES = {name: yes for name, (_, yes) in THINKING.items()}
DIRECTIVES = ("%-d", "%-m", "%d", "%b", "%B", "%Y", "%y", "%m", "%a", "%A", "%H", "%M", "%S")
DEFAULT, NONE = "default", "none"
# Stand for what people and models say, where a template is looked at.
ASKED, ANSWERED, ASKED_AGAIN = "QUESTION-1", "ANSWER-1", "QUESTION-2"
TOLD = "SYSTEM-1"
# Who speaks in talks that show what opens a question: some templates refuse two questions running,
# some end an answer with nothing (GLM-4), or the last one otherwise (gpt-oss).
TALKS = (("user", "assistant", "user"), ("user", "user"))
SHOWN = 160  # characters


def written(
    tokenizer: PreTrainedTokenizerBase,
    *said: str,
    system: str = DEFAULT,
    generation: bool = True,
    options: Mapping[str, object] = OPTIONS,
    roles: Sequence[str] = ("user", "assistant"),
) -> str:
    """A conversation as the template writes it; the roles speak in turns. Raises TemplateError."""
    turns = [{"role": "system", "content": system}] if system not in (DEFAULT, NONE) else []
    turns += [{"role": roles[i % len(roles)], "content": text} for i, text in enumerate(said)]
    how = {"add_generation_prompt": generation, "tokenize": False, **options}
    try:
        source = tokenizer.get_chat_template()
        if "strftime_now" in source:
            source = _dated(options["date_string"]) + source
        return tokenizer.apply_chat_template(turns, chat_template=source, **how)
    except FAULTS as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error


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
    if not _takes(tokenizer, system):
        raise InputError(
            "SYSTEM=: this model's template takes no system prompt; choose default or none"
        )
    return _given(tokenizer, system, own), ""


def _takes(tokenizer: PreTrainedTokenizerBase, system: str) -> bool:
    """Whether a system prompt gets into the conversation."""
    try:
        text = written(tokenizer, ASKED, system=system)
        if TOLD in written(tokenizer, ASKED, system=TOLD):
            return True
    except TemplateError:
        return False
    # Where no text gets in, a switch may be obeyed.
    return system.strip() in (UNTHINKING, TO_THINK) and text != written(tokenizer, ASKED)


def _given(tokenizer: PreTrainedTokenizerBase, system: str, own: str | None) -> str:
    """What stands before the user's turn with this text; all up to the prompt, where the template's
    own text may stand around it (Command R7B) and an end cannot be told."""
    before = _before_user(tokenizer, system)
    if before is not None:
        return before or system
    bos = tokenizer.bos_token or ""
    return system if own == "" else _head(tokenizer, system).removeprefix(bos)


def _before_user(tokenizer: PreTrainedTokenizerBase, system: str) -> str | None:
    """What a template writes between the start of a conversation and the user's turn; None where
    that cannot be told."""
    opening = _opening(tokenizer)
    head = _head(tokenizer, system)
    if opening is None or not head.endswith(opening):
        return None
    return head.removesuffix(opening).removeprefix(_start(tokenizer, opening))


def _head(tokenizer: PreTrainedTokenizerBase, system: str) -> str:
    """What stands before the first question."""
    return written(tokenizer, ASKED, system=system).partition(ASKED)[0]


def _start(tokenizer: PreTrainedTokenizerBase, opening: str) -> str:
    """What every conversation starts with: the BOS, or such tokens as GLM-4's [gMASK]<sop>."""
    bos = tokenizer.bos_token or ""
    # A BOS that begins turns (SmolLM2's <|im_start|>) belongs to the system prompt's turn.
    if bos and opening.startswith(bos):
        return ""
    before = _head(tokenizer, DEFAULT).removesuffix(opening)
    try:
        # An empty turn of a system prompt (EXAONE 3.5) gives way to one that is given.
        kept = _head(tokenizer, TOLD).startswith(before)
    except TemplateError:
        kept = True
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    empty = not tokenizer.decode(ids, skip_special_tokens=True).strip()
    return before if kept and empty else bos


def _opening(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What opens a question, wherever it stands; None where that cannot be told."""
    head, found = _head(tokenizer, DEFAULT), []
    for roles in TALKS:
        try:
            end, between = _between(tokenizer, roles)
        except TemplateError:
            continue
        for whole in (head, head.removeprefix(tokenizer.bos_token or "")):
            if between.endswith(whole):
                return whole
        opening = between.removeprefix(end)
        # That nothing ends a turn is believed of questions: a last answer may be left open.
        told = between.startswith(end) and (end or "assistant" not in roles)
        if told and opening and head.endswith(opening):
            found.append(opening)
    # Where the last answer ends otherwise (OLMo 3), the longer one holds an end of the answer too.
    return min(found, key=len, default=None)


def _between(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> tuple[str, str]:
    """What ends the turn before the last where it is itself the last, and what stands between the
    two."""
    said = (ASKED, ANSWERED, ASKED_AGAIN) if "assistant" in roles else (ASKED, ASKED_AGAIN)
    end = written(tokenizer, *said[:-1], generation=False, roles=roles).partition(said[-2])[2]
    talk = written(tokenizer, *said, roles=roles)
    return end, talk.partition(said[-2])[2].partition(said[-1])[0]


def after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands between an answer and the next question; nothing of a template made for one
    turn."""
    try:
        return _between(tokenizer, TALKS[0])[1]
    except TemplateError:
        return ""


def before_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes before an answer, and leaves to the model in the generation prompt;
    nothing where it begins with thoughts, or writes answers otherwise than it begins them."""
    try:
        talk = written(tokenizer, ASKED, ANSWERED, generation=False)
    except TemplateError:
        return ""
    head, begun = talk.partition(ANSWERED)[0], written(tokenizer, ASKED)
    return head.removeprefix(begun) if head.startswith(begun) and not opens(begun) else ""


def tail(text: str) -> str:
    """What stands after the question."""
    return text.rpartition(ASKED)[2]


def opens(text: str) -> bool:
    """Whether a rendering ends in a thinking block that is open."""
    return bool(left_open(tail(text)))


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
