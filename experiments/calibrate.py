"""Does the instrument tell the truth? Every causal stage on planted models of known rank, and what
it said of them beside what is required; organisms' verdicts too, where there are any."""

from __future__ import annotations

import argparse
import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from experiments import causes, cli, subspace

NAME = "calibrate"
RANKS = (0, 1, 2, 4, 12)
# The chain that judged a model: what an earlier one judged is not counted in. To be raised with
# every change of a stage that may change what is found.
CHAIN = 2
# What a planted model needs: its longest refusal has 10 tokens, and no rank planted here but the
# last is above 5. The prompts must stay as many as of a real model: intervals depend on them.
ECONOMY = {"tokens": 12, "val": 16, "controls": 2, "max_rank": 5, "dtype": "float32"}
ECONOMY |= {"device": "cpu"}
# Whose times add up to the whole chain's: what another one computed first is within its own time.
TIMED = ("select", "baseline", "sweep", "subspace")
TABLES = ("calibration", "confusion", "summary", "angles")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m experiments.{NAME}", description=__doc__, allow_abbrev=False
    )
    p.error = cli.refuse
    p.add_argument(
        "--ranks", type=_ranks, default=RANKS, help="planted ranks (default: 0,1,2,4,12)"
    )
    p.add_argument(
        "--seeds", type=cli.at_least(1), default=50, help="models of each rank (default: 50)"
    )
    p.add_argument("--n", type=cli.at_least(4), default=320, help="prompts per class (320)")
    p.add_argument("--results", type=Path, default=Path("results"), help="root of the results")
    p.add_argument("--figures", type=Path, default=Path("figures"), help="root of the figures")
    p.add_argument("--settings-only", action="store_true", help="only record the settings")
    cli.finished_options(p)
    return p


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(cli.at_least(0)(part) for part in text.split(",")))


def settings(args: argparse.Namespace) -> cli.Settings:
    return {"ranks": list(args.ranks), "seeds": args.seeds, "n": args.n, "chain": CHAIN, **ECONOMY}


def compute(args: argparse.Namespace) -> None:
    """Run what is missing, then the tables of all that was asked for."""
    from experiments import console
    from refusal_nn import calibration, files

    rows = [*_analytic(args), *_organisms(args)]
    with _stage(args).run(settings(args)) as run:
        rates = list(calibration.summary(rows))
        found = (rows, list(calibration.confusion(rows)), rates, list(calibration.angles(rows)))
        for name, table in zip(TABLES, found, strict=True):
            if table:
                files.write_csv(run.folder / f"{name}.csv", table)
        missed = calibration.missed(rates)
        run.finish({"models": len(rows), "missed": missed}, {})
    console.say(f"wrote {run.folder} ({len(rows)} models, {len(missed)} bars missed)")


def _stage(args: argparse.Namespace) -> object:
    from refusal_nn.runs import Stage

    return Stage(args.results / NAME)


def _analytic(args: argparse.Namespace) -> Iterator[causes.Row]:
    """A row per planted model. Seed by seed, so that a run cut short has all ranks."""
    from experiments import console
    from refusal_nn import calibration, files

    models = [(k, seed) for seed in range(args.seeds) for k in args.ranks]
    begun, ran = time.perf_counter(), 0
    for i, (k, seed) in enumerate(models):
        own = _options(args, k, seed)
        ran += (fresh := _computed(own, args.n, seed))
        folder = cli.stage(own, subspace.NAME).folder
        verdict = files.read_json(cli.stage(own, subspace.NAME).artefact("verdict.json"))
        row = calibration.row(calibration.ANALYTIC, planted(k), seed, verdict, _seconds(folder))
        console.say(f"{own.model}: {row['single']}, {row['label']} ({row['seconds']:.0f} s)")
        left = len(models) - i - 1
        if left and fresh and ran == len(args.ranks):
            each = (time.perf_counter() - begun) / ran
            console.say(f"{NAME}: about {each * left / 60:.0f} minutes more")
        yield row


def planted(k: int) -> str:
    """A planted rank as the tables have it."""
    from refusal_nn import calibration

    return str(k) if k <= ECONOMY["max_rank"] else calibration.MANY


def _options(args: argparse.Namespace, k: int, seed: int) -> argparse.Namespace:
    """The subspace experiment's own options, all but a few at their defaults."""
    model, root = f"planted-{k}-{seed}", args.results / NAME / f"chain-{CHAIN}"
    asked = ECONOMY | {"model": model, "n": args.n, "results": root, "figures": args.figures}
    asked |= {"prompts": root / model / "prompts.csv"}
    words = [word for name, x in asked.items() for word in (_option(name), str(x))]
    return causes.parser(subspace.NAME, subspace.__doc__).parse_args(words)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _computed(own: argparse.Namespace, n: int, seed: int) -> bool:
    """Whether the chain had to be run for this model."""
    from refusal_nn.planted import write_prompts

    path = Path(own.prompts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prompts(path, n, seed)
    done = cli.stage(own, subspace.NAME)
    if done.is_current(subspace.settings(own)):
        return False
    with _quiet():
        subspace.compute(own)
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from experiments.console import console

    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False


def _seconds(folder: Path) -> float:
    from refusal_nn.files import read_json

    found = [folder.with_name(name) / "manifest.json" for name in TIMED]
    return sum(read_json(path)["wall_seconds"] for path in found if path.exists())


def _organisms(args: argparse.Namespace) -> Iterator[causes.Row]:
    """A row per organism whose subspace stage is finished; none is computed here."""
    from refusal_nn import calibration, files
    from refusal_nn.runs import Stage

    for summary in sorted(args.results.glob(f"organism-*/{subspace.NAME}/summary.json")):
        done = Stage(summary.parent)
        name = re.fullmatch(r"organism-(\d+|many)(?:-(\d+))?", summary.parent.parent.name)
        if name:
            verdict = files.read_json(done.artefact("verdict.json"))
            about = (calibration.ORGANISM, name[1], int(name[2] or 0))
            yield calibration.row(*about, verdict, _seconds(summary.parent))


def draw(args: argparse.Namespace) -> None:
    """Planted rank by reported one, and the rates beside what is required."""
    from refusal_nn import figures, files, subspace_figures

    done, folder = _stage(args), args.figures / NAME
    drawn = {
        "confusion": (subspace_figures.confusion, "confusion"),
        "calibration": (subspace_figures.calibration_rates, "summary"),
    }
    for name, (draws, table) in drawn.items():
        rows = files.read_csv(done.artefact(f"{table}.csv"))
        figures.save(draws(rows), folder / f"{name}.png")
    files.write_json(folder / f"{NAME}.json", {"from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    """The tables, the median angles, and what is not as required."""
    from experiments import console, printed_subspace
    from refusal_nn import files
    from refusal_nn.estimates import Estimate

    done = _stage(args)
    done.require_finished()
    done.verify()
    path, names = done.folder / "angles.csv", ("kind", "planted", "quantity")
    rows = files.read_csv(path) if path.exists() else []
    if rows:
        cells = [
            (*(r[k] for k in names), Estimate(*(r[k] for k in ("value", "low", "high", "n"))))
            for r in rows
        ]
        console.table("angles", (*names, "median, degrees [95 %]"), cells)
    for line in files.read_json(done.summary)["missed"]:
        console.say(f"not as required: {line}")
    printed_subspace.show_calibration(done.folder, args.figures / NAME)


def main() -> None:
    args = parser().parse_args()
    if args.settings_only:
        return _stage(args).request(settings(args))
    (draw if args.draw else show if args.show else compute)(args)


if __name__ == "__main__":
    cli.run(main)
