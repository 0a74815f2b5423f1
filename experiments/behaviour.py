"""Experiments 1a and 1b of the validation study: does a prompt's projection predict its refusal and
its severity, and what does the model do with harmful prompts that project low?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from experiments import baseline, capture, causes, cli

if TYPE_CHECKING:
    from refusal_nn.behaviour import Asked

NAME = "behaviour"


def settings(args: argparse.Namespace) -> cli.Settings:
    return baseline.settings(args)


def compute(args: argparse.Namespace) -> None:
    """Join projections of captured prompts with what the clean model did; no model is needed."""
    import numpy as np

    from experiments import console
    from refusal_nn import behaviour, files

    seen = cli.up_to_date(args, capture.NAME, cli.capture_settings(args), capture.compute)
    done = cli.up_to_date(args, baseline.NAME, baseline.settings(args), baseline.compute)
    about = files.read_json(done.folder / "manifest.json")
    asked, rows = _joined(args, seen, done)
    with cli.stage(args, NAME).run(settings(args)) as run:
        layers = behaviour.by_layer(asked)
        layer = _layer(args)
        projection = asked.projections[layer]
        fitted = behaviour.calibrate(projection, asked.refused, asked.split == "val")
        for row, x, p in zip(rows, projection, fitted.probability, strict=True):
            row |= {"projection": float(x), "probability": "" if np.isnan(p) else float(p)}
        low = behaviour.low_projecting(rows)
        files.write_csv(run.folder / "behaviour.csv", rows)
        files.write_csv(run.folder / "behaviour_by_layer.csv", layers)
        found = _said(layers[layer])
        summary = {"model": args.model, "layer": layer, "pos": causes.first_position(args)}
        summary |= {**found, "calibration": fitted.about, "n": len(rows), "low_projecting": low}
        run.finish(summary, {k: about[k] for k in causes.ORIGIN})
    console.say(f"wrote {run.folder} ({len(rows)} prompts)")


def _joined(args: argparse.Namespace, seen: object, done: object) -> tuple[Asked, list[causes.Row]]:
    """Val and test prompts in the capture's order, on the directions of the fit prompts."""
    import numpy as np

    from refusal_nn import behaviour, files
    from refusal_nn.captured import read_capture
    from refusal_nn.directions import difference_in_means, unit

    captured, pos = read_capture(seen.folder), causes.first_position(args)
    fit = captured.classes("fit", pos)
    directions = unit(difference_in_means(fit.harmful, fit.harmless))
    judged = {row["id"]: row for row in files.read_jsonl(done.artefact("completions.jsonl"))}
    chosen = [i for i, row in enumerate(captured.table) if row["id"] in judged]
    states = captured.states[:, chosen, captured.positions.index(pos)]
    table = [captured.table[i] for i in chosen]
    asked = behaviour.Asked(
        np.einsum("lpd,ld->lp", states.astype(np.float64), directions),
        np.array([judged[row["id"]]["label"] == "refusal" for row in table], dtype=bool),
        np.array([row["label"] == "harmful" for row in table], dtype=bool),
        np.array([row["severity"] or np.nan for row in table], dtype=float),
        np.array([row["split"] for row in table]),
    )
    rows = [
        {"id": row["id"], "class": row["label"], "split": row["split"]}
        | {"category": row["category"], "severity": row["severity"]}
        | {"label": judged[row["id"]]["label"], "refused": bool(refused)}
        for row, refused in zip(table, asked.refused, strict=True)
    ]
    return asked, rows


def _layer(args: argparse.Namespace) -> int:
    """Validate's peak, which was found on fit prompts."""
    return int(causes.validated(args).about()["peak_layer"])


def _said(row: causes.Row) -> causes.Row:
    """The layer's estimates, None where there were too few outcomes."""
    names = {"auroc": "auroc", "auroc_harmful": "auroc_harmful", "spearman_severity": "spearman"}
    return {
        value: None
        if row[value] == ""
        else {"value": row[value]} | {k: row[f"{name}_{k}"] for k in ("low", "high", "n")}
        for value, name in names.items()
    }


def draw(args: argparse.Namespace) -> None:
    from refusal_nn import causal_figures, figures, files

    done, folder = cli.stage(args, NAME), cli.figures_folder(args)
    figure = causal_figures.behaviour(
        files.read_csv(done.artefact("behaviour.csv")),
        files.read_csv(done.artefact("behaviour_by_layer.csv")),
        done.about(),
    )
    figures.save(figure, folder / "behaviour.png")
    files.write_json(folder / f"{NAME}.json", {"from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    from experiments import printed_causes

    printed_causes.show_behaviour(cli.finished(args, NAME), cli.figures_folder(args))


main = causes.main(NAME, __doc__, settings, compute=compute, draw=draw, show=show)

if __name__ == "__main__":
    cli.run(main)
