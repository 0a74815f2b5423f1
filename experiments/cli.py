"""What the experiments share: options, settings, result folders, errors as one line and an exit
code. No heavy import."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from experiments.ending import run as run
from refusal_nn import prompts
from refusal_nn.errors import CorruptArtefact, InputError
from refusal_nn.names import adapter_file, is_file, is_folder, safe_name, user_path
from refusal_nn.plain_text import visible
from refusal_nn.prompt_files import HUB_SETS
from refusal_nn.runs import Stage

Settings = dict[str, object]
Step = Callable[[argparse.Namespace], None]


def parser(stage: str, description: str) -> argparse.ArgumentParser:
    """The options of every experiment; `make NAME=value` passes each of them."""
    p = argparse.ArgumentParser(
        prog=f"python -m experiments.{stage}", description=description, allow_abbrev=False
    )
    p.error = refuse
    # argparse takes -1 for a value but -1,-2 for an option.
    p._negative_number_matcher = re.compile(r"-\d+(,-\d+)*$")
    for name, options in _options().items():
        p.add_argument(f"--{name}", **options)
    p.add_argument("--settings-only", action="store_true", help="only record the settings")
    return p


def _options() -> dict[str, dict[str, object]]:
    """Name, default, and what it may be; the help says the default."""
    dtypes = ("auto", "float32", "bfloat16", "float16")
    return {
        "model": _option("smollm2", "alias, Hub id, local folder, .gguf file or tiny-<family>"),
        "n": _option(320, "prompts per class before splitting into fit, val, test", at_least(4)),
        "seed": _option(0, "seed of every draw", at_least(0)),
        "dtype": _option("auto", "compute precision") | {"choices": dtypes},
        "device": _option("auto", "auto, cuda, cuda:1, mps or cpu"),
        "backend": _option("local", "local, ndif (a server), or simulate (packed as for one)")
        | {"choices": ("local", "ndif", "simulate")},
        "deadline": _option(
            60.0, "minutes from its start that a stage waits for a server", in_range(0.01, 1e5)
        ),
        "insecure-host": _flag("take results from a host that is neither https nor this machine"),
        "version-mismatch": _flag("go on although the server has other versions"),
        "prompts": _option(
            "",
            "one file with a label column, or harmful=FILE,harmless=FILE, or one of "
            f"{', '.join(HUB_SETS)}; without: the bundled matched pairs",
        ),
        "positions": _option(
            "-1",
            "token positions from the end as -1,-2; or all post-instruction ones: all",
            _positions,
        ),
        "system": _option("default", "system prompt: default (the template's), none, or a text"),
        "results": _option(Path("results"), "root of the results", Path),
        "figures": _option(Path("figures"), "root of the figures", Path),
    }


def _option(default: object, words: str, kind: Callable[[str], object] = str) -> dict[str, object]:
    said = f" (default: {default})" if default != "" else ""
    return {"default": default, "type": kind, "help": words + said}


def _flag(words: str) -> dict[str, object]:
    return {"action": "store_true", "help": words}


def finished_options(p: argparse.ArgumentParser) -> None:
    """What can be done with a finished stage alone."""
    p.add_argument("--draw", action="store_true", help="only draw the finished stage's figures")
    p.add_argument("--show", action="store_true", help="only print the finished stage's tables")


def dispatch(args: argparse.Namespace, name: str, settings: Settings, **steps: Step) -> None:
    """Record the settings, or take the one step asked for: draw, show, else compute."""
    if args.settings_only:
        if stage(args, name).request(settings):
            (figures_folder(args) / f"{name}.json").unlink(missing_ok=True)
    else:
        steps["draw" if args.draw else "show" if args.show else "compute"](args)


def refuse(message: str) -> NoReturn:
    """What a parser does with a wrong option."""
    raise InputError(f"{message}; --help lists the options")


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, got {text!r}"
            )
        return int(text)

    return number


def in_range(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, got {text!r}")
        return value

    return number


def _positions(text: str) -> str:
    """Canonical text of the positions; they become numbers once the template is known."""
    try:
        ok = text == "all" or all(-1000 < int(part) < 0 for part in text.split(","))
    except ValueError:
        ok = False
    if not ok:
        raise argparse.ArgumentTypeError(
            f"must be negative numbers as -1,-2 or the word all, got {text!r}"
        )
    return (
        text
        if text == "all"
        else ",".join(dict.fromkeys(str(int(part)) for part in text.split(",")))
    )


def capture_settings(args: argparse.Namespace) -> Settings:
    """All that decides the activations: a change of any of these makes capture run again."""
    return {
        "model": args.model,
        "model_file": model_file(args.model),
        "n": args.n,
        "seed": args.seed,
        "dtype": args.dtype,
        "device": args.device,
        "backend": args.backend,
        "host": os.environ.get("NDIF_HOST") if args.backend == "ndif" else None,
        "prompts": args.prompts or "bundled",
        "prompts_sha256": _prompt_hashes(args.prompts),
        "positions": args.positions,
        "system": args.system,
    }


def model_file(model: str) -> list[int] | None:
    """Size and time of a local model's files, template and tokenizer among them, so that others of
    the same name are noticed."""
    path = adapter_file(model) or user_path(model)
    whole = is_folder(path) and is_file(path / "config.json")
    files = sorted(f for f in path.iterdir() if f.is_file()) if whole else [path] * is_file(path)
    return [n for f in files for n in (f.stat().st_size, f.stat().st_mtime_ns)] or None


def _prompt_hashes(spec: str) -> list[str]:
    hashes = []
    for part in (spec or str(prompts.BUNDLED)).split(","):
        name = part.strip().rpartition("=")[2]
        path = user_path(name)
        if is_file(path):
            hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
        elif name in HUB_SETS:
            hashes += [commit for _, commit, _, _ in HUB_SETS[name]]
        else:
            raise InputError(f"PROMPTS={spec}: {name} is no file and none of {', '.join(HUB_SETS)}")
    return hashes


def stage(args: argparse.Namespace, name: str) -> Stage:
    return Stage(args.results / safe_name(args.model) / name)


def finished(args: argparse.Namespace, name: str) -> Path:
    """Folder of a finished stage, every file checked. Raises InputError, CorruptArtefact."""
    done = stage(args, name)
    done.verify()
    require_model(args.model, done)
    return done.folder


def require_model(model: str, done: Stage) -> None:
    """Raises InputError where a finished stage is of another model than its folder's."""
    theirs = done.settings().get("model", model)
    if theirs != model:
        raise InputError(
            f"{done.folder} holds results of {theirs}, not of {model}: remove it, then run `make "
            f"{done.folder.name}`"
        )


def figures_folder(args: argparse.Namespace) -> Path:
    return args.figures / safe_name(args.model)


def up_to_date(
    args: argparse.Namespace,
    name: str,
    settings: Settings,
    compute: Callable[[argparse.Namespace], None],
) -> Stage:
    """The finished stage of these settings, computed first if it is missing, of other settings, or
    corrupt."""
    found = stage(args, name)
    if found.is_current(settings):
        try:
            found.verify()
        except CorruptArtefact as fault:
            print(visible(f"{fault} Recomputing."), file=sys.stderr)
    if not found.is_current(settings):
        compute(args)
    return found
