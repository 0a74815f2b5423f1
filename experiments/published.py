"""Published directions, or a whole run folder, without a model: cosines between layers, spectrum of
all layers' directions, and the choice that our rule makes on the published scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import similarity
from refusal_nn.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from refusal_nn.published import PublishedRun
    from refusal_nn.vectors import Vectors

SELECT = "select"


def compute(args: argparse.Namespace) -> None:
    """What DIRECTIONS= holds: a file's or folder's directions, a folder's scores."""
    from refusal_nn import names, published

    folder = names.is_folder(args.directions)
    name = args.directions.resolve().name if folder else args.directions.stem
    results, figures = (root / names.safe_name(name) for root in (args.results, args.figures))
    run = published.read_run(args.directions) if folder else None
    if run is None or run.directions is not None:
        found = published.read_vectors(args.directions)
        if args.site:
            found = found._replace(site=args.site, known="as given")
        _similarity(args, found, results / similarity.NAME, figures / "heatmap.png")
    if run is not None and run.grid:
        _selection(args, run, results / SELECT, figures / "candidates.png")


def _similarity(args: argparse.Namespace, vectors: Vectors, folder: Path, picture: Path) -> None:
    from experiments import console
    from refusal_nn import figures, files, runs
    from refusal_nn.directions import layer_similarity

    directions, (_, position) = vectors.table(args.position), vectors.at_position(args.position)
    found, spectrum = layer_similarity(directions), _spectrum(directions)
    if len(found.layers) < 2:
        raise InputError(f"{args.directions} has one layer's direction: nothing to compare it with")
    about = {"directions": str(args.directions.resolve()), "position": position}
    about |= {"site": vectors.site}
    with runs.Stage(folder).run(about) as run:
        similarity.write(run.folder, found, {})
        files.write_csv(run.folder / "spectrum.csv", spectrum)
        summary = similarity.summary(found, vectors.site) | {"position": position}
        run.finish(summary, {"model": str(args.directions)})
    figures.save(figures.cosine_heatmap(found.cosine, found.layers, None), picture)
    similarity.say(run.folder, picture)
    first, three = spectrum[0], sum(row["share"] for row in spectrum[:3])
    console.say(
        f"spectrum of their stack, uncentred: effective rank {first['effective_rank']:.1f} of "
        f"{len(found.layers)}, the first three components hold {100 * three:.0f} %"
    )
    console.say(f"read as {vectors.said(position)}; layers are numbered as in the file")


def _spectrum(directions: np.ndarray) -> list[dict[str, object]]:
    """A row per component of the layers' unit directions, not centred."""
    from refusal_nn import subspaces
    from refusal_nn.candidates import Candidate, spectrum_rows

    span = subspaces.stack(directions, min(directions.shape))
    return [
        {k: v for k, v in row.items() if k not in ("layer", "noise")}
        for row in spectrum_rows([Candidate("layers", None, span)])
    ]


def _selection(args: argparse.Namespace, run: PublishedRun, folder: Path, picture: Path) -> None:
    """Our rule on the published scores, beside the published choice; layers as in the folder."""
    from experiments import console
    from refusal_nn import causal_figures, figures, files, runs
    from refusal_nn.directions import select_candidate

    chosen = select_candidate(run.grid, run.n_layers)
    ours = chosen and {k: chosen[k] for k in ("pos", "layer")}
    passing = sum(select_candidate([row], run.n_layers) is not None for row in run.grid)
    said = {"chosen": ours, "published": run.chosen, "passing": passing, "n_layers": run.n_layers}
    with runs.Stage(folder).run({"directions": str(args.directions.resolve())}) as stage:
        files.write_csv(stage.folder / "candidates.csv", run.grid)
        stage.finish(said | {"site": "resid_pre"}, {"model": str(args.directions)})
    rows = [row | {"token": "", "n_harmful": "val", "n_harmless": "val"} for row in run.grid]
    figures.save(causal_figures.candidates(rows, chosen and chosen | {"token": ""}), picture)
    same = "none published" if run.chosen is None else "the same" if ours == run.chosen else "OTHER"
    console.say(
        f"selection: {passing} of {len(run.grid)} candidates pass; our rule {_place(ours)}, "
        f"published {_place(run.chosen)}: {same}"
    )
    console.say(f"wrote {folder} and {picture}")


def _place(place: dict[str, object] | None) -> str:
    return f"layer {place['layer']}, pos {place['pos']}" if place else "none"
