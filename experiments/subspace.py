"""One direction or many? Nested bases of several constructions are ablated dimension by dimension:
compared on val, the best once more on test beside random subspaces; the verdict and the rank."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments import capture, causes, cli, sweep

if TYPE_CHECKING:
    from experiments.bench import Bench
    from refusal_nn.candidates import Candidate
    from refusal_nn.ranks import Curve
    from refusal_nn.runs import Run

NAME = "subspace"
OPTIONS = (*sweep.OPTIONS, "max_rank", "against")
# A prompt meets so many random subspaces of each rank, in rotation.
TURNS = 2


def settings(args: argparse.Namespace) -> cli.Settings:
    from experiments import bases

    return causes.settings(args, *OPTIONS) | {"against_stamp": bases.stamps(args.against)}


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
    single = files.read_json(swept.summary)
    with cli.stage(args, NAME).run(settings(args)) as run:
        bench = Bench.of(args, found, run)
        candidates = bases.fitted(args, bench, files.read_csv(swept.artefact("sweep.csv")))
        finalists = bases.screened(bench, candidates, run.folder)
        table, rows = _val(bench, finalists)
        best = _best(table, finalists)
        curve, more, tested = _test(bench, best)
        blank = dict.fromkeys(tested[0], "")
        files.write_csv(run.folder / "rank_curve.csv", [blank | row for row in (*table, *tested)])
        causes.write_rows(run.folder, [*rows, *more], bench.rollout)
        verdict = _verdict(args, bench, curve, best, single)
        verdict |= bases.write(run.folder, args, bench, candidates, finalists, best, verdict)
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


def _arms(bench: Bench, candidate: Candidate) -> dict[str, object]:
    """The candidate's nested ablations, by name."""
    return {
        f"{candidate.name} rank {k}": bench.span(candidate.subspace.basis[:k])
        for k in range(1, candidate.subspace.rank + 1)
    }


def _val(bench: Bench, finalists: Sequence[Candidate]) -> tuple[list[causes.Row], list[causes.Row]]:
    """The whole curve of each finalist, a row per rank, and the completions behind them."""
    from refusal_nn.selection import evenly

    arms = {name: arm for found in finalists for name, arm in _arms(bench, found).items()}
    prompts = evenly(bench.found.refused("val"), bench.args.val)
    rows = bench.roll(arms, dict.fromkeys(arms, prompts), "val by rank")
    kl = bench.kl(arms, evenly(bench.found.answered("val"), bench.args.val))
    table = [row for found in finalists for row in _curve_rows("val", found, rows, kl)]
    return table, [{"split": "val", **row} for row in rows]


def _curve_rows(
    split: str, found: Candidate, rows: Sequence[causes.Row], kl: Mapping[str, float]
) -> list[causes.Row]:
    """A row per rank: rates, the paired increment over one dimension fewer, KL."""
    from refusal_nn import causal, ranks

    by_arm = causal.grouped(rows, "arm")
    names = [f"{found.name} rank {k + 1}" for k in range(found.subspace.rank)]
    complied = [[causal.complied(row) for row in by_arm[name]] for name in names]
    about = {"split": split, "name": found.name, "construction": found.construction}
    about["layer"] = "" if found.layer is None else found.layer
    return [
        {
            **about,
            "rank": k + 1,
            **causal.summarise(by_arm[name]),
            "kl": kl[name],
            **_limits("increment", added),
        }
        for k, (name, added) in enumerate(zip(names, ranks.increments(complied), strict=True))
    ]


def _limits(name: str, estimate: object) -> causes.Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _best(table: Sequence[causes.Row], finalists: Sequence[Candidate]) -> Candidate:
    from refusal_nn.candidates import best_curve

    name = best_curve(table)
    return next(found for found in finalists if found.name == name)


def _test(bench: Bench, best: Candidate) -> tuple[Curve, list[causes.Row], list[causes.Row]]:
    """The chosen basis on test beside random ones of equal rank: the curve that the rule reads, the
    completions, and a row per rank."""
    from refusal_nn import causal, ranks

    prompts, arms = bench.found.refused("test"), _arms(bench, best)
    mine = bench.roll(arms, dict.fromkeys(arms, prompts), "test by rank")
    kl = bench.kl(arms, bench.found.answered("test"))
    table = _curve_rows("test", best, mine, kl)
    random, drawn = _random(bench, best, len(table))
    for row, controls in zip(table, random, strict=True):
        of = [r for r in mine if r["arm"] == f"{best.name} rank {row['rank']}"]
        over = ranks.over_random([causal.complied(r) for r in of], controls)
        row |= {"controls_n": controls.size, "controls_compliance": float(controls.mean())}
        row |= _limits("over_controls", over)
    curve = _curve(bench, table, mine, np.array(random))
    return curve, [{"split": "test", **row} for row in (*mine, *drawn)], table


def _random(bench: Bench, best: Candidate, up_to: int) -> tuple[list[np.ndarray], list[causes.Row]]:
    """Compliance (turn, prompt) of the test prompts under random subspaces of each rank, drawn from
    harmless prompts' covariance at the basis's layer, and the completions."""
    from refusal_nn import causal, subspaces

    layer = bench.model.n_layers // 2 if best.layer is None else best.layer
    count, seed = bench.args.controls, bench.args.seed + layer
    bases = subspaces.random_subspaces(bench.harmless[layer], up_to, count, seed)
    prompts, found, drawn = bench.found.refused("test"), [], []
    turns = min(TURNS, count)
    for k in range(1, up_to + 1):
        arms = {f"random {i} rank {k}": bench.span(basis[:k]) for i, basis in enumerate(bases)}
        names, asked = list(arms), {name: [] for name in arms}
        for i, prompt in enumerate(prompts):
            for turn in range(turns):
                asked[names[(i * turns + turn) % count]].append(prompt)
        rows = bench.roll(arms, asked, f"random subspaces of rank {k}")
        by_id = causal.grouped(rows, "id")
        complied = [[causal.complied(row) for row in by_id[p.id]] for p in prompts]
        found.append(np.array(complied).T)
        drawn += rows
    return found, drawn


def _curve(
    bench: Bench,
    table: Sequence[causes.Row],
    rows: Sequence[causes.Row],
    controls: np.ndarray,
) -> Curve:
    from refusal_nn import causal, ranks
    from refusal_nn.estimates import wilson
    from refusal_nn.splits import near_duplicate_clusters

    before = bench.found.baseline["test.harmful"]
    refused = sum(row["label"] == "refusal" for row in before)
    arms = causal.grouped(rows, "arm").values()
    return ranks.Curve(
        np.array([[causal.complied(row) for row in arm] for arm in arms]),
        np.array(near_duplicate_clusters(bench.found.refused("test"))),
        np.array([row["kl"] for row in table]),
        controls,
        wilson(refused, len(before)),
        np.array([[causal.complied_by_logits(row) for row in arm] for arm in arms]),
    )


def _verdict(
    args: argparse.Namespace,
    bench: Bench,
    curve: Curve,
    best: Candidate,
    single: Mapping[str, object],
) -> causes.Row:
    from refusal_nn import ranks

    found = ranks.rank_of_refusal(curve, seed=args.seed)
    return {
        "model": args.model,
        "construction": best.construction,
        "layer": best.layer,
        "pos": causes.first_position(args),
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
    if verdict["rank"]["verdict"] != "UNTESTABLE":
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
