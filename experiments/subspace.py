"""One direction or many? Nested bases of several constructions are ablated dimension by dimension:
compared on val, the best once more on test beside random subspaces; the verdict and the rank."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments import against, capture, causes, cli, sweep

if TYPE_CHECKING:
    from experiments.bench import Bench
    from refusal_nn.candidates import Candidate
    from refusal_nn.ranks import Curve
    from refusal_nn.runs import Run

NAME = "subspace"
OPTIONS = (*sweep.OPTIONS, "max_rank", "against")


def settings(args: argparse.Namespace) -> cli.Settings:
    return causes.settings(args, *OPTIONS) | {"against_stamp": against.stamps(args.against)}


def compute(args: argparse.Namespace) -> None:
    """Bases, their curves on val, the best one's on test, the verdicts."""
    from experiments import bases, console
    from experiments.bench import Bench, found_before
    from refusal_nn import files

    found = found_before(args)
    if found.reasons:
        with cli.stage(args, NAME).run(settings(args)) as run:
            return _untestable(args, run, found.reasons, found.origin)
    swept = cli.up_to_date(args, sweep.NAME, sweep.settings(args), sweep.compute)
    single = swept.about()
    with cli.stage(args, NAME).run(settings(args)) as run:
        bench = Bench.of(args, found, run)
        others = against.read(args.against, bench.model.d_model, bench.model.n_layers)
        for other in others:
            console.say(other.taken)
        candidates = bases.fitted(args, bench, files.read_csv(swept.artefact("sweep.csv")))
        finalists = bases.screened(bench, candidates, run.folder)
        table, rows = _val(bench, finalists)
        best = _best(table, finalists)
        curve, more, tested = _test(bench, best)
        blank = dict.fromkeys(tested[0], "")
        files.write_csv(run.folder / "rank_curve.csv", [blank | row for row in (*table, *tested)])
        causes.write_rows(run.folder, [*rows, *more], bench.rollout)
        verdict = _verdict(args, bench, curve, best, single)
        verdict |= bases.write(run.folder, bench, candidates, finalists, best, verdict, others)
        if others:
            verdict |= {"against": {other.name: other.taken for other in others}}
        files.write_json(run.folder / "verdict.json", verdict)
        run.finish(_summary(verdict), capture.origin(args, bench.model))
    console.say(f"wrote {run.folder} ({verdict['rank']['label']})")


def _untestable(
    args: argparse.Namespace, run: Run, reasons: list[str], origin: Mapping[str, object]
) -> None:
    from experiments import console
    from refusal_nn import files, ranks, verdicts

    said = {"verdict": verdicts.UNTESTABLE, "reasons": reasons}
    rank = said | {"rank": None, "up_to": args.max_rank, "label": "untestable"}
    verdict = {
        "model": args.model,
        "single_direction": said | {"version": verdicts.VERSION},
        "rank": rank | {"version": ranks.VERSION},
    }
    files.write_json(run.folder / "verdict.json", verdict)
    run.finish(_summary(verdict), origin)
    console.say(f"wrote {run.folder}: {verdicts.UNTESTABLE}")


def _summary(verdict: Mapping[str, object]) -> causes.Row:
    rank = verdict["rank"]
    return {
        "model": verdict["model"],
        "single_direction": verdict["single_direction"]["verdict"],
        "verdict": rank["verdict"],
        "label": rank["label"],
        "reasons": rank["reasons"],
    }


def _val(bench: Bench, finalists: Sequence[Candidate]) -> tuple[list[causes.Row], list[causes.Row]]:
    """The whole curve of each finalist, a row per rank, and the completions behind them."""
    from experiments import rank_curve
    from refusal_nn.selection import evenly

    arms = {k: arm for found in finalists for k, arm in rank_curve.nested(bench, found).items()}
    prompts = evenly(bench.found.refused("val"), bench.args.val)
    rows = bench.roll(arms, dict.fromkeys(arms, prompts), "val by rank")
    kl = bench.kl(arms, evenly(bench.found.answered("val"), bench.args.val))
    table = [row for found in finalists for row in rank_curve.rows_of("val", found, rows, kl)]
    return table, [{"split": "val", **row} for row in rows]


def _best(table: Sequence[causes.Row], finalists: Sequence[Candidate]) -> Candidate:
    from refusal_nn.candidates import best_curve

    name = best_curve(table)
    return next(found for found in finalists if found.name == name)


def _test(bench: Bench, best: Candidate) -> tuple[Curve, list[causes.Row], list[causes.Row]]:
    """The chosen basis on test beside random ones of equal rank: the curve that the rule reads, the
    completions, and a row per rank."""
    import numpy as np

    from experiments import rank_curve
    from refusal_nn import causal, ranks

    prompts, arms = bench.found.refused("test"), rank_curve.nested(bench, best)
    mine = bench.roll(arms, dict.fromkeys(arms, prompts), "test by rank")
    kl = bench.kl(arms, bench.found.answered("test"))
    table = rank_curve.rows_of("test", best, mine, kl)
    random, drawn = rank_curve.random_spans(bench, best, len(table))
    for row, controls in zip(table, random, strict=True):
        of = [r for r in mine if r["arm"] == f"{best.name} rank {row['rank']}"]
        over = ranks.over_random([causal.complied(r) for r in of], controls)
        # Compliance is low under a random subspace that breaks the text: no comparison at all.
        whole = [r["coherence"] > 0 for r in drawn if r["arm"].endswith(f" rank {row['rank']}")]
        row |= {"controls_n": controls.size, "controls_compliance": float(controls.mean())}
        row |= {"controls_coherence": float(np.mean(whole))}
        row |= rank_curve.limits("over_controls", over)
    curve = rank_curve.ruled(bench, table, mine, np.array(random))
    return curve, [{"split": "test", **row} for row in (*mine, *drawn)], table


def _verdict(
    args: argparse.Namespace,
    bench: Bench,
    curve: Curve,
    best: Candidate,
    single: Mapping[str, object],
) -> causes.Row:
    from experiments import bases, rank_curve
    from refusal_nn import ranks

    found = ranks.rank_of_refusal(curve, seed=args.seed)
    found = rank_curve.reconciled(found, single["verdict"])
    own = single["best"]["pos"] if best.construction == bases.ITERATIVE else best.pos
    return {
        "model": args.model,
        "construction": best.construction,
        "layer": best.layer,
        "pos": causes.first_position(args) if own is None else own,
        "single_direction": {
            **{k: single[k] for k in ("verdict", "reasons", "version")},
            "best": {k: single["best"][k] for k in ("layer", "pos", "alpha")},
        },
        "rank": {**found._asdict(), "label": found.label},
    }


def draw(args: argparse.Namespace) -> None:
    """Spectra, the rank curve and the angles."""
    from refusal_nn import figures, files, subspace_figures

    done, folder = cli.stage(args, NAME), cli.figures_folder(args)
    verdict = files.read_json(done.artefact("verdict.json"))
    # Too few prompts for a verdict may still have given curves.
    if (done.folder / "rank_curve.csv").is_file():
        tables = {
            "spectrum": lambda rows: subspace_figures.spectrum(rows, verdict),
            "rank_curve": lambda rows: subspace_figures.rank_curve(rows, verdict),
            "angles": subspace_figures.angles,
        }
        for name, drawn in tables.items():
            rows = files.read_csv(done.artefact(f"{name}.csv"))
            figures.save(drawn(rows), folder / f"{name}.png")
    files.write_json(folder / f"{NAME}.json", {"from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    from experiments import printed_subspace

    printed_subspace.show_subspace(cli.finished(args, NAME), cli.figures_folder(args))


main = causes.main(NAME, __doc__, settings, compute=compute, draw=draw, show=show)

if __name__ == "__main__":
    cli.run(main)
