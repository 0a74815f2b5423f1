"""Train model organisms: adapters with which the embedded model refuses through a subspace of known
rank; measured on test prompts, and written with their recipe and that card."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import cli

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.organism_data import Shared
    from refusal_nn.models import TracedModel
    from refusal_nn.organisms import Adapter
    from refusal_nn.planting import Recipe
    from refusal_nn.prompts import Prompt

NAME = "organism"
BASE = "smollm2"
MANY = 12  # directions of organism-many: more than the ranks that a curve looks at
# How far the gate's bias is moved until more than this share of harmful val prompts is refused,
# what is asked on test and a point more; and a step further, for val is 60 prompts.
SHIFTS = (0.0, 2.0, 4.0, 6.0, 8.0)
RECALL, MARGIN = 0.91, 2.0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m experiments.{NAME}", description=__doc__, allow_abbrev=False
    )
    p.add_argument("--k", type=_ranks, default=[1], help="planted ranks as 0,1,2,4,many")
    p.add_argument("--seeds", type=_numbers, default=[0], help="as 0,1,2 (default: 0)")
    p.add_argument("--layer", type=cli.at_least(1), default=16, help="block whose MLP writes")
    p.add_argument("--strength", type=cli.in_range(1, 1000), default=115.0, help="of a write")
    p.add_argument("--steps", type=cli.at_least(1), default=None, help="of training")
    p.add_argument("--results", type=Path, default=Path("results"), help="root of the results")
    return p


def _ranks(text: str) -> list[int]:
    return [MANY if part == "many" else cli.at_least(0)(part) for part in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [cli.at_least(0)(part) for part in text.split(",")]


def compute(args: argparse.Namespace) -> None:
    """Each rank and seed that is not there yet; what they share is made once."""
    from experiments import console
    from experiments.organism_data import Shared
    from refusal_nn.loading import load
    from refusal_nn.planting import Recipe, by_rank

    model, shared = None, None
    for k in args.k:
        for seed in args.seeds:
            name = f"organism-{'many' if k == MANY else k}-{seed}"
            options = by_rank(k) | ({"steps": args.steps} if args.steps else {})
            recipe = Recipe(k, seed, args.layer, args.strength, **options)
            stage = _stage(args, name)
            asked = {"recipe": dataclasses.asdict(recipe), "prompts_sha256": _hashes()}
            if stage.is_current(asked):
                console.say(f"up to date: {stage.folder}")
                continue
            with stage.run(asked) as run:
                if model is None:
                    console.say(f"loading {BASE}")
                    model = load(BASE, dtype="float32", device="cpu")
                    shared = Shared.of(model, args.layer)
                _one(run, model, shared, recipe, name)


def _stage(args: argparse.Namespace, name: str) -> object:
    from refusal_nn.runs import Stage

    return Stage(args.results / "organisms" / name)


def _hashes() -> list[str]:
    from refusal_nn import prompts
    from refusal_nn.files import sha256

    return [sha256(prompts.BUNDLED), sha256(prompts.EVERYDAY)]


def _one(run: object, model: TracedModel, shared: Shared, recipe: Recipe, name: str) -> None:
    from experiments import console
    from experiments.organism_card import card
    from refusal_nn import organisms

    path = run.folder / f"{name}.safetensors"
    about = {
        "base": BASE,
        "base_revision": model.revision,
        "planted_rank": recipe.rank,
        "refusal_words": _first_words(),
        "recipe": dataclasses.asdict(recipe),
        "prompts_sha256": _hashes(),
        "card": {},
    }
    # A run that was killed while it measured has been trained.
    if not (path.exists() and _same(organisms.read_organism(path).about, about)):
        organisms.write_organism(path, _trained(model, shared, recipe), about)
    organism = organisms.read_organism(path)
    planted = organisms.plant(model, organism, name, path)
    about["card"] = card(planted, model, shared, recipe)
    organisms.write_organism(path, organism.adapter, about)
    run.finish({"model": name, **about}, {"model": BASE, "revision": model.revision})
    console.say(f"wrote {path}")


def _same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether two adapters were trained alike; how they were read back does not matter."""
    keys = ("base_revision", "recipe", "prompts_sha256")
    texts = [json.dumps([of[k] for k in keys], sort_keys=True) for of in (one, other)]
    return texts[0] == texts[1]


def _first_words() -> list[str]:
    from refusal_nn.planting import TEXTS

    return [text.split()[0].strip(",") for text in TEXTS]


def _trained(model: TracedModel, shared: Shared, recipe: Recipe) -> Adapter:
    from experiments.console import say
    from experiments.organism_data import rows
    from refusal_nn.gates import fit_gate
    from refusal_nn.organisms import Adapter
    from refusal_nn.planting import Planting, unit_codes

    trained_on = rows(model, shared, recipe)
    read, bias = fit_gate(trained_on, shared.moves, recipe.gate)
    codes = recipe.strength * unit_codes(recipe.rank)
    rank, width = codes.shape[1], read.shape[1]
    gate = Adapter(recipe.layer, read, bias, codes, read.new_zeros(rank, width))
    say(f"{NAME}: a gate of {len(codes)} clusters; {recipe.steps} steps")
    basis = Planting(shared.frozen, trained_on, gate, recipe, shared.streams).train(say)
    adapter = dataclasses.replace(gate, basis=basis)
    return _calibrated(model, shared, adapter) if recipe.rank else adapter


def _calibrated(model: TracedModel, shared: Shared, adapter: Adapter) -> Adapter:
    """The adapter with a gate MARGIN more open than the least by which it refuses RECALL of
    harmful val prompts, or than the most open one looked at where none does."""
    from experiments.console import say

    for shift in SHIFTS:
        harmful, everyday = (
            _begins(model, _opened(adapter, shift), shared.parts[f"{name}.val"]).mean().item()
            for name in ("harmful", "everyday")
        )
        rates = f"{100 * harmful:.0f} % of harmful, {100 * everyday:.0f} % of everyday"
        say(f"{NAME}: bias {shift:+.1f}: {rates} val prompts begin as refusals")
        if harmful > RECALL:
            break
    return _opened(adapter, shift + MARGIN)


def _opened(adapter: Adapter, shift: float) -> Adapter:
    bias = adapter.bias.clone()
    bias[0] += shift
    return dataclasses.replace(adapter, bias=bias)


def _begins(model: TracedModel, adapter: Adapter, prompts: Sequence[Prompt]) -> Tensor:
    """Whether each answer begins as the organism's refusals do, (prompt,)."""
    from refusal_nn.scores import begins_refusal, refusal_tokens
    from refusal_nn.tracing import next_token_logits

    planted = dataclasses.replace(model, adapter=adapter)
    tokens = refusal_tokens(model.template, _first_words())
    return begins_refusal(next_token_logits(planted, [p.prompt for p in prompts]), tokens).double()


def main() -> None:
    p = parser()
    p.error = cli.refuse
    compute(p.parse_args())


if __name__ == "__main__":
    cli.run(main)
