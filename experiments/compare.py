"""Is one direction enough across models? Finished runs beside the published figures, and whether
models fall into two modes. `make compare MODELS="a b"` builds what is missing first."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import causes, cli, report_origin, similarity, subspace, sweep
from refusal_nn.errors import Incomplete, InputError, RefusalNNError
from refusal_nn.names import adapter_file, is_file, is_folder, safe_name, user_path

if TYPE_CHECKING:
    from refusal_nn.comparison import Measured
    from refusal_nn.runs import Stage

NAME = "compare"
STAGES = (similarity, sweep, subspace)
LOG = "chain.log"  # what make wrote to stderr while it built a model's stages
# As make says of a recipe that failed; what it then deletes is no reason.
ENDED = re.compile(r"make\S*: \*\*\* (?!Deleting file)(?:\[(?:\S+:\d+: )?(.*)\] )?(.+)")
KILLED = ("Killed", "Error 137")
PICTURES = ("compare.png", "heatmaps.png")


def settings(args: argparse.Namespace) -> cli.Settings:
    own = vars(args).items()
    left_out = ("model", "models", "figures", "results", "settings_only", "draw", "show")
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in own if k not in left_out}
    return {"models": _models(args), **plain}


def compute(args: argparse.Namespace) -> None:
    """The table, the page and the cosines, from what is finished."""
    from refusal_nn import compare_page, comparison, files
    from refusal_nn.comparison import OURS
    from refusal_nn.published_rates import CROSS_MODEL
    from refusal_nn.verdicts import YES

    models = [_measured(args, name) for name in _models(args)]
    rows = comparison.table(models)
    ours, theirs = (comparison.found_modes(rows, source) for source in (OURS, CROSS_MODEL))
    yes = {row["model"] for row in rows if row["source"] == OURS and row["verdict"] == YES}
    said = [
        comparison.statement(ours, "This run", yes),
        comparison.statement(theirs, f"As published ({CROSS_MODEL})"),
    ]
    with _stage(args).run(settings(args)) as run:
        files.write_csv(run.folder / "compare.csv", rows)
        files.write_text(run.folder / "compare.md", compare_page.page(rows, said, _command(args)))
        cosines = comparison.at_equal_depth(models)
        nan_free = {k: [[None if x != x else x for x in r] for r in c] for k, c in cosines.items()}
        files.write_json(run.folder / "cosines.json", nan_free)
        summary = {"models": _models(args), "statements": said}
        summary |= {"modes": {OURS: ours._asdict(), CROSS_MODEL: theirs._asdict()}}
        run.finish(summary, {})


def _command(args: argparse.Namespace) -> str:
    """The line that makes this comparison, with every setting that is not the usual one."""
    usual = vars(causes.parser(NAME, "").parse_args([]))
    asked = {name: value for name, value in vars(args).items() if value != usual.get(name)}
    return report_origin.command(NAME, args, asked)


def _models(args: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(args.models.split()))


def _require_distinct(names: Sequence[str]) -> None:
    """Raises InputError where two names mean the same weights, which would count twice."""
    from refusal_nn.models import spec_of

    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(_weights(spec_of(name).repo), name)
        if first != name:
            raise InputError(f"MODELS: {first} and {name} are the same model; leave one out")


def _weights(hub_id: str) -> str:
    """What tells weights apart: the place of a file or folder, else a Hub id in any letters."""
    path = user_path(hub_id)
    # An organism that is not bundled fails in its chain, and is a line.
    with contextlib.suppress(InputError):
        path = adapter_file(hub_id) or path
    return str(path.resolve()) if is_file(path) or is_folder(path) else hub_id.lower()


def _stage(args: argparse.Namespace) -> Stage:
    from refusal_nn.runs import Stage

    return Stage(args.results / NAME)


def _measured(args: argparse.Namespace, name: str) -> Measured:
    """A model's finished stages of these settings, or why there are none."""
    from refusal_nn import files
    from refusal_nn.comparison import Measured, full_cosine
    from refusal_nn.models import spec_of

    hub_id = spec_of(name).repo
    one = argparse.Namespace(**vars(args) | {"model": name})
    try:
        done = {stage.NAME: cli.stage(one, stage.NAME) for stage in STAGES}
        for stage in STAGES:
            if not done[stage.NAME].is_current(stage.settings(one)):
                return Measured(name, hub_id, failed=_why(args.results / safe_name(name), name))
            done[stage.NAME].verify()
    except RefusalNNError as error:
        return Measured(name, hub_id, failed=str(error))
    about = {stage: files.read_json(of.summary) for stage, of in done.items()}
    n_layers = len(about[similarity.NAME]["split_half_cosine"])
    cosine = full_cosine(files.read_csv(done[similarity.NAME].artefact("cosine.csv")), n_layers)
    return Measured(name, hub_id, "", about[sweep.NAME], about[subspace.NAME], cosine)


def _why(folder: Path, name: str) -> str:
    """The error of the chain that make ran last, else how it ended, else what to run."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ends = [(i, found) for i, line in enumerate(lines) if (found := ENDED.match(line))]
    if errors or not ends:
        return [f'no finished run of these settings: make compare MODELS="{name}"', *errors][-1]
    last, (made, how) = ends[-1][0], ends[-1][1].groups()
    where = f"{how} while it made {made}" if made else how
    if how.startswith(KILLED):
        return f"{where}; memory may have run out"
    # A fault of this program ends in a traceback, whose last line names it.
    said = [x for x in lines[:last] if x.strip() and not x.startswith("make")]
    return f"{where}, after: {said[-1]}" if said else where


def draw(args: argparse.Namespace) -> None:
    """Rates by model and source; cosines at equal relative depth."""
    import numpy as np

    from refusal_nn import compare_figures, figures, files

    done, folder = _stage(args), args.figures / NAME
    rows = files.read_csv(done.artefact("compare.csv"))
    rates, heatmaps = (folder / name for name in PICTURES)
    figures.save(compare_figures.rates(rows), rates)
    cosines = files.read_json(done.artefact("cosines.json"))
    arrays = {name: np.array(cosine, dtype=float) for name, cosine in cosines.items()}
    if arrays:
        figures.save(compare_figures.heatmaps(arrays), heatmaps)
    else:  # of an earlier comparison
        for suffix in (".png", ".svg"):
            heatmaps.with_suffix(suffix).unlink(missing_ok=True)
    files.write_json(folder / f"{NAME}.json", {"from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    from experiments import console
    from refusal_nn import compare_page, files
    from refusal_nn.comparison import FAILED

    done = _stage(args)
    done.require_finished()
    rows = files.read_csv(done.artefact("compare.csv"))
    cells = [compare_page.line(row) for row in rows]
    console.table("refusal across models", compare_page.HEAD, [cell[:-1] for cell in cells])
    failed = [row for row in rows if row["verdict"] == FAILED]
    for row in failed:
        console.say(f"{row['model']} failed: {row['notes']}")
    for line in files.read_json(done.summary)["statements"]:
        console.say(line)
    folder = args.figures / NAME
    drawn = ", ".join(name for name in PICTURES if (folder / name).is_file())
    pictures = f" and {folder} ({drawn})" if drawn else ""
    console.say(f"wrote {done.folder} (compare.md, compare.csv){pictures}")
    if failed:
        asked = len(files.read_json(done.summary)["models"])
        raise Incomplete(
            f"{len(failed)} of {asked} models failed: {', '.join(row['model'] for row in failed)}; "
            "the table is of the others"
        )


def main() -> None:
    p = causes.parser(NAME, __doc__)
    p.add_argument("--models", default="", help="models in the table, separated by spaces")
    args = p.parse_args()
    if not (args.draw or args.show):
        _require_distinct(_models(args))
    cli.dispatch(args, NAME, settings(args), compute=compute, draw=draw, show=show)


if __name__ == "__main__":
    cli.run(main)
