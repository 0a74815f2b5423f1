"""What the causal experiments share: options, the model, its prompts, rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from experiments import cli
from refusal_nn.errors import InputError
from refusal_nn.names import safe_name

if TYPE_CHECKING:
    from pathlib import Path

    from refusal_nn.models import TracedModel
    from refusal_nn.ndif import Remote
    from refusal_nn.prompts import Prompt
    from refusal_nn.rollouts import Rollout
    from refusal_nn.runs import Stage

Row = dict[str, object]
ORIGIN = ("model", "revision", "dtype", "device", "backend", "seed")
ORIGIN += ("template_sha256", "system_prompt")


def options(p: argparse.ArgumentParser) -> None:
    """Options of every causal stage, so that one make line can pass them all."""
    count = cli.at_least(1)
    p.add_argument("--val", type=count, default=32, help="val prompts per class (default: 32)")
    p.add_argument("--tokens", type=count, default=100, help="new tokens (default: 100)")
    p.add_argument("--alpha", type=_alphas, default=(1.0,), help="strengths as 1 or .75,1,1.25")
    p.add_argument(
        "--layers", type=_layers, default="", help="as 9,15,18 or 8-20 (default: stage's)"
    )
    p.add_argument("--controls", type=count, default=20, help="random directions (default: 20)")
    p.add_argument("--max-rank", type=count, default=8, help="ranks looked at (default: 8)")
    p.add_argument("--against", default="", help="bases or directions to take angles with")
    p.add_argument(
        "--judge", default="", help="a judge model beside the rules: Hub id, folder, .gguf"
    )
    p.add_argument("--refusal-words", default="", help="first words of refusals, as I,Sorry")
    p.add_argument("--keep-text", action="store_true", help="keep completions, for your eyes only")


def _alphas(text: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(cli.in_range(0, 4)(part) for part in text.split(",")))


def _layers(text: str) -> str:
    for part in text.split(",") if text else []:
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise argparse.ArgumentTypeError(f"must be as 9,15,18 or 8-20, got {text!r}")
    return text


def layers(text: str, model: TracedModel) -> list[int]:
    """Layers named on the command line, none for none. Raises InputError for those that the model
    lacks."""
    chosen: set[int] = set()
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        if int(last or first) >= model.n_layers:
            raise InputError(f"LAYERS={text}: {model.name} has layers 0 to {model.n_layers - 1}")
        chosen |= set(range(int(first), int(last or first) + 1))
    return sorted(chosen)


def settings(args: argparse.Namespace, *names: str) -> cli.Settings:
    """What decides a stage's rows: the prompts and the model, and its own options."""
    own = {name: getattr(args, name) for name in names}
    # As it will be read back from the manifest.
    return cli.capture_settings(args) | {
        k: list(v) if isinstance(v, tuple) else v for k, v in own.items()
    }


# The one model that this process holds, and its copy for completions: a stage and those it computes
# first share them.
_loaded: dict[str, TracedModel] = {}
TEXT = "text"


def load(args: argparse.Namespace) -> TracedModel:
    """The model as directions are fitted to it."""
    from experiments import console
    from refusal_nn.loading import load

    chosen = (args.dtype, args.device, args.backend, args.system)
    name = repr((args.model, cli.model_file(args.model), *chosen))
    if name not in _loaded:
        console.say(f"loading {args.model}")
        _loaded.clear()  # first, so that no two models fill the memory
        _loaded[name] = load(
            args.model,
            dtype=args.dtype,
            device=args.device,
            system=args.system,
            remote=remote(args),
            say=console.say,
        )
        for line in _loaded[name].notes:
            console.say(line)
    return _loaded[name]


def load_for_text(args: argparse.Namespace) -> TracedModel:
    """The model as completions and scores are asked of it: with DTYPE=auto in what is enough for
    them."""
    from experiments import console
    from refusal_nn.precision import for_text

    model = load(args)
    if args.dtype != "auto":
        return model
    if TEXT not in _loaded:
        _loaded[TEXT] = for_text(model)
        for line in _loaded[TEXT].notes if _loaded[TEXT] is not model else ():
            console.say(line)
    return _loaded[TEXT]


def remote(args: argparse.Namespace) -> Remote | str | None:
    """The server that BACKEND asks for."""
    if args.backend != "ndif":
        return None if args.backend == "local" else args.backend
    from refusal_nn.ndif import Remote

    folder = args.results / safe_name(args.model) / "jobs"
    return Remote(folder, args.deadline, args.insecure_host, args.version_mismatch)


def words(args: argparse.Namespace) -> list[str]:
    return [word.strip() for word in args.refusal_words.split(",") if word.strip()]


def parts(args: argparse.Namespace) -> dict[str, list[Prompt]]:
    """fit, val and test as capture split them."""
    from refusal_nn import prompts, splits

    return splits.split(prompts.load_prompts(args.prompts or None), args.n, args.seed)


def of_class(prompts: Sequence[Prompt], label: str) -> list[Prompt]:
    return [p for p in prompts if p.label == label]


def write_rows(folder: Path, rows: Sequence[Mapping[str, object]], rollout: Rollout) -> None:
    """completions.jsonl without any text; what --keep-text asked for goes to a file of its own."""
    import json

    from refusal_nn.files import write_private, write_text
    from refusal_nn.runs import KEPT

    private = ("text", "evidence")
    public = [{k: v for k, v in row.items() if k not in private} for row in rows]
    write_text(folder / "completions.jsonl", "".join(json.dumps(row) + "\n" for row in public))
    (folder / KEPT).unlink(missing_ok=True)
    if rollout.keep_text:
        names = ("arm", "id", "label", *private)
        kept = "".join(json.dumps({k: row[k] for k in names}) + "\n" for row in rows)
        write_private(folder / KEPT, kept)


def scary() -> list[Prompt]:
    """Safe prompts that sound dangerous: does ablation, or the model itself, take them for
    harmful?"""
    from refusal_nn import prompts

    return prompts.read_class(prompts.SCARY, "harmless")


def scary_hash() -> str:
    from refusal_nn import prompts
    from refusal_nn.files import sha256

    return sha256(prompts.SCARY)


def validated(args: argparse.Namespace) -> Stage:
    """The finished validate stage of this very capture. Raises InputError."""
    done = cli.stage(args, "validate")
    done.require_finished()
    theirs, ours = done.settings(), cli.capture_settings(args)
    if {k: theirs.get(k) for k in ours} != ours:
        raise InputError(f"{done.folder} is of other settings; run `make validate` with these")
    return done


# A prompt meets so many of the random directions: the mean over all of them at a fraction of the
# completions.
TURNS = 4


def in_rotation(
    prompts: Sequence[Prompt], names: Sequence[str], turns: int
) -> dict[str, list[Prompt]]:
    """Which prompts each named arm is asked: every prompt meets `turns` of them, in turn."""
    asked: dict[str, list[Prompt]] = {name: [] for name in names}
    for i, prompt in enumerate(prompts):
        for turn in range(min(turns, len(names))):
            asked[names[(i * turns + turn) % len(names)]].append(prompt)
    return asked


def first_position(args: argparse.Namespace) -> int:
    """The position whose directions layers are compared by: the first of POSITIONS."""
    return -1 if args.positions == "all" else int(args.positions.split(",")[0])


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """All options of a causal experiment."""
    p = cli.parser(name, description)
    options(p)
    cli.finished_options(p)
    return p


def main(
    name: str, description: str, settings: Callable[[argparse.Namespace], Row], **steps: cli.Step
) -> Callable[[], None]:
    """An experiment's main function: the causal options, and one of its steps."""

    def run() -> None:
        args = parser(name, description).parse_args()
        cli.dispatch(args, name, settings(args), **steps)

    return run
