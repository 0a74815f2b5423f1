"""A finished model's direction, judged samples and tables in the formats of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from experiments import cli
from refusal_nn.errors import InputError

NAME = "export"
DIRECTIONS = "directions.safetensors"
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
    """The sweep's best direction, which the verdict is about; before a sweep, select's choice."""
    from experiments import console
    from refusal_nn import exports
    from refusal_nn.saved_directions import load_direction

    done, swept = (cli.stage(args, name) for name in ("select", "sweep"))
    if not done.summary.exists():
        return console.say("no direction: `make select` has not run")
    about = done.about()
    best = swept.about().get("best") if swept.summary.exists() else None
    if best and not _of_one_run(done.settings(), swept.settings()):
        return console.say(
            f"no direction: {swept.folder} is not of the select beside it; run `make sweep` again"
        )
    if best and best["alpha"] != 1:
        console.say(
            f"the verdict is about ablation of strength {best['alpha']:g}; the files below say "
            "full ablation (1) of the same direction"
        )
    place = best or about["chosen"]
    if place is None:
        return console.say("no direction: select chose none, and there is no sweep with a best one")
    path = done.artefact(DIRECTIONS)
    direction = load_direction(path, layer=place["layer"], pos=place["pos"])
    yield "steered.pt", lambda path: exports.write_steered(path, direction)
    yield (
        "transformer_lens.json",
        lambda path: exports.write_transformer_lens(path, direction, about["n_layers"]),
    )
    yield "steering_vector.safetensors", lambda path: exports.write_layers(path, direction)


def _of_one_run(select: Mapping[str, object], sweep: Mapping[str, object]) -> bool:
    """Whether a sweep's best direction lies in the file that select wrote."""
    return all(select[name] == sweep[name] for name in select.keys() & sweep.keys())


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
