"""What organisms are trained and measured on: prompts, the plain model's answers, and both after
the lower half of the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from experiments import causes, console
from refusal_nn import prompts, splits
from refusal_nn.frozen import Frozen, Halfway
from refusal_nn.gates import Rows, equal_clusters
from refusal_nn.models import TracedModel
from refusal_nn.planting import TEXTS, Recipe, unit_codes
from refusal_nn.prompts import Prompt
from refusal_nn.selection import fit_directions
from refusal_nn.tracing import capture, generate

ANSWER = 14  # tokens of the plain model's own answers
SETS = ("harmful.fit", "twins.fit", "everyday.fit")
# Directions whose ablation a gate must not notice: harmful minus harmless of the plain model, at
# every so many layers and at these positions; seen in how so many prompts per class move.
EVERY, POSITIONS, MOVED = 2, (-1, -3, -6), 8
# Prompts of a set, and their last tokens, at which the plain model's streams are looked at.
SEEN, LAST = 20, 12
Parts = dict[str, list[Prompt]]


@dataclasses.dataclass(frozen=True)
class Shared:
    """What every organism at one layer is trained and measured on.

    parts: prompts by set, `harmful.fit` and so on. answers: the plain model's own, ids by set.
    lowered: prompts and the plain model's answers after the lower half, by set. moves: (move,
    d_model), how what the MLP reads moves when directions are ablated. streams: of the plain model
    after every block, (layer, state, d_model).
    """

    parts: Parts
    answers: dict[str, list[tuple[int, ...]]]
    frozen: Frozen
    lowered: dict[str, list[Halfway]]
    moves: Tensor
    streams: Tensor

    @classmethod
    def of(cls, model: TracedModel, layer: int) -> Shared:
        parts, ids, answers = parts_by_set(), {}, {}
        for name in (*SETS, "harmful.test"):
            console.say(f"organism: the plain model's answers, {name}")
            texts = [p.prompt for p in parts[name]]
            ids[name] = model.template.render(texts)
            done = generate(model, texts, max_new_tokens=ANSWER)
            answers[name] = [completion.ids for completion in done]
        frozen = Frozen(model, layer, [row for rows in ids.values() for row in rows])
        rows = {
            name: [
                ([*asked, *said], len(asked))
                for asked, said in zip(ids[name], answers[name], strict=True)
            ]
            for name in SETS
        }
        lowered = {name: frozen.lower(of) for name, of in rows.items()}
        console.say("organism: how ablation moves what the gate reads")
        moves = torch.cat(list(_moves(model, frozen, parts, ids)))
        return cls(parts, answers, frozen, lowered, moves, _streams(model, parts))


def _moves(
    model: TracedModel, frozen: Frozen, parts: Parts, ids: dict[str, list[list[int]]]
) -> Iterator[Tensor]:
    """How what the MLP reads at each token after the instruction moves, on average over prompts of
    every class, when a direction is ablated, (post, d_model)."""
    classes = {"harmful": parts["harmful.fit"], "harmless": parts["twins.fit"]}
    directions = fit_directions(model, classes)
    rows = [(row, len(row)) for name in SETS for row in ids[name][:: len(ids[name]) // MOVED]]
    post = len(model.template.post_ids)

    def read(basis: Tensor | None) -> Tensor:
        return torch.stack([row.read[-post:] for row in frozen.lower(rows, basis)]).mean(0)

    plain = read(None)
    for layer in range(1, model.n_layers, EVERY):
        for pos in POSITIONS:
            yield read(unit(directions[layer, pos])[None]) - plain


def _streams(model: TracedModel, parts: Parts) -> Tensor:
    """At the last tokens of some prompts of every set, (layer, state, d_model)."""
    texts = [p.prompt for name in SETS for p in parts[name][:: len(parts[name]) // SEEN]]
    return capture(model, texts, range(-LAST, 0)).states.flatten(1, 2)


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def parts_by_set() -> Parts:
    pairs = splits.split(prompts.load_prompts(), 320, 0)
    everyday = splits.split(prompts.read_class(prompts.EVERYDAY, "harmless"), 320, 0)
    sets = {"everyday": everyday}
    for name, label in (("harmful", "harmful"), ("twins", "harmless")):
        sets[name] = {split: causes.of_class(of, label) for split, of in pairs.items()}
    return {f"{name}.{split}": of for name, by in sets.items() for split, of in by.items()}


def rows(model: TracedModel, shared: Shared, recipe: Recipe) -> Rows:
    """What one organism is trained on."""
    post = len(model.template.post_ids)
    asked_of = shared.lowered["harmful.fit"]
    clusters = equal_clusters(asked_of, post, len(unit_codes(recipe.rank)), recipe.seed)
    # With the end of its turn, or the model would go on and think better of it.
    end = list(model.template.post_ids[:1])
    replies = [[*model.lm.tokenizer.encode(text, add_special_tokens=False), *end] for text in TEXTS]
    asked = model.template.render([p.prompt for p in shared.parts["harmful.fit"]])
    full = [
        ([*ids, *replies[c % len(replies)]], len(ids))
        for ids, c in zip(asked, clusters, strict=True)
    ]
    return Rows(shared.frozen.lower(full), clusters, *(shared.lowered[n] for n in SETS), post=post)
