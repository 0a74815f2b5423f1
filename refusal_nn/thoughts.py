"""What models mark as their thoughts, before they answer. Pure."""

from __future__ import annotations

import re

# What opens a thinking block, and what closes it.
BLOCKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),  # MiniMax-M3
    ("<think:opensource>", "</think:opensource>"),  # Hunyuan 3
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi-K3
    ("<|channel|>analysis", "<|channel|>final<|message|>"),  # gpt-oss
)
THOUGHT = re.compile(
    "|".join(rf"{re.escape(o)}.*?(?:{re.escape(c)}|\Z)" for o, c in BLOCKS),
    re.DOTALL | re.IGNORECASE,
)
CLOSED = re.compile("|".join(re.escape(closes) for _, closes in BLOCKS), re.IGNORECASE)


def spoken(text: str) -> str:
    """An answer without its thoughts, also those that the prompt opened; of thoughts that are not
    closed nothing."""
    return CLOSED.split(THOUGHT.sub(" ", text))[-1]


def marks(token: str) -> bool:
    """Whether a special token is one that thoughts are told by, or a part of such a mark."""
    return bool(token.strip()) and any(token in mark for block in BLOCKS for mark in block)


def left_open(text: str) -> str:
    """What opens the block of thoughts that a text ends in; empty where it ends in none."""
    ends = [opens for opens, closes in BLOCKS if text.rfind(opens) > text.rfind(closes)]
    return max(ends, key=text.rfind, default="")
