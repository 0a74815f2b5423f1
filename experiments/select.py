"""Which direction (layer, position) bypasses refusal when ablated, induces it when added, and does
little else? Logits alone, on val prompts."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import capture, causes, cli, progress

if TYPE_CHECKING:
    from torch import Tensor

    from refusal_nn.journal import Journal
    from refusal_nn.models import TracedModel
    from refusal_nn.selection import Scorer

NAME = "select"
# Fewer prompts that the model itself refuses, or answers, give no direction, and no choice.
LEAST = {"fit": 16, "val": 8}
LACKING = {
    "harmful": "harmful prompts whose answer begins as a refusal",
    "harmless": "harmless prompts whose answer does not",
}


def settings(args: argparse.Namespace) -> cli.Settings:
    return causes.settings(args, "val", "refusal_words")


def compute(args: argparse.Namespace) -> None:
    """Filter prompts by the model's own refusal score, fit every direction, score every one."""
    from experiments import console
    from refusal_nn import files, selection
    from refusal_nn.directions import choose

    parts = causes.parts(args)
    with cli.stage(args, NAME).run(settings(args)) as run:
        model = causes.load(args)
        origin = capture.full_origin(args, model, parts)
        tokens = selection.tokens_of_refusal(model, causes.words(args))
        kept, counts = {}, []
        for name, most in (("fit", None), ("val", args.val)):
            kept[name], found = selection.filter_by_refusal(model, parts[name], tokens, most)
            counts += [{"split": name, **row} for row in found]
        summary = {"model": args.model, "n_layers": model.n_layers, "counts": counts}
        summary |= {"refusal_tokens": [model.lm.tokenizer.decode([t]) for t in tokens]}
        summary |= {"verdict": None, "reasons": lacking(counts), "chosen": None}
        if summary["reasons"]:
            summary["verdict"] = "UNTESTABLE"
        else:
            directions = selection.fit_directions(model, kept["fit"])
            quick = causes.load_for_text(args)
            summary |= {"scored_in": str(quick.dtype), "text_kl": quick.self_test.get("text_kl")}
            rounds = selection.scorers(quick, kept["val"], tokens, args.seed)
            rows = scored(rounds, directions, run.journal(quick.where))
            summary["chosen"] = choose(rows, model.n_layers)
            files.write_csv(run.folder / "candidates.csv", rows)
            _write_directions(run.folder, directions, origin, model, summary)
        run.finish(summary, origin)
    console.say(f"wrote {run.folder}")


def lacking(counts: Sequence[Mapping[str, object]]) -> list[str]:
    """In words, which splits hold too few prompts that the model refuses or answers."""
    return [
        f"{row['found']} {LACKING[row['class']]} in {row['split']}, of {row['n']} asked: fewer "
        f"than {LEAST[row['split']]}"
        for row in counts
        if row["found"] < LEAST[row["split"]]
    ]


def scored(
    rounds: Sequence[Scorer],
    directions: Tensor,
    journal: Journal,
    layers: Sequence[int] | None = None,
) -> list[causes.Row]:
    """A row per place of the layers, by default all, as grid.two_rounds has them."""
    from refusal_nn import grid

    def ask(number: int, places: Sequence[grid.Place]) -> Iterator[causes.Row]:
        by_layer: dict[int, list[int]] = {}
        for layer, pos in places:
            by_layer.setdefault(layer, []).append(pos)
        what = f"{NAME}, round {number + 1}"
        with _told(rounds[number], what, len(places)) as advance:
            for layer, positions in by_layer.items():
                unit = f"{number} {layer} {positions}"
                new = unit not in journal.done
                if new:
                    vectors = {pos: directions[layer, pos] for pos in positions}
                    journal.add(unit, rounds[number].rows(layer, vectors))
                advance(len(positions), new)
                yield from journal.done[unit]

    n_layers, count = directions.shape[:2]
    wanted = range(n_layers) if layers is None else layers
    places = [(layer, pos) for layer in wanted for pos in range(-count, 0)]
    totals = {label: sum(len(r.texts[label]) for r in rounds) for label in rounds[0].texts}
    return grid.two_rounds(places, ask, totals, n_layers)


@contextlib.contextmanager
def _told(scorer: Scorer, what: str, count: int) -> Iterator[Callable[[int, bool], None]]:
    """Say how much a round is, how long it will take after its first step, and show progress. What
    is yielded is told of each step's directions, and whether they were worked on just now."""
    from experiments.console import say

    prompts = sum(len(texts) * (1 + (label == "harmless")) for label, texts in scorer.texts.items())
    say(f"{what}: {count} directions, {prompts} passes each")
    begun, done, timed = time.perf_counter(), 0, False

    def step(directions: int, new: bool) -> None:
        nonlocal done, timed
        done += directions
        if new and not timed:
            left = (time.perf_counter() - begun) * (count - done) / directions
            say(f"{what}: about {left / 60:.1f} minutes more")
        timed = timed or new
        advance(directions)

    with progress.bar(what, count) as advance:
        yield step


def _write_directions(
    folder: Path, directions: Tensor, origin: causes.Row, model: TracedModel, summary: causes.Row
) -> None:
    """directions.safetensors, every layer and position; direction.safetensors, the chosen one."""
    from refusal_nn.saved_directions import adds_positions, write_directions, write_sites

    layers, positions = range(len(directions)), range(-directions.shape[1], 0)
    n = {row["class"]: row["used"] for row in summary["counts"] if row["split"] == "fit"}
    about = {"n": n, "fitted_on": "refused harmful and answered harmless prompts"}
    about |= {"write_sites": write_sites(model), "adds_positions": adds_positions(model)}
    about |= {"adapter": model.adapter is not None}

    def write(name: str, rows: Tensor, layers: Sequence[int], positions: Sequence[int]) -> None:
        tokens = [model.template.token(pos) for pos in positions]
        where = {"layers": layers, "positions": positions, "tokens": tokens}
        write_directions(folder / f"{name}.safetensors", rows, origin, **where, **about)

    write("directions", directions, layers, positions)
    chosen = summary["chosen"]
    if chosen:
        layer, pos = chosen["layer"], chosen["pos"]
        about["scores"] = {k: chosen[k] for k in ("ablated", "added", "kl")}
        write("direction", directions[layer, pos][None], [layer], [pos])


def draw(args: argparse.Namespace) -> None:
    """The grid of candidates."""
    from refusal_nn import causal_figures, figures, files

    done, folder = cli.stage(args, NAME), cli.figures_folder(args)
    about = done.about()
    if about["verdict"] is None:
        rows = files.read_csv(done.artefact("candidates.csv"))
        figures.save(causal_figures.candidates(rows, about["chosen"]), folder / "candidates.png")
    files.write_json(folder / f"{NAME}.json", {"from": str(done.folder)})


def show(args: argparse.Namespace) -> None:
    from experiments import printed_causes

    printed_causes.show_select(cli.finished(args, NAME), cli.figures_folder(args))


main = causes.main(NAME, __doc__, settings, compute=compute, draw=draw, show=show)

if __name__ == "__main__":
    cli.run(main)
