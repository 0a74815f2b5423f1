"""Capture the residual stream of both classes after every block: what all other stages read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments import causes, cli

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel
    from refusal_nn.prompts import Prompt

NAME = "capture"


def compute(args: argparse.Namespace) -> None:
    """Load, forecast, capture, write activations, moments and the table of prompts."""
    from experiments import console
    from refusal_nn import captured, files, prompts, splits
    from refusal_nn.batch_files import BatchFiles
    from refusal_nn.runs import BATCHES
    from refusal_nn.tracing import capture

    notes: list[str] = []
    parts = splits.split(prompts.load_prompts(args.prompts or None, notes), args.n, args.seed)
    splits.require_enough(parts["fit"])
    table, texts = captured.prompt_table(parts), [p.prompt for part in parts.values() for p in part]
    with cli.stage(args, NAME).run(cli.capture_settings(args)) as run:
        model = causes.load(args)
        positions = _positions(args.positions, model)
        for line in notes:
            console.say(line)
        groups = [f"{row['split']}.{row['label']}" for row in table]
        files.require_room(run.folder, 2 * _bytes(model, len(texts), len(positions)))
        kept = BatchFiles(run.folder / BATCHES, run.journal(model.where))
        ids = [str(row["id"]) for row in table]
        with console.forecast_progress(model, texts, positions) as on_batch:
            acts = capture(
                model, texts, positions, groups=groups, on_batch=on_batch, names=ids, kept=kept
            )
        captured.write_capture(run.folder, acts, model.template, table)
        summary = _summary(args, model, positions, acts.counts) | {"notes": [*model.notes, *notes]}
        run.finish(summary, full_origin(args, model, parts))
    where = ", ".join(map(str, positions))
    console.say(
        f"wrote {run.folder} ({model.n_layers} layers, {len(texts)} prompts, positions {where})"
    )


def _bytes(model: TracedModel, prompts: int, positions: int) -> int:
    """What the activations take on disk; a batch at a time before, all together after."""
    return 4 * model.n_layers * prompts * positions * model.d_model


def _summary(
    args: argparse.Namespace, model: TracedModel, positions: list[int], counts: dict[str, int]
) -> dict[str, object]:
    return {
        "model": args.model,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "prompts": counts,
        "positions": positions,
        "tokens": [model.template.token(pos) for pos in positions],
        "post_instruction_tokens": model.template.tokens,
        "self_test": model.self_test,
    }


def full_origin(
    args: argparse.Namespace, model: TracedModel, parts: Mapping[str, Sequence[Prompt]]
) -> dict[str, object]:
    """origin, and which prompts there were."""
    from refusal_nn.splits import prompts_hash

    prompts = [p for part in parts.values() for p in part]
    return origin(args, model) | {"prompt_set_sha256": prompts_hash(prompts)}


def origin(args: argparse.Namespace, model: TracedModel) -> dict[str, object]:
    """What every stage that ran a model says of it in its manifest."""
    return {
        "model": args.model,
        "revision": model.revision,
        "dtype": str(model.dtype),
        "device": model.device_type,
        "backend": args.backend,
        "seed": args.seed,
        "template_sha256": model.template.hash,
        "system_prompt": model.template.system,
    }


def _positions(text: str, model: TracedModel) -> list[int]:
    from refusal_nn.errors import InputError

    post = list(range(-1, -len(model.template.tokens) - 1, -1))
    if text == "all":
        return post
    chosen = [int(part) for part in text.split(",")]
    if min(chosen) < post[-1]:
        raise InputError(
            f"POSITIONS={text}: this template has {len(post)} tokens after the instruction, so "
            f"choose from -1 to {post[-1]}"
        )
    return chosen


def main() -> None:
    args = cli.parser(NAME, __doc__).parse_args()
    if args.settings_only:
        return cli.stage(args, NAME).request(cli.capture_settings(args))
    compute(args)


if __name__ == "__main__":
    cli.run(main)
