"""How a report's numbers came about: finished stages, the command that makes them, what differs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import causes, cli
from experiments.cells import Row, Rows, read_rows
from refusal_nn.errors import CorruptArtefact, InputError
from refusal_nn.files import read_json
from refusal_nn.runs import Stage

# What a page is made of, in the order in which the stages run.
STAGES = ("capture", "validate", "similarity", "select", "baseline", "sweep", "causal")
STAGES += ("behaviour", "subspace")
# Settings that are a variable of make, under the same name.
VARIABLES = ("n", "seed", "dtype", "device", "backend", "prompts", "positions", "system")
VARIABLES += ("permutations", "val", "tokens", "alpha", "layers", "controls", "max_rank", "against")
VARIABLES += ("refusal_words", "judge", "keep_text")
# What is measured, of which, by whom: stages that differ in these do not speak of one thing.
SUBJECT = ("model_file", "prompts_sha256", "n", "seed", "dtype", "backend", "prompts", "system")
SUBJECT += ("positions", "tokens", "refusal_words", "judge")
# Make's defaults of what other parsers have no option for, or write otherwise in settings.
DEFAULTS = {"permutations": 1000, "prompts": "bundled", "alpha": [1.0]}


@dataclass(frozen=True)
class Finished:
    """A finished stage: its folder, its summary and its manifest."""

    folder: Path
    about: Row
    manifest: Row

    def rows(self, name: str) -> Rows:
        """A table of it, empty if it wrote none."""
        path = self.folder / f"{name}.csv"
        return read_rows(path) if path.is_file() else []

    def json(self, name: str) -> Row:
        return read_json(self.folder / f"{name}.json")


def finished(folder: Path, model: str | None = None) -> Finished | None:
    """The stage in a folder, every file checked; None if it is not finished, or corrupt, or of
    another model, which is said."""
    done = Stage(folder)
    if not done.summary.is_file():
        return None
    try:
        done.verify()
        if model:
            cli.require_model(model, done)
    except (CorruptArtefact, InputError) as fault:
        print(f"{fault} The page goes without it.", file=sys.stderr)
        return None
    return Finished(folder, read_json(done.summary), read_json(folder / "manifest.json"))


def settings(stages: Mapping[str, Finished]) -> dict[str, object]:
    """What was asked for; of settings that stages disagree on, the last stage's."""
    return {k: v for done in stages.values() for k, v in done.manifest["settings"].items()}


def conflicts(
    stages: Mapping[str, Finished], names: Sequence[str] = (*SUBJECT[:2], *VARIABLES)
) -> list[str]:
    """In words, the settings of these names that differ between stages."""
    said = []
    for name in names:
        of: dict[str, list[str]] = {}
        for stage, done in stages.items():
            if name in done.manifest["settings"]:
                of.setdefault(_text(done.manifest["settings"][name]), []).append(stage)
        if len(of) > 1:
            each = "; ".join(f"{value or 'none'} in {', '.join(who)}" for value, who in of.items())
            said.append(f"{name} differs between stages: {each}")
    return said


def command(target: str, args: argparse.Namespace, asked: Mapping[str, object]) -> str:
    """The line that makes a target with these settings; what is default goes without saying."""
    usual = vars(causes.parser("report", "").parse_args([])) | DEFAULTS
    name, value = ("MODELS", args.models) if hasattr(args, "models") else ("MODEL", args.model)
    given = {name: value} if value else {}
    for name in VARIABLES:
        if name in asked and _text(asked[name]) != _text(usual[name]):
            given[name.upper()] = _text(asked[name])
    if args.results != Path("results"):
        given["RESULTS"] = str(args.results)
    return " ".join(["make", target, *(f"{k}={shlex.quote(v)}" for k, v in given.items())])


def _text(value: object) -> str:
    """A setting as make is given it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return "1" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m experiments.report", allow_abbrev=False)
    p.error = cli.refuse
    p.add_argument("--model", default="smollm2", help="whose results (default: smollm2)")
    p.add_argument("--results", type=Path, default=Path("results"), help="root of the results")
    p.add_argument("--figures", type=Path, default=Path("figures"), help="root of the figures")
    return p
