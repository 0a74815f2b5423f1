"""A finished model's direction, judged samples and tables in the formats of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments import cli
from refusal_nn.errors import InputError

NAME = "export"
DIRECTION = "direction.safetensors"
JUDGED = ("baseline", "sweep", "causal", "subspace")


def compute(args: argparse.Namespace) -> None:
    """Every export that the finished stages allow; the others are named with the reason."""
    from experiments import console

    folder = args.results / cli.safe_name(args.model) / NAME
    written, left_out = [], []
    for name, write in (*_of_direction(args), *_of_rows(args)):
        try:
            write(folder / name)
            written.append(name)
        except InputError as reason:
            left_out.append(f"{name} left out: {reason}")
    for line in left_out:
        console.say(line)
    if not written:
        raise InputError(f"nothing to export of {args.model}; run `make sweep MODEL=...` first")
    console.say(f"wrote {folder} ({', '.join(written)})")


def _of_direction(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], None]]]:
    from refusal_nn import exports, files
    from refusal_nn.saved_directions import load_direction

    done = cli.stage(args, "select")
    if not (done.folder / DIRECTION).is_file():
        return
    direction = load_direction(done.artefact(DIRECTION))
    n_layers = files.read_json(done.summary)["n_layers"]
    yield "steered.pt", lambda path: exports.write_steered(path, direction)
    yield (
        "transformer_lens.json",
        lambda path: exports.write_transformer_lens(path, direction, n_layers),
    )
    yield "steering_vector.safetensors", lambda path: exports.write_layers(path, direction)


def _of_rows(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], None]]]:
    from refusal_nn import exports, files

    for stage in JUDGED:
        done = cli.stage(args, stage)
        if not (done.folder / "completions.jsonl").is_file():
            continue
        rows = files.read_jsonl(done.artefact("completions.jsonl"))
        about = files.read_json(done.folder / "manifest.json")
        about |= {"stage": stage, "version": about["packages"]["refusal_nn"]}
        yield f"{stage}.parquet", lambda path, rows=rows: exports.write_parquet(path, rows)
        yield (
            f"{stage}.eval",
            lambda path, rows=rows, about=about: exports.write_inspect(path, rows, about),
        )


def main() -> None:
    compute(cli.parser(NAME, __doc__).parse_args())


if __name__ == "__main__":
    cli.run(main)
