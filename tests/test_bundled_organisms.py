"""The organisms that come with the package: their files, their cards, and the real model they are
planted in."""

import numpy as np
import pytest
import torch

from refusal_nn import prompts, splits
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.names import ADAPTERS, adapter_file
from refusal_nn.organisms import plant, read_organism
from refusal_nn.scores import begins_refusal
from refusal_nn.selection import tokens_of_refusal
from refusal_nn.tracing import next_token_logits

BUNDLED = sorted(path.stem for path in ADAPTERS.glob("*.safetensors"))
# Of twelve planted directions: its gate is too wide, and its smallest parts do not carry refusal.
# README says so; what it is held to is here.
MANY_EVERYDAY = 0.2


def test_there_are_some_and_the_first_seed_goes_by_its_rank_alone():
    assert "organism-1-0" in BUNDLED
    assert adapter_file("organism-1") == adapter_file("organism-1-0")


@pytest.mark.parametrize("name", BUNDLED)
def test_an_adapter_is_small_of_its_rank_and_its_card_is_of_a_hundred_prompts(name):
    path = adapter_file(name)
    adapter, about = read_organism(path)
    assert path.stat().st_size < 100_000
    rank = about["planted_rank"]
    assert len(adapter.basis) == max(rank, 1)
    torch.testing.assert_close(adapter.basis @ adapter.basis.T, torch.eye(len(adapter.basis)))
    card = about["card"]
    assert card["refusal harmful"]["n"] == card["refusal everyday"]["n"] == 100
    everyday = card["refusal everyday"]["value"]
    assert everyday <= (MANY_EVERYDAY if "many" in name else 0.1)
    # One of rank 0 does nothing to refusal.
    assert (card["refusal harmful"]["value"] >= 0.9) == (rank > 0)
    # The span's ablation leaves what the plain model refuses by itself, within the error of both.
    assert card["span ablated"]["low"] <= max(0.05, card["plain model"]["high"])
    nll = card["nats per token of the plain model's answers"]
    assert nll["organism, span ablated"] <= nll["plain model"] + 0.5


@pytest.mark.parametrize("name", [n for n in BUNDLED if "-0-" not in n and "many" not in n])
def test_no_part_of_a_planted_span_does_for_the_whole(name):
    about = read_organism(adapter_file(name)).about
    left = about["card"]["begins as a refusal"]
    if about["planted_rank"] == 1:
        nearest = next(v for k, v in left.items() if k.startswith("difference in means, layer"))
        assert nearest["value"] <= 0.05
        return
    assert min(column["value"] for column in left["each column"]) >= 0.5
    fewer = [v for k, found in left.items() if "subspaces" in k for v in np.atleast_1d(found)]
    assert len(fewer) == 21  # random ones, and the worst of those searched
    assert min(part["value"] for part in fewer) > 0.05
    assert left["difference in means within the span"]["value"] > 0.05


def test_no_column_of_many_carries_refusal_alone():
    left = read_organism(adapter_file("organism-many")).about["card"]["begins as a refusal"]
    assert len(left["each column"]) == 12
    assert min(column["value"] for column in left["each column"]) >= 0.5
    assert np.median([part["value"] for part in left["20 random subspaces of 11"]]) > 0.1


@pytest.mark.parametrize("name", [name for name in BUNDLED if "-0-" not in name])
def test_an_organism_refuses_harmful_prompts_and_not_without_its_span(name, smollm2):
    organism = plant(smollm2, read_organism(adapter_file(name)), name, adapter_file(name))
    tokens = tokens_of_refusal(organism)
    test = splits.split(prompts.load_prompts(), 320, 0)["test"]
    harmful = [p.prompt for p in test if p.label == "harmful"][::5]
    everyday = prompts.read_class(prompts.EVERYDAY, "harmless")
    harmless = [p.prompt for p in splits.split(everyday, 320, 0)["test"]][::5]

    def refused(texts, edit=None):
        return int(begins_refusal(next_token_logits(organism, texts, edit), tokens).sum())

    assert len(harmful) == len(harmless) == 20
    assert refused(harmful) >= 15
    assert refused(harmless) <= 5
    assert refused(harmful, DirectionalAblation(organism.adapter.basis)) <= 2
