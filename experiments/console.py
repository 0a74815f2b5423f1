"""What a person sees while an experiment runs: lines, a forecast, a progress bar, one table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from refusal_nn.plain_text import visible

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel

console = Console(highlight=False, emoji=False)


def say(*lines: str) -> None:
    for line in lines:
        console.print(_shown(line), soft_wrap=True)


def _shown(text: object) -> str:
    return escape(visible(str(text)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """One table; columns all right-aligned but the first, at its full width even in a narrower
    window."""
    shown = Table(title=_shown(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        shown.add_column(_shown(name), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*map(_shown, row))
    width = Measurement.get(console, console.options.update(max_width=1000), shown).maximum
    Console(highlight=False, emoji=False, width=max(width, len(title), console.width)).print(shown)


def sheet(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """One table of words, left-aligned and wrapped to the window."""
    shown = Table(title=_shown(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        shown.add_column(_shown(name), no_wrap=not i, overflow="fold")
    for row in rows:
        shown.add_row(*map(_shown, row))
    console.print(shown)


@contextlib.contextmanager
def forecast_progress(
    model: TracedModel, prompts: Sequence[str], positions: Sequence[int]
) -> Iterator[Callable[[int], None]]:
    """Say tokens, minutes (from a short probe) and GB, then show a bar that the yielded function
    advances by tokens."""
    from refusal_nn.feeding import tokens_to_run
    from refusal_nn.tracing import capture

    probe = sorted(prompts, key=len)[len(prompts) // 2 :][:8]
    capture(model, probe, positions)  # compiles the trace; only the second pass is timed
    begun = time.perf_counter()
    capture(model.anew(), probe, positions)
    speed = tokens_to_run(model, probe) / (time.perf_counter() - begun)
    tokens = tokens_to_run(model, prompts)
    kept = model.n_layers * len(prompts) * len(positions) * model.d_model * 4 / 1e9
    say(
        f"capture: {len(prompts)} prompts, {tokens:,} tokens, about {tokens / speed / 60:.1f} "
        "minutes; "
        f"{model.gigabytes:.2f} GB model, {kept:.2f} GB activations"
    )
    columns = (TextColumn("capture"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("capture", total=tokens)
        yield lambda done: bar.advance(task, done)
