"""A finished model's direction, judged samples and tables in the formats of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from experiments import cli
from refusal_nn.errors import CorruptArtefact, InputError

NAME = "export"
DIRECTIONS = "directions.safetensors"
JUDGED = ("baseline", "sweep", "causal", "subspace")
OF_DIRECTION = ("steered.pt", "transformer_lens.json", "steering_vector.safetensors")
OF_ROWS = {stage: (f"{stage}.parquet", f"{stage}.eval") for stage in JUDGED}
# Why a file is left out; all else ends the export.
EXPECTED = (InputError, CorruptArtefact)
Writers = dict[str, Callable[[Path], None]]


def compute(args: argparse.Namespace) -> None:
    """Every export that the finished stages allow; the others are named with the reason, and
    removed where an earlier export left them."""
    from experiments import console

    folder = args.results / cli.safe_name(args.model) / NAME
    written: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, write in _exports(args):
        try:
            write(folder / name)
            written.append(name)
        except EXPECTED as reason:
            left_out.setdefault(str(reason), []).append(name)
    said = [f"{', '.join(names)} left out: {reason}" for reason, names in left_out.items()]
    removed = _removed(folder, written)
    if removed:
        said.append(f"removed, for an earlier export made them: {', '.join(removed)}")
    if not written:
        raise InputError(f"nothing to export of {args.model}; {'; '.join(said)}")
    console.say(*said, f"wrote {folder} ({', '.join(written)})")


def _exports(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Every file with what writes it, or with what raises why it cannot be written."""
    prepared = {OF_DIRECTION: _of_direction}
    prepared |= {names: partial(_of_rows, stage) for stage, names in OF_ROWS.items()}
    for names, prepare in prepared.items():
        try:
            writers = prepare(args)
        except EXPECTED as reason:
            writers = dict.fromkeys(names, partial(_refuse, reason))
        yield from writers.items()


def _refuse(reason: Exception, path: Path) -> None:
    raise reason


def _removed(folder: Path, written: list[str]) -> list[str]:
    """Files of ours that were not written this time, removed: they are of other results."""
    ours = [*OF_DIRECTION, *(name for names in OF_ROWS.values() for name in names)]
    stale = [name for name in ours if name not in written and (folder / name).is_file()]
    for name in stale:
        (folder / name).unlink()
    return stale


def _of_direction(args: argparse.Namespace) -> Writers:
    """The sweep's best direction, which the verdict is about; before a sweep, select's choice.
    Raises InputError where there is none, CorruptArtefact."""
    from experiments import console
    from refusal_nn import exports
    from refusal_nn.saved_directions import load_direction

    done, swept = (cli.stage(args, name) for name in ("select", "sweep"))
    about = done.about()
    best = swept.about().get("best") if swept.summary.exists() else None
    if best and not _of_one_run(done.settings(), swept.settings()):
        raise InputError(f"{swept.folder} is not of the select beside it; run `make sweep` again")
    if not swept.summary.exists():
        console.say("the direction is select's choice: there is no finished sweep")
    place = best or about["chosen"]
    if place is None:
        raise InputError("select chose no direction, and there is no sweep with a best one")
    if best and best["alpha"] != 1:
        console.say(
            f"the verdict is about ablation of strength {best['alpha']:g}; the files below say "
            "full ablation (1) of the same direction"
        )
    path = done.artefact(DIRECTIONS)
    direction = load_direction(path, layer=place["layer"], pos=place["pos"])
    writers = (
        partial(exports.write_steered, direction=direction),
        partial(exports.write_transformer_lens, direction=direction, n_layers=about["n_layers"]),
        partial(exports.write_layers, direction=direction),
    )
    return dict(zip(OF_DIRECTION, writers, strict=True))


def _of_one_run(select: Mapping[str, object], sweep: Mapping[str, object]) -> bool:
    """Whether a sweep's best direction lies in the file that select wrote."""
    return all(select[name] == sweep[name] for name in select.keys() & sweep.keys())


def _of_rows(stage: str, args: argparse.Namespace) -> Writers:
    """Judged completions; nothing of a stage that has made none. Raises InputError for one that is
    not finished, CorruptArtefact."""
    from refusal_nn import exports, files

    done = cli.stage(args, stage)
    if not (done.folder / "completions.jsonl").is_file():
        return {}
    rows = files.read_jsonl(done.artefact("completions.jsonl"))
    about = files.read_json(done.folder / "manifest.json")
    about |= {"stage": stage, "version": about["packages"]["refusal_nn"]}
    writers = (
        partial(exports.write_parquet, rows=rows),
        partial(exports.write_inspect, rows=rows, about=about),
    )
    return dict(zip(OF_ROWS[stage], writers, strict=True))


def main() -> None:
    compute(cli.parser(NAME, __doc__).parse_args())


if __name__ == "__main__":
    cli.run(main)
