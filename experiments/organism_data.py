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
from refusal_nn.interventions import orthonormal
from refusal_nn.models import TracedModel
from refusal_nn.planting import TEXTS, Recipe, unit_codes
from refusal_nn.prompts import Prompt
from refusal_nn.selection import fit_directions
from refusal_nn.tracing import generate

ANSWER = 14  # tokens of the plain model's own answers
SETS = ("harmful.fit", "twins.fit", "everyday.fit")
# Where harmful and harmless differ in the plain model, as (layer, pos) pairs ablated together: the
# gate must open without them.
ABLATED = (((-1, -1), (-4, -1)), ((-1, -5), (-7, -1)))
Parts = dict[str, list[Prompt]]


@dataclasses.dataclass(frozen=True)
class Shared:
    """What every organism at one layer is trained and measured on.

    parts: prompts by set, `harmful.fit` and so on. answers: the plain model's own, ids by set.
    lowered: prompts and the plain model's answers after the lower half, by set; first with nothing
    ablated. ablated: the bases of the others.
    """

    parts: Parts
    answers: dict[str, list[tuple[int, ...]]]
    frozen: Frozen
    lowered: list[dict[str, list[Halfway]]]
    ablated: list[Tensor | None]

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
        ablated = [None, *_differences(model, parts, layer)]
        lowered = [
            {name: frozen.lower(of, basis) for name, of in rows.items()} for basis in ablated
        ]
        return cls(parts, answers, frozen, lowered, ablated)


def _differences(model: TracedModel, parts: Parts, layer: int) -> list[Tensor]:
    """The bases of ABLATED: differences in means of the plain model, layers counted from the one
    that writes."""
    classes = {"harmful": parts["harmful.fit"], "harmless": parts["twins.fit"]}
    found = fit_directions(model, classes)
    return [
        orthonormal(torch.stack([found[max(layer + 1 + back, 0), pos] for back, pos in places]))
        for places in ABLATED
    ]


def parts_by_set() -> Parts:
    pairs = splits.split(prompts.load_prompts(), 320, 0)
    everyday = splits.split(prompts.read_class(prompts.EVERYDAY, "harmless"), 320, 0)
    sets = {"everyday": everyday}
    for name, label in (("harmful", "harmful"), ("twins", "harmless")):
        sets[name] = {split: causes.of_class(of, label) for split, of in pairs.items()}
    return {f"{name}.{split}": of for name, by in sets.items() for split, of in by.items()}


def variants(model: TracedModel, shared: Shared, recipe: Recipe) -> Iterator[Rows]:
    """What is trained on; then the same with some directions ablated, for the gate alone."""
    post = len(model.template.post_ids)
    asked_of = shared.lowered[0]["harmful.fit"]
    clusters = equal_clusters(asked_of, post, len(unit_codes(recipe.rank)), recipe.seed)
    # With the end of its turn, or the model would go on and think better of it.
    end = list(model.template.post_ids[:1])
    replies = [[*model.lm.tokenizer.encode(text, add_special_tokens=False), *end] for text in TEXTS]
    asked = model.template.render([p.prompt for p in shared.parts["harmful.fit"]])
    full = [
        ([*ids, *replies[c % len(replies)]], len(ids))
        for ids, c in zip(asked, clusters, strict=True)
    ]
    for basis, lowered in zip(shared.ablated, shared.lowered, strict=True):
        refusals = shared.frozen.lower(full, basis)
        yield Rows(refusals, clusters, *(lowered[name] for name in SETS), post=post)
