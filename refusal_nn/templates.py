"""The chat template: rendering prompts to token ids once, and the token positions after the
instruction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from refusal_nn.errors import InputError, ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# Read only by templates that know them: no thinking block (Qwen3, Granite), and no date of today
# (Llama 3.x), which would give other activations tomorrow. The date is Llama 3.1's own default.
OPTIONS = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}
DATE = datetime(2024, 7, 26)
# Probes that end and begin unlike each other: what their renderings share at the end is the
# template's.
PROBES = ("Name a river", "What is 7 + 5?", "List three colours.", "hello (x)")
DEFAULT, NONE = "default", "none"
# Stand for what people and models say, where a template is looked at.
ASKED, ANSWERED, ASKED_AGAIN = "QUESTION-1", "ANSWER-1", "QUESTION-2"
SHOWN = 160  # characters


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template as used: post_ids are the tokens after the instruction, tokens
    their strings.

    asked: the system prompt asked for: default (the template's own, if it writes one), none, or a
    text. system: what is written before the user's turn, the BOS apart. cut: of what the template
    writes there by itself, what is left out. notes: what was chosen, in words.
    """

    tokenizer: PreTrainedTokenizerBase
    post_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    hash: str
    asked: str = DEFAULT
    system: str = ""
    cut: str = ""
    notes: tuple[str, ...] = ()

    def render(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt as one user turn with the generation prompt, just as the
        template gives them (but for a system prompt that is left out)."""
        # The same prompt is often asked under many interventions.
        distinct = list(dict.fromkeys(prompts))
        rendered = _ids(self.tokenizer, distinct, self.asked, self.cut)
        ids = dict(zip(distinct, rendered, strict=True))
        return [list(ids[prompt]) for prompt in prompts]

    def token(self, pos: int) -> str:
        """The token at a negative position: its string if it belongs to the template, else the word
        instruction."""
        return self.tokens[pos] if -pos <= len(self.tokens) else "(instruction)"

    def first_token(self, word: str) -> int | None:
        """The token that an answer of this one word begins with; None where the word is more than
        one.

        Asked of an answer that the template writes: after [/INST] another token stands for `I` than
        after a new line (Llama 2).
        """
        tokenizer, begun = self.tokenizer, self.render([ASKED])[0]
        talk = _text(tokenizer, ASKED, word, system=self.asked, generation=False)
        ids = tokenizer(talk.replace(self.cut, "", 1), add_special_tokens=False)["input_ids"]
        if ids[: len(begun)] != begun or len(ids) == len(begun):
            # Its answers are written otherwise than they are begun.
            ids, begun = tokenizer.encode(word, add_special_tokens=False), []
        first = ids[len(begun)]
        return first if tokenizer.decode([first]).strip() == word else None


def read_template(tokenizer: PreTrainedTokenizerBase, system: str = DEFAULT) -> Template:
    """Find the post-instruction tokens and check the rendering with this system prompt: default,
    none, or a text.

    Raises ModelError where the template cannot be trusted, InputError where it has no place for
    such a system prompt.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, so this is no chat model; use its "
            "instruction-tuned version"
        )
    written, cut = _system(tokenizer, system)
    rendered = _ids(tokenizer, PROBES, system, cut)
    post = _common_suffix(rendered)
    if not post:
        raise ModelError(
            "the chat template puts no token after the instruction, so there is no position to read"
        )
    _check(tokenizer, rendered, post, system, cut)
    sample = json.dumps([tokenizer.chat_template, OPTIONS, rendered])
    digest = hashlib.sha256(sample.encode()).hexdigest()
    tokens = tuple(tokenizer.decode([i]) for i in post)
    notes = (_system_note(system, written, cut), *_switches(tokenizer))
    return Template(tokenizer, tuple(post), tokens, digest, system, written, cut, notes)


def stop_ids(generation: GenerationConfig | None, template: Template) -> frozenset[int]:
    """The checkpoint's own stop tokens, and the template's end of turn: a GGUF file names only
    one."""
    tokenizer = template.tokenizer
    end = template.post_ids[0]
    # transformers' all_special_ids holds only those with a role, not Llama 3's <|eot_id|>.
    marked = getattr(tokenizer.added_tokens_decoder.get(end), "special", False)
    found = {end} if marked or end in tokenizer.all_special_ids else set()
    for ids in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


def _text(
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
    # Templates that ask for today are given the fixed date too.
    fixed = {"strftime_now": DATE.strftime} | options
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=generation, tokenize=False, **fixed
    )


def _ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], system: str, cut: str
) -> list[list[int]]:
    texts = [_text(tokenizer, prompt, system=system).replace(cut, "", 1) for prompt in prompts]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _system(tokenizer: PreTrainedTokenizerBase, system: str) -> tuple[str, str]:
    """What stands before the user's turn with this system prompt, and what is cut for it. Raises
    InputError."""
    if not system.strip():
        raise InputError("SYSTEM= is empty; choose default, none, or give a text")
    own = _before_user(tokenizer, DEFAULT)
    if system == DEFAULT:
        return own or "", ""
    if system == NONE:
        if own is None:
            raise InputError(
                "SYSTEM=none: it cannot be told where this template's own system prompt ends; "
                "choose default or give a text"
            )
        return "", own
    try:
        takes = system.strip() in _text(tokenizer, ASKED, system=system)
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
    head, asked, _ = _text(tokenizer, ASKED, system=system).partition(ASKED)
    try:
        talk = _text(tokenizer, ASKED, ANSWERED, ASKED_AGAIN)
        ended = _text(tokenizer, ASKED, ANSWERED, generation=False)
    except TemplateError:  # made for one turn
        return None
    between = talk.partition(ANSWERED)[2].partition(ASKED_AGAIN)[0]
    if between.endswith(head) or between.endswith(head.removeprefix(bos)):
        return ""
    # Between two turns stand the end of an answer and the opening of a question.
    opening = between.removeprefix(ended.partition(ANSWERED)[2])
    if not asked or opening in ("", between) or not head.endswith(opening):
        return None
    return head.removesuffix(opening).removeprefix(bos)


def _system_note(system: str, written: str, cut: str) -> str:
    shown = repr(written if len(written) <= SHOWN else written[:SHOWN] + "…")
    if system == NONE:
        return f"system prompt: none{', the template’s own is left out' if cut else ''}"
    if system != DEFAULT:
        return f"system prompt: given, {shown}"
    return f"system prompt: the template’s own, {shown}" if written else "system prompt: none"


def _switches(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What is fixed that the template would let vary."""
    text = _text(tokenizer, ASKED)
    notes = []
    thinking = {"enable_thinking": True, "thinking": True}
    if _text(tokenizer, ASKED, options=OPTIONS | thinking) != text:
        notes.append("thinking is switched off")
    elif text.rpartition("<think>")[1] and "</think>" not in text.rpartition("<think>")[2]:
        notes.append("the template opens a thinking block and has no switch for it")
    dated = {"date_string": "1 Jan 2030", "strftime_now": DATE.replace(year=2030).strftime}
    if _text(tokenizer, ASKED, options=OPTIONS | dated) != text:
        notes.append(f"the template’s date is fixed at {OPTIONS['date_string']}")
    return notes


def _common_suffix(rows: Sequence[Sequence[int]]) -> list[int]:
    length = 0
    while length < min(map(len, rows)) and len({row[-1 - length] for row in rows}) == 1:
        length += 1
    return list(rows[0][len(rows[0]) - length :])


def _check(
    tokenizer: PreTrainedTokenizerBase,
    rendered: Sequence[Sequence[int]],
    post: Sequence[int],
    system: str,
    cut: str,
) -> None:
    for probe, ids in zip(PROBES, rendered, strict=True):
        full = _text(tokenizer, probe, system=system)
        bare = _text(tokenizer, probe, system=system, generation=False)
        if cut not in full.partition(probe)[0]:
            raise ModelError("the template's own system prompt depends on the prompt")
        generation_prompt = full.removeprefix(bare)
        if generation_prompt != full and not tokenizer.decode(ids).endswith(generation_prompt):
            raise ModelError(
                "the prompt does not end with the template's generation prompt "
                f"{generation_prompt!r}"
            )
        bos = tokenizer.bos_token_id
        # A BOS that also begins turns (SmolLM2's <|im_start|>) stands in the template's own tail;
        # any other stands once.
        if bos is not None and bos not in post and (list(ids).count(bos) > 1 or bos in ids[1:]):
            raise ModelError(
                f"the template writes {tokenizer.bos_token} {list(ids).count(bos)} times; once, "
                "first, is allowed"
            )
