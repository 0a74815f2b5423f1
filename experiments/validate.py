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
    from refusal_nn import files, findings
    from refusal_nn.captured import read_capture
    from refusal_nn.directions import difference_in_means
    from refusal_nn.statistics import validate_layers

    source = cli.up_to_date(args, capture.NAME, cli.capture_settings(args), capture.compute)
    captured = read_capture(source.folder)
    pos, token = captured.positions[0], captured.tokens[0]
    fit, test = captured.classes("fit", pos), captured.classes("test", pos)
    options = {"clusters": fit.clusters, "folds": args.folds, "seed": args.seed}
    with cli.stage(args, NAME).run(settings(args)) as run:
        rows = validate_layers(fit.harmful, fit.harmless, permutations=args.permutations, **options)
        directions = difference_in_means(fit.harmful, fit.harmless)
        projections = tables.projections(captured, directions, options)
        spread = findings.spread_by_layer(
            *tables.in_sample(projections, len(rows)), tables.mean_norms(fit)
        )
        found = tables.findings(rows, spread, projections, args.seed)
        confounds = tables.confounds(
            fit, projections, found["4_progressive_build_up"]["peak_layer"]
        )
        files.write_csv(run.folder / "validation_results.csv", rows)
        files.write_csv(run.folder / "variance_by_layer.csv", spread)
        files.write_csv(
            run.folder / "top10_layers.csv",
            sorted(rows, key=lambda r: -r["cohens_d_crossfit"])[:10],
        )
        files.write_csv(run.folder / "projections.csv", projections)
        files.write_json(run.folder / "confounds.json", confounds)
        if len(captured.positions) > 1:
            files.write_csv(
                run.folder / "validation_by_position.csv",
                tables.by_position(captured, args.permutations, options),
            )
        summary = tables.summary(args, source, rows, found) | {"position": pos, "token": token}
        if test.rows:
            peak = summary["peak_layer"]
            unit = directions[peak] / max(float((directions[peak] ** 2).sum() ** 0.5), 1e-300)
            summary["peak_on_test"] = findings.on_fresh_prompts(
                unit, test.harmful[peak], test.harmless[peak], test.clusters
            )
        tables.write_directions(run.folder, directions, summary)
        about = files.read_json(source.folder / "manifest.json")
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
    figures.save(figures.direction_analysis(rows, spread), folder / "direction_analysis.png")
    figures.save(
        figures.projection_distributions(scores[peak], labels, peak),
        folder / "projection_distributions.png",
    )
    figures.save(
        figures.progressive_distributions(scores, labels, rows),
        folder / "progressive_distributions.png",
    )
    for layer, row in enumerate(rows):
        figure = figures.layer_distribution(scores[layer], in_sample[layer], labels, row)
        figures.save(figure, folder / "layer_distributions" / f"layer_{layer:02d}_histogram.png")
    files.write_json(folder / "validate.json", {"figures": 3 + len(rows), "from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    """The stage's table and where everything lies."""
    from experiments import printed

    printed.show_validation(cli.stage(args, NAME).folder, cli.figures_folder(args))


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
    p.add_argument(
        "--draw", action="store_true", help="only draw the figures of the finished stage"
    )
    p.add_argument("--show", action="store_true", help="only print the table of the finished stage")
    args = p.parse_args()
    if args.settings_only:
        return cli.stage(args, NAME).request(settings(args))
    if args.show:
        return show(args)
    if not args.draw:
        return compute(args)
    draw(args)


if __name__ == "__main__":
    cli.run(main)
