"""The chat template: rendering prompts to token ids once, and the token positions after the
instruction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from refusal_nn.errors import ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# Read only by templates that know them: no thinking block (Qwen3), and no date of today (Llama
# 3.x), which would give other activations tomorrow. The date is Llama 3.1's own default.
OPTIONS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
# Probes that end and begin unlike each other: what their renderings share at the end is the
# template's.
PROBES = ("Name a river", "What is 7 + 5?", "List three colours.", "hello (x)")


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template as used: post_ids are the tokens after the instruction, tokens
    their strings."""

    tokenizer: PreTrainedTokenizerBase
    post_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    hash: str

    def render(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt as one user turn with the generation prompt, just as the
        template gives them."""
        # The same prompt is often asked under many interventions.
        distinct = list(dict.fromkeys(prompts))
        ids = dict(zip(distinct, _ids(self.tokenizer, distinct), strict=True))
        return [list(ids[prompt]) for prompt in prompts]

    def token(self, pos: int) -> str:
        """The token at a negative position: its string if it belongs to the template, else the word
        instruction."""
        return self.tokens[pos] if -pos <= len(self.tokens) else "(instruction)"


def read_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Find the post-instruction tokens and check the rendering. Raises ModelError where the
    template cannot be trusted."""
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, so this is no chat model; use its "
            "instruction-tuned version"
        )
    rendered = _ids(tokenizer, PROBES)
    post = _common_suffix(rendered)
    if not post:
        raise ModelError(
            "the chat template puts no token after the instruction, so there is no position to read"
        )
    _check(tokenizer, rendered, post)
    sample = json.dumps([tokenizer.chat_template, OPTIONS, rendered])
    tokens = tuple(tokenizer.decode([i]) for i in post)
    return Template(tokenizer, tuple(post), tokens, hashlib.sha256(sample.encode()).hexdigest())


def stop_ids(generation: GenerationConfig | None, template: Template) -> frozenset[int]:
    """The checkpoint's own stop tokens, and the template's end of turn: a GGUF file names only
    one."""
    tokenizer = template.tokenizer
    found = {template.post_ids[0]} & set(tokenizer.all_special_ids)
    for ids in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


def _ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    try:
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, **OPTIONS
        )["input_ids"]
    except (TemplateError, OverflowError) as error:
        raise ModelError(
            f"the chat template cannot be used: {error}; fetch the tokenizer again"
        ) from error


def _common_suffix(rows: Sequence[Sequence[int]]) -> list[int]:
    length = 0
    while length < min(map(len, rows)) and len({row[-1 - length] for row in rows}) == 1:
        length += 1
    return list(rows[0][len(rows[0]) - length :])


def _check(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Sequence[int]], post: Sequence[int]
) -> None:
    for probe, ids in zip(PROBES, rendered, strict=True):
        turn = [{"role": "user", "content": probe}]
        full = tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=False, **OPTIONS
        )
        bare = tokenizer.apply_chat_template(
            turn, add_generation_prompt=False, tokenize=False, **OPTIONS
        )
        if tokenizer(full, add_special_tokens=False)["input_ids"] != list(ids):
            raise ModelError(
                "the template's token ids differ from the ids of its text; the tokenizer cannot "
                "be trusted"
            )
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
