"""What does ablating each layer's direction do? Compliance and coherence of real completions by
layer on val; the best once more on test, beside random directions; and the verdict."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from experiments import capture, causes, cli

if TYPE_CHECKING:
    from experiments.bench import Bench
    from refusal_nn import rollouts
    from refusal_nn.interventions import DirectionalAblation
    from refusal_nn.prompts import Prompt

    Roll = Callable[[rollouts.Arms, Mapping[str, Sequence[Prompt]], str], list[causes.Row]]

NAME = "sweep"
OPTIONS = ("val", "tokens", "alpha", "layers", "controls", "refusal_words", "judge", "keep_text")
BEST = "best"


def settings(args: argparse.Namespace) -> cli.Settings:
    return causes.settings(args, *OPTIONS) | {"scary": causes.scary_hash()}


def compute(args: argparse.Namespace) -> None:
    """Val by layer, the choice, test beside controls, refusal before and after, the verdict."""
    from experiments import console
    from experiments.bench import Bench, found_before
    from refusal_nn import causal, files

    found = found_before(args)
    with cli.stage(args, NAME).run(settings(args)) as run:
        summary = {"model": args.model, "alphas": args.alpha}
        if found.reasons:
            summary |= {"verdict": "UNTESTABLE", "reasons": found.reasons, "best": None}
            run.finish(summary, found.origin)
            return console.say(f"wrote {run.folder}: UNTESTABLE")
        bench = Bench.of(args, found, run)
        sweep, val_rows = _val(args, bench)
        files.write_csv(run.folder / "sweep.csv", sweep)
        best = causal.best_row(sweep)
        rows = _test(args, bench, best)
        summary |= {"best": dict(best), **_measured(bench, rows, best)}
        causes.write_rows(run.folder, [*val_rows, *rows], bench.rollout)
        run.finish(summary, capture.origin(args, bench.model))
    console.say(f"wrote {run.folder} (best layer {best['layer']}: {summary['verdict']})")


def _val(args: argparse.Namespace, bench: Bench) -> tuple[list[causes.Row], list[causes.Row]]:
    """A row per direction: each layer's at the first position, and the one that select chose."""
    from refusal_nn import causal
    from refusal_nn.selection import evenly

    pos = causes.first_position(args)
    wanted = causes.layers(args.layers, bench.model) or range(bench.model.n_layers)
    places = [(layer, pos) for layer in wanted if bench.has_direction(layer, pos)]
    if bench.found.chosen:
        place = (bench.found.chosen["layer"], bench.found.chosen["pos"])
        places = list(dict.fromkeys([*places, place]))
    arms = {
        f"layer {layer} pos {p} alpha {a:g}": bench.ablation(layer, p, a)
        for a in args.alpha
        for layer, p in places
    }
    kl = bench.kl(arms, evenly(bench.found.answered("val"), args.val))
    asked = evenly(bench.found.refused("val"), args.val)
    rows, out = raced(bench.roll, arms, asked, kl, args.seed)
    by_arm = causal.grouped(rows, "arm")
    table = [
        {"layer": layer, "pos": p, "token": bench.model.template.token(p), "alpha": a}
        | causal.summarise(by_arm[name])
        | {"kl": kl[name], "ruled_out": name in out}
        for name, (a, (layer, p)) in zip(arms, product(args.alpha, places), strict=True)
    ]
    return table, [{"split": "val", **row} for row in rows]


def raced(
    roll: Roll, arms: rollouts.Arms, prompts: Sequence[Prompt], kl: Mapping[str, float], seed: int
) -> tuple[list[causes.Row], set[str]]:
    """Judged completions, and the arms that were not asked all prompts, since even if they did
    better with the rest they would hardly be chosen."""
    from refusal_nn import causal, racing

    rows: list[causes.Row] = []

    def ask(names: Sequence[str], of: Sequence[Prompt]) -> dict[str, list[bool]]:
        told = f"val, {len(names)} directions x {len(of)} prompts"
        new = roll({name: arms[name] for name in names}, dict.fromkeys(names, of), told)
        rows.extend(new)
        return {
            name: [causal.complied(row) for row in of_arm]
            for name, of_arm in causal.grouped(new, "arm").items()
        }

    def order(name: str, rate: float) -> tuple[float, ...]:
        return causal.worse({"compliance": rate, "kl": kl[name]})

    return rows, racing.race(list(arms), prompts, ask, order, seed)


def _test(args: argparse.Namespace, bench: Bench, best: Mapping[str, object]) -> list[causes.Row]:
    """The best direction on all test and scary prompts; random ones on what was refused."""
    drawn = bench.controls(best["layer"], args.controls, best["alpha"])
    random = {f"random {i}": arm for i, arm in enumerate(drawn)}
    asked = {
        BEST: [*bench.found.parts["test"], *causes.scary()],
        **causes.in_rotation(bench.found.refused("test"), list(random), causes.TURNS),
    }
    rows = bench.roll({BEST: _best(bench, best), **random}, asked, "test")
    return [{"split": "test", **row} for row in rows]


def _best(bench: Bench, best: Mapping[str, object]) -> DirectionalAblation:
    return bench.ablation(best["layer"], best["pos"], best["alpha"])


def _measured(bench: Bench, rows: Sequence[causes.Row], best: Mapping[str, object]) -> causes.Row:
    """Verdict and numbers on test, and refusals of each set of prompts before and after."""
    from refusal_nn import causal

    kl = bench.kl({BEST: _best(bench, best)}, bench.found.answered("test"))[BEST]
    after = {row["id"]: row for row in rows if row["arm"] == BEST}
    random = [row for row in rows if row["arm"] != BEST]
    before = {
        name: bench.found.baseline[name] for name in ("test.harmful", "test.harmless", "scary")
    }
    mine = {name: [after[row["id"]] for row in of] for name, of in before.items()}
    verdict, numbers = causal.single_direction(
        before["test.harmful"], mine["test.harmful"], random, kl
    )
    return {
        "verdict": verdict.verdict,
        "reasons": verdict.reasons,
        "version": verdict.version,
        "test": numbers,
        "refusal_before": {name: causal.refusal_rates(of) for name, of in before.items()},
        "refusal_after": {name: causal.refusal_rates(of) for name, of in mine.items()},
    }


def draw(args: argparse.Namespace) -> None:
    """Compliance, coherence, KL and cross-fitted d over layers, in one look."""
    from refusal_nn import causal_figures, figures, files

    done, folder = cli.stage(args, NAME), cli.figures_folder(args)
    about = done.about()
    if about["best"]:
        separation = causes.validated(args).artefact("validation_results.csv")
        rows = files.read_csv(done.artefact("sweep.csv"))
        # One strength in one look: the best one's.
        rows = [row for row in rows if row["alpha"] == about["best"]["alpha"]]
        figure = causal_figures.sweep(rows, files.read_csv(separation), about)
        figures.save(figure, folder / "sweep.png")
    files.write_json(folder / f"{NAME}.json", {"from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    from experiments import printed_causes

    printed_causes.show_sweep(cli.finished(args, NAME), cli.figures_folder(args))


main = causes.main(NAME, __doc__, settings, compute=compute, draw=draw, show=show)

if __name__ == "__main__":
    cli.run(main)
