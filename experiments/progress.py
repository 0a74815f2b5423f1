"""How long the work will take, and a bar while it does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel
    from refusal_nn.prompts import Prompt

PROBE_ROWS, PROBE_TOKENS = 16, 16


def speed(model: TracedModel, prompts: Sequence[Prompt]) -> float:
    """Tokens per second that a short batch of these prompts is completed at."""
    from refusal_nn.tracing import generate

    model, texts = model.anew(), [p.prompt for p in prompts[:PROBE_ROWS]]
    generate(model, texts[:1], max_new_tokens=2)  # compiles the trace
    begun = time.perf_counter()
    done = generate(model, texts, max_new_tokens=PROBE_TOKENS)
    return sum(len(c.ids) for c in done) / (time.perf_counter() - begun)


@contextlib.contextmanager
def completing(
    what: str, completions: int, tokens: int, per_second: float
) -> Iterator[Callable[[int], None]]:
    """Say how many completions, and how long at most, then show their progress."""
    from experiments.console import say

    most = completions * tokens
    say(
        f"{what}: {completions} completions of at most {tokens} tokens, at most about "
        f"{most / per_second / 60:.1f} minutes"
    )
    with bar(what, most) as advance:
        yield advance


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over `total` units that the yielded function advances."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from experiments.console import console

    columns = (TextColumn(what), BarColumn(), TimeElapsedColumn(), TextColumn("left"), Remaining())
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as drawn:
        task = drawn.add_task(what, total=total)
        yield lambda done: drawn.advance(task, done)
