"""Experiment 0: at which layers does a direction separate harmful from harmless prompts, on prompts
it has not seen?"""

from __future__ import annotations

import argparse

from experiments import capture, cli

NAME = "validate"


def settings(args: argparse.Namespace) -> cli.Settings:
    return cli.capture_settings(args) | {"folds": args.folds, "permutations": args.permutations}


def compute(args: argparse.Namespace) -> None:
    """Statistics of the captured activations; no model is needed."""
    from experiments import tables
    from refusal_nn import files
    from refusal_nn.captured import read_capture

    source = cli.up_to_date(args, capture.NAME, cli.capture_settings(args), capture.compute)
    # Read at once, with the activations: another run may replace the capture meanwhile.
    about = files.read_json(source.folder / "manifest.json")
    notes = source.about()["notes"]
    captured = read_capture(source.folder)
    with cli.stage(args, NAME).run(settings(args)) as run:
        found = tables.analyse(captured, args.permutations, args.folds, args.seed)
        best = sorted(found.rows, key=lambda r: -r["cohens_d_crossfit"])[:10]
        files.write_csv(run.folder / "validation_results.csv", found.rows)
        files.write_csv(run.folder / "variance_by_layer.csv", found.spread)
        files.write_csv(run.folder / "top10_layers.csv", best)
        files.write_csv(run.folder / "projections.csv", found.projections)
        files.write_json(run.folder / "confounds.json", found.confounds)
        if found.by_position:
            files.write_csv(run.folder / "validation_by_position.csv", found.by_position)
        summary = {"model": args.model, "compute": notes, "seed": args.seed, **found.summary}
        tables.write_directions(run.folder, found, captured, about)
        run.finish(summary, {k: about[k] for k in tables.ORIGIN})


def draw(args: argparse.Namespace) -> None:
    """Every figure of the stage, from its saved tables."""
    import numpy as np

    from experiments import tables
    from refusal_nn import figures, files

    done, folder = cli.stage(args, NAME), cli.figures_folder(args)
    rows, spread = (
        files.read_csv(done.artefact(f"{name}.csv"))
        for name in ("validation_results", "variance_by_layer")
    )
    projections = files.read_csv(done.artefact("projections.csv"))
    scores, labels = tables.held_out(projections, len(rows))
    in_sample, _ = tables.in_sample(projections, len(rows))
    peak = int(np.argmax([r["cohens_d_crossfit"] for r in rows]))
    ids = [r["id"] for r in projections if r["split"] == "fit"][: labels.size]
    figures.save(figures.direction_analysis(rows, spread), folder / "direction_analysis.png")
    figures.save(
        figures.projection_distributions(scores[peak], labels, peak, ids),
        folder / "projection_distributions.png",
    )
    figures.save(
        figures.progressive_distributions(scores, labels, rows),
        folder / "progressive_distributions.png",
    )
    pictures = folder / "layer_distributions"
    for earlier in pictures.glob("layer_*_histogram.*"):
        earlier.unlink()
    for layer, row in enumerate(rows):
        figure = figures.layer_distribution(scores[layer], in_sample[layer], labels, row)
        figures.save(figure, pictures / f"layer_{layer:02d}_histogram.png")
    files.write_json(folder / "validate.json", {"figures": 3 + len(rows), "from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    """The stage's table and where everything lies."""
    from experiments import printed

    printed.show_validation(cli.finished(args, NAME), cli.figures_folder(args))


def main() -> None:
    p = cli.parser(NAME, __doc__)
    p.add_argument(
        "--folds", type=cli.at_least(2), default=5, help="cross-fitting folds (default: 5)"
    )
    p.add_argument(
        "--permutations",
        type=cli.at_least(100),
        default=1000,
        help="label permutations of the null (default: 1000)",
    )
    cli.finished_options(p)
    args = p.parse_args()
    cli.dispatch(args, NAME, settings(args), compute=compute, draw=draw, show=show)


if __name__ == "__main__":
    cli.run(main)
