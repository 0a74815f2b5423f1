"""Do layers share a direction? Seed 000's cross-layer cosine heatmap, beside how well each layer's
direction is known."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments import capture, cli

NAME = "similarity"


def settings(args: argparse.Namespace) -> cli.Settings:
    return cli.capture_settings(args)


def compute(args: argparse.Namespace) -> None:
    """Cosines between the fit prompts' directions of all layers, with split-half reliability."""
    from refusal_nn import files
    from refusal_nn.captured import read_capture
    from refusal_nn.directions import (
        difference_in_means,
        full_sample_reliability,
        layer_similarity,
        split_half_cosine,
    )

    source = cli.up_to_date(args, capture.NAME, cli.capture_settings(args), capture.compute)
    about = files.read_json(source.folder / "manifest.json")
    captured = read_capture(source.folder)
    fit = captured.classes("fit", captured.positions[0])
    with cli.stage(args, NAME).run(settings(args)) as run:
        found = layer_similarity(difference_in_means(fit.harmful, fit.harmless))
        half = split_half_cosine(fit.harmful, fit.harmless, fit.clusters, seed=args.seed)
        whole = full_sample_reliability(half)
        write(run.folder, found, {i: (float(half[i]), float(whole[i])) for i in found.layers})
        run.finish(
            summary(found, "resid_post")
            | {
                "position": captured.positions[0],
                "split_half_cosine": half.tolist(),
                "reliability": whole.tolist(),
            },
            {"model": about["model"], "revision": about["revision"]},
        )


def write(folder: Path, found: object, reliability: dict[int, tuple[float, float]]) -> None:
    from refusal_nn import files

    rows = []
    for i, a in enumerate(found.layers):
        for j, b in enumerate(found.layers):
            row = {"layer_a": a, "layer_b": b, "cosine": float(found.cosine[i, j])}
            if reliability:
                # Two noisy copies of one direction have this cosine; below it, the layers differ.
                row["expected_if_shared"] = (
                    (reliability[a][1] * reliability[b][1]) ** 0.5 if a != b else 1.0
                )
            rows.append(row)
    files.write_csv(folder / "cosine.csv", rows)
    files.write_json(folder / "similarity.json", summary(found, ""))


def summary(found: object, site: str) -> dict[str, object]:
    numbers = {
        "layers": found.layers,
        "participation_ratio": found.participation_ratio,
        "late_half_mean_cosine": found.late_half_mean,
        "late_half_mean_cosine_off_diagonal": found.late_half_mean_off_diagonal,
    }
    return numbers | ({"site": site} if site else {})


def draw(args: argparse.Namespace) -> None:
    import numpy as np

    from refusal_nn import figures, files

    done, folder = cli.stage(args, NAME), cli.figures_folder(args)
    rows, about = files.read_csv(done.artefact("cosine.csv")), done.about()
    cosine = np.array([row["cosine"] for row in rows]).reshape(len(about["layers"]), -1)
    reliability = [about["split_half_cosine"][i] for i in about["layers"]]
    figures.save(
        figures.cosine_heatmap(cosine, about["layers"], reliability), folder / "heatmap.png"
    )
    files.write_json(folder / "similarity.json", {"figures": 1, "from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    say(cli.finished(args, NAME), cli.figures_folder(args) / "heatmap.png")


def say(folder: Path, picture: Path) -> None:
    from experiments import console
    from refusal_nn import files

    about = files.read_json(folder / "summary.json")
    console.say(
        f"layers' directions: mean cosine in the late half {about['late_half_mean_cosine']:.3f} "
        f"({about['late_half_mean_cosine_off_diagonal']:.3f} without the diagonal), participation "
        "ratio "
        f"{about['participation_ratio']:.1f} of {len(about['layers'])} layers"
    )
    console.say(f"wrote {folder} and {picture}")


def main() -> None:
    p = cli.parser(NAME, __doc__)
    p.add_argument(
        "--directions",
        type=Path,
        help="published directions instead of a model: a file of docs/exports.md, or a run folder",
    )
    p.add_argument(
        "--position",
        type=int,
        help="with --directions of several positions: which (default: the last)",
    )
    p.add_argument(
        "--site",
        choices=("resid_pre", "resid_post"),
        help="with --directions: where they were read (default: as the file says, or resid_pre)",
    )
    cli.finished_options(p)
    args = p.parse_args()
    if args.directions:
        from experiments import published

        return published.compute(args)
    cli.dispatch(args, NAME, settings(args), compute=compute, draw=draw, show=show)


if __name__ == "__main__":
    cli.run(main)
