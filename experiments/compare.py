"""Is one direction enough across models? Finished runs beside the published figures, and whether
models fall into two modes. `make compare MODELS="a b"` builds what is missing first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import causes, cli, report_origin, similarity, subspace, sweep
from refusal_nn.errors import Incomplete, RefusalNNError
from refusal_nn.names import safe_name

if TYPE_CHECKING:
    from refusal_nn.comparison import Measured
    from refusal_nn.runs import Stage

NAME = "compare"
STAGES = (similarity, sweep, subspace)
LOG = "chain.log"  # what make wrote to stderr while it built a model's stages


def settings(args: argparse.Namespace) -> cli.Settings:
    own = vars(args).items()
    left_out = ("model", "models", "figures", "results", "settings_only", "draw", "show")
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in own if k not in left_out}
    return {"models": _models(args), **plain}


def compute(args: argparse.Namespace) -> None:
    """The table, the page and the cosines, from what is finished."""
    from refusal_nn import compare_page, comparison, files
    from refusal_nn.published_rates import CROSS_MODEL

    models = [_measured(args, name) for name in _models(args)]
    rows = comparison.table(models)
    of = {comparison.OURS: "This run", CROSS_MODEL: f"As published ({CROSS_MODEL})"}
    found = {source: comparison.found_modes(rows, source) for source in of}
    said = [comparison.statement(found[source], words) for source, words in of.items()]
    with _stage(args).run(settings(args)) as run:
        files.write_csv(run.folder / "compare.csv", rows)
        files.write_text(run.folder / "compare.md", compare_page.page(rows, said, _command(args)))
        cosines = comparison.at_equal_depth(models)
        nan_free = {k: [[None if x != x else x for x in r] for r in c] for k, c in cosines.items()}
        files.write_json(run.folder / "cosines.json", nan_free)
        summary = {"models": _models(args), "statements": said}
        summary |= {"modes": {source: m._asdict() for source, m in found.items()}}
        run.finish(summary, {})


def _command(args: argparse.Namespace) -> str:
    """The line that makes this comparison, with every setting that is not the usual one."""
    usual = vars(causes.parser(NAME, "").parse_args([]))
    asked = {name: value for name, value in vars(args).items() if value != usual.get(name)}
    return report_origin.command(NAME, args, asked)


def _models(args: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(args.models.split()))


def _stage(args: argparse.Namespace) -> Stage:
    from refusal_nn.runs import Stage

    return Stage(args.results / NAME)


def _measured(args: argparse.Namespace, name: str) -> Measured:
    """A model's finished stages of these settings, or why there are none."""
    from refusal_nn import files
    from refusal_nn.comparison import Measured, full_cosine
    from refusal_nn.models import MODELS

    hub_id = MODELS[name].repo if name in MODELS else name
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
    """The error of the chain that make ran last, or what to run."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line for line in lines if line.strip() and not line.startswith("make")]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    found = errors or said
    return (
        found[-1] if found else f'no finished run of these settings: make compare MODELS="{name}"'
    )


def draw(args: argparse.Namespace) -> None:
    """Rates by model and source; cosines at equal relative depth."""
    import numpy as np

    from refusal_nn import compare_figures, figures, files

    done, folder = _stage(args), args.figures / NAME
    rows = files.read_csv(done.artefact("compare.csv"))
    figures.save(compare_figures.rates(rows), folder / "compare.png")
    cosines = files.read_json(done.artefact("cosines.json"))
    arrays = {name: np.array(cosine, dtype=float) for name, cosine in cosines.items()}
    if arrays:
        figures.save(compare_figures.heatmaps(arrays), folder / "heatmaps.png")
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
    console.say(f"wrote {done.folder} (compare.md, compare.csv) and {args.figures / NAME}")
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
    cli.dispatch(args, NAME, settings(args), compute=compute, draw=draw, show=show)


if __name__ == "__main__":
    cli.run(main)
