"""The chat template: rendering prompts to token ids once, and the token positions after the
instruction."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from refusal_nn.conversations import (
    ASKED,
    DEFAULT,
    OPTIONS,
    after_answer,
    before_answer,
    note,
    placed,
    written,
)
from refusal_nn.errors import ModelError
from refusal_nn.thinking import switches

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# Probes that end and begin unlike each other: what their renderings share at the end is the
# template's.
PROBES = ("Name a river", "What is 7 + 5?", "List three colours.", "hello (x)")
PLAIN = "I"  # a word that every vocabulary has as one token


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template as used: post_ids are the tokens after the instruction, tokens
    their strings.

    asked: the system prompt asked for: default (the template's own, if it writes one), none, or a
    text. system: what is written before the user's turn, the BOS apart; None where a template made
    for one turn does not let it be told. cut: of what the template writes there by itself, what is
    left out. notes: what was chosen, in words.
    """

    tokenizer: PreTrainedTokenizerBase
    post_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    hash: str
    asked: str = DEFAULT
    system: str | None = ""
    cut: str = ""
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def special(self) -> dict[int, str]:
        """Special tokens by id. transformers' own list holds only those with a role, not Llama 3's
        <|eot_id|>; the other takes 2 ms to ask of 6,000 (Gemma 3)."""
        tokenizer = self.tokenizer
        with_role = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        added = tokenizer.added_tokens_decoder.items()
        return {**dict(with_role), **{i: str(token) for i, token in added if token.special}}

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
        # A system prompt that stands in the last turn (Mistral 7B) moves when the answer is there.
        ids = self._answer(word, self.asked, self.cut) or self._answer(word, DEFAULT, "")
        # Or answers are written otherwise than they are begun.
        first = (ids or self.tokenizer.encode(word, add_special_tokens=False))[0]
        return first if self.tokenizer.decode([first]).strip() == word else None

    def _answer(self, word: str, system: str, cut: str) -> list[int]:
        """Token ids of an answer that the template writes, after those that it is asked with; none
        where it begins otherwise."""
        [begun] = _ids(self.tokenizer, [ASKED], system, cut)
        try:
            talk = written(self.tokenizer, ASKED, word, system=system, generation=False)
        except TemplateError:
            return []  # made for one turn
        ids = self.tokenizer(talk.replace(cut, "", 1), add_special_tokens=False)["input_ids"]
        return ids[len(begun) :] if ids[: len(begun)] == begun else []


def read_template(tokenizer: PreTrainedTokenizerBase, system: str = DEFAULT) -> Template:
    """Find the post-instruction tokens and check the rendering with this system prompt: default,
    none, or a text.

    Raises ModelError where the template cannot be trusted, InputError where it has no place for
    such a system prompt.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template: of a base model use the instruction-tuned "
            "version; to a chat model that brings none (Vicuna) give the one it was trained with, "
            "as chat_template.jinja in a folder of its files (`.venv/bin/hf download OWNER/NAME "
            "--local-dir FOLDER`, then MODEL=FOLDER; beside a .gguf it would not be read)"
        )
    _require_prompts(tokenizer)
    before, cut = placed(tokenizer, system)
    rendered = _ids(tokenizer, PROBES, system, cut)
    post = _common_suffix(rendered)
    if not post:
        raise ModelError(
            "the chat template puts no token after the instruction, so there is no position to read"
        )
    _check(tokenizer, rendered, post, system, cut)
    sample = json.dumps([tokenizer.chat_template, rendered])
    digest = hashlib.sha256(sample.encode()).hexdigest()
    tokens = tuple(tokenizer.decode([i]) for i in post)
    notes = (note(system, before, cut), *switches(tokenizer, system))
    template = Template(tokenizer, tuple(post), tokens, digest, system, before, cut, notes)
    return dataclasses.replace(template, notes=(*notes, *_unscored(template)))


def _unscored(template: Template) -> list[str]:
    """Why no word begins an answer, where the template writes something else first (GLM-4.5,
    gpt-oss)."""
    before = before_answer(template.tokenizer)
    # A space may be a part of the word's token.
    if not before or template.first_token(PLAIN) is not None:
        return []
    return [
        f"answers begin with {before!r}, which the model writes itself: no refusal word comes first"
    ]


def stop_ids(generation: GenerationConfig | None, template: Template) -> frozenset[int]:
    """The checkpoint's own stop tokens, and what the template ends a question and an answer with,
    if an answer is of one part: a GGUF file names only one."""
    tokenizer, special = template.tokenizer, template.special
    before, after = (
        [i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i in special]
        for text in (before_answer(tokenizer), after_answer(tokenizer))
    )
    # In an answer of several parts (gpt-oss) such an end may be only that of a part.
    found = set() if before else {*template.post_ids[:1], *after[:1]} & special.keys()
    for ids in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


def _ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], system: str, cut: str
) -> list[list[int]]:
    try:
        texts = [written(tokenizer, p, system=system).replace(cut, "", 1) for p in prompts]
    except TemplateError as error:
        said = str(error).rstrip(".")
        raise ModelError(
            f"the chat template cannot be used: {said}; {_remedy(tokenizer)}"
        ) from error
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _remedy(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to do about a template that raises."""
    refused = [name for name in OPTIONS if not _renders(tokenizer, name)]
    mend = "as chat_template.jinja in a folder of its files (MODEL=FOLDER)"
    if not refused or len(refused) == len(OPTIONS):
        return f"fetch the tokenizer again, or put a template that works {mend}"
    given = ", ".join(f"{name}={OPTIONS[name]}" for name in refused)
    return f"it does not take {given}, which every template is given: put one that does {mend}"


def _renders(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether a template takes this option alone, and a date."""
    options = {"date_string": OPTIONS["date_string"], name: OPTIONS[name]}
    try:
        return bool(written(tokenizer, ASKED, options=options))
    except TemplateError:
        return False


def _require_prompts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the template cannot be rendered, or leaves the prompt out."""
    _ids(tokenizer, PROBES, DEFAULT, "")
    if any(probe not in written(tokenizer, probe) for probe in PROBES):
        raise ModelError(
            "the chat template does not write the prompt as it is given: it may want a message in "
            "parts, text beside images (SmolVLM); use a model that is asked in text alone"
        )


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
        full = written(tokenizer, probe, system=system)
        bare = written(tokenizer, probe, system=system, generation=False)
        if cut not in full.partition(probe)[0]:
            raise ModelError("the template's own system prompt depends on the prompt")
        generation_prompt = full.removeprefix(bare)
        if generation_prompt != full and not tokenizer.decode(ids).endswith(generation_prompt):
            raise ModelError(
                "the prompt does not end with the template's generation prompt "
                f"{generation_prompt!r}: tokenizer.json is missing, or of another model than the "
                "template; fetch the tokenizer again"
            )
        bos = tokenizer.bos_token_id
        # A BOS that also begins turns (SmolLM2's <|im_start|>) stands in the template's own tail;
        # any other stands once.
        if bos is not None and bos not in post and (list(ids).count(bos) > 1 or bos in ids[1:]):
            raise ModelError(
                f"the template writes {tokenizer.bos_token} {list(ids).count(bos)} times; once, "
                "first, is allowed"
            )
