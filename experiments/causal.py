"""Experiment 2 of the validation study: what does a direction do at given layers only? One layer, a
window, all of them, everywhere; added instead of ablated; beside random directions at the same
sites."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments import capture, causes, cli

if TYPE_CHECKING:
    from experiments.bench import Bench
    from refusal_nn.interventions import Intervention
    from refusal_nn.prompts import Prompt

NAME = "causal"
OPTIONS = ("val", "tokens", "alpha", "layers", "controls", "refusal_words", "judge", "keep_text")
WINDOW = 2  # layers on either side
# Half of what the sweep's verdict is given: a table of a dozen rows, each with its own controls.
TURNS = 2


class Site(NamedTuple):
    """An intervention, the layers of its row, the direction's layer, and the class it is for."""

    name: str
    layers: str
    source: int
    label: str
    intervention: Intervention
    controls: list[Intervention]


def settings(args: argparse.Namespace) -> cli.Settings:
    return causes.settings(args, *OPTIONS)


def compute(args: argparse.Namespace) -> None:
    """A row per intervention and site, on test prompts."""
    from experiments import console
    from experiments.bench import Bench, found_before
    from refusal_nn import files

    found = found_before(args)
    with cli.stage(args, NAME).run(settings(args)) as run:
        summary = {"model": args.model, "alpha": _alpha(args)}
        if found.reasons:
            summary |= {"verdict": "UNTESTABLE", "reasons": found.reasons, "layers": []}
            run.finish(summary, found.origin)
            return console.say(f"wrote {run.folder}: UNTESTABLE")
        bench = Bench.of(args, found, run)
        why = _layers(args, bench)
        sites = list(_sites(args, bench, list(why)))
        table, rows = _measured(bench, sites)
        files.write_csv(run.folder / "causal.csv", table)
        causes.write_rows(run.folder, rows, bench.rollout)
        summary |= {"verdict": None, "reasons": [], "layers": why, "sites": len(sites)}
        run.finish(summary, capture.origin(args, bench.model))
    console.say(f"wrote {run.folder} ({len(sites)} sites)")


def _layers(args: argparse.Namespace, bench: Bench) -> dict[int, str]:
    """Layers and why: those of LAYERS=, or the validation study's three, found on fit prompts."""
    from refusal_nn import files

    given = causes.layers(args.layers, bench.model)
    if given:
        return {layer: "given" for layer in given}
    rows = files.read_csv(causes.validated(args).artefact("validation_results.csv"))
    free = [row["layer"] for row in rows if row["overlap_count"] == 0]
    least = min(rows, key=lambda row: row["overlap_count"])["layer"]
    peak = max(rows, key=lambda row: row["cohens_d_crossfit"])["layer"]
    found = {
        free[0] if free else least: "first without overlap" if free else "least overlap",
        bench.model.n_layers // 2: "midpoint",
        peak: "peak cross-fitted d",
    }
    return dict(sorted(found.items()))


def _alpha(args: argparse.Namespace) -> float:
    """One strength: 1 where the sweep's list has it, else the first."""
    return 1.0 if 1.0 in args.alpha else args.alpha[0]


def _sites(args: argparse.Namespace, bench: Bench, layers: Sequence[int]) -> Iterator[Site]:
    from refusal_nn.interventions import ActivationAddition

    pos, last = causes.first_position(args), bench.model.n_layers - 1
    for layer in layers:
        window = list(range(max(layer - WINDOW, 0), min(layer + WINDOW, last) + 1))
        name = f"{window[0]}-{window[-1]}"
        places = [("ablate one layer", str(layer), [layer]), ("ablate window", name, window)]
        if len(layers) > 1:
            places.append(("ablate all given", ",".join(map(str, layers)), list(layers)))
        for what, where, at in [*places, ("ablate everywhere", "all", None)]:
            alpha = _alpha(args)
            arm = bench.ablation(layer, pos, alpha, at)
            random = bench.controls(layer, args.controls, alpha, at)
            yield Site(what, where, layer, "harmful", arm, random)
        vector = bench.vector(layer, pos)
        # As long as the direction itself, which is what an addition adds.
        drawn = bench.random_vectors(layer, args.controls) * vector.norm()
        for coeff, label in ((-1.0, "harmful"), (1.0, "harmless")):
            yield Site(
                f"add {coeff:+.0f}",
                str(layer),
                layer,
                label,
                ActivationAddition(vector, layer, coeff),
                [ActivationAddition(random, layer, coeff) for random in drawn],
            )


def _measured(bench: Bench, sites: Sequence[Site]) -> tuple[list[causes.Row], list[causes.Row]]:
    """Harmful prompts are those refused at baseline, harmless ones those answered."""
    table, rows = [], []
    harmless = bench.found.answered("test")
    for number, site in enumerate(sites):
        prompts = bench.found.refused("test") if site.label == "harmful" else harmless
        what = f"{site.name} {site.layers} ({number + 1} of {len(sites)})"
        mine, random = _rolled(bench, site, number, prompts, what)
        kl = bench.kl({"": site.intervention}, harmless)[""]
        about = {"intervention": site.name, "layers": site.layers, "source_layer": site.source}
        about["alpha"] = getattr(site.intervention, "alpha", "")
        table.append({**about, "class": site.label, **_row(mine, random, site.label), "kl": kl})
        rows += [{"site": number, **row} for row in (*mine, *random)]
    return table, rows


def _rolled(
    bench: Bench, site: Site, number: int, prompts: Sequence[Prompt], what: str
) -> tuple[list[causes.Row], list[causes.Row]]:
    """Rows under the intervention, then some rows per prompt under random directions in turn."""
    name = f"{number} {site.name} {site.layers} of {site.source}"
    controls = {f"{name}: random {i}": arm for i, arm in enumerate(site.controls)}
    asked = {name: list(prompts), **causes.in_rotation(prompts, list(controls), TURNS)}
    rows = bench.roll({name: site.intervention, **controls}, asked, what)
    return rows[: len(prompts)], rows[len(prompts) :]


def _row(mine: Sequence[causes.Row], random: Sequence[causes.Row], label: str) -> causes.Row:
    """Compliance of harmful prompts, refusal of harmless ones, and how far above the controls."""
    from refusal_nn import causal
    from refusal_nn.agreement import rate_over_controls

    def refused(row: Mapping[str, object]) -> bool:
        return row["label"] == "refusal"

    counted = causal.complied if label == "harmful" else refused
    turns: dict[object, list[bool]] = {row["id"]: [] for row in mine}
    for row in random:
        turns[row["id"]].append(counted(row))
    over = rate_over_controls(
        [counted(row) for row in mine], list(zip(*turns.values(), strict=True))
    )
    return {
        **causal.summarise(mine),
        "controls_n": len(random),
        "controls_compliance": sum(map(causal.complied, random)) / len(random),
        "controls_refusal": sum(map(refused, random)) / len(random),
        "over_controls": over.value,
        "over_controls_low": over.low,
        "over_controls_high": over.high,
    }


def draw(args: argparse.Namespace) -> None:
    from refusal_nn import causal_figures, figures, files

    done, folder = cli.stage(args, NAME), cli.figures_folder(args)
    if done.about()["verdict"] is None:
        figure = causal_figures.causal(files.read_csv(done.artefact("causal.csv")))
        figures.save(figure, folder / "causal.png")
    files.write_json(folder / f"{NAME}.json", {"from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    from experiments import printed_causes

    printed_causes.show_causal(cli.finished(args, NAME), cli.figures_folder(args))


main = causes.main(NAME, __doc__, settings, compute=compute, draw=draw, show=show)

if __name__ == "__main__":
    cli.run(main)
