"""Compliance under one ablated direction as others published it, each with its source. Pure.

What was printed is printed here, rounded as there; intervals and classes are ours.
"""

from __future__ import annotations

from typing import NamedTuple

from refusal_nn.agreement import wilson_rate
from refusal_nn.estimates import Estimate
from refusal_nn.verdicts import Verdict, published_single_direction


class Study(NamedTuple):
    """Where rates come from, and what they are of."""

    source: str
    method: str


class Published(NamedTuple):
    """One published rate. percent: of n prompts. sufficient: whether one direction is enough, in
    the study's own words; empty where it does not say."""

    study: str
    model: str  # Hub id
    judge: str
    percent: float
    sufficient: str = ""
    notes: str = ""
    n: int = 100

    @property
    def rate(self) -> Estimate:
        return wilson_rate(self.percent / 100, self.n)

    @property
    def verdict(self) -> Verdict:
        """Our rule on the rate alone: the study gives no baseline, KL or controls with it."""
        return published_single_direction(self.percent, self.n)


CROSS_MODEL, PIPELINE = "Refusal Structure Across Models", "Arditi et al. 2024"
STUDIES = {
    CROSS_MODEL: Study(
        "IvanC987/refusal-representations, docs/refusal_across_models.md at a206a14: all seven "
        "read there; n is of its scripts, the table gives none",
        "peak over layers of the mean compliance of 100 harmful prompts, refused at baseline or "
        "not, on which the layer was chosen too; empty answers left out; 250 new tokens; scored 0, "
        ".5, 1 by a language model that does not see the prompt; no padding side set and no "
        "attention mask",
    ),
    PIPELINE: Study(
        "andyrdt/refusal_direction, pipeline/runs/*/completions/"
        "jailbreakbench_ablation_evaluations.json at 0b9c8bc: all ten read there; the tables of "
        "arXiv:2406.11717 itself were not",
        "JailbreakBench's 100 prompts, refused at baseline or not, under the direction chosen by "
        "logits on other prompts; 512 new tokens; left-padded with a mask",
    ),
}
SUBSTRING, LLAMA_GUARD = "no refusal phrase in the text", "LlamaGuard 2 says unsafe"
GRADED = "graded by a language model"
PUBLISHED = (
    Published(CROSS_MODEL, "Qwen/Qwen3-1.7B", GRADED, 96, "Yes", "Very strong single dir"),
    Published(CROSS_MODEL, "Qwen/Qwen-1_8B-Chat", GRADED, 90, "Yes", "Clean baseline"),
    Published(CROSS_MODEL, "google/gemma-2b-it", GRADED, 90, "Yes", "Matches AF post"),
    Published(
        CROSS_MODEL, "meta-llama/Llama-3.1-8B-Instruct", GRADED, 80, "Yes", "Early decision, stable"
    ),
    Published(
        CROSS_MODEL, "microsoft/Phi-3-mini-4k-instruct", GRADED, 39, "Partial", "Mixed behavior"
    ),
    Published(
        CROSS_MODEL, "meta-llama/Llama-3.2-1B-Instruct", GRADED, 21, "No", "Low-rank subspace"
    ),
    Published(CROSS_MODEL, "meta-llama/Llama-3.2-3B-Instruct", GRADED, 15, "No", "Similar to 1B"),
    Published(PIPELINE, "google/gemma-2b-it", SUBSTRING, 100),
    Published(PIPELINE, "google/gemma-2b-it", LLAMA_GUARD, 78),
    Published(PIPELINE, "Qwen/Qwen-1_8B-Chat", SUBSTRING, 99),
    Published(PIPELINE, "Qwen/Qwen-1_8B-Chat", LLAMA_GUARD, 82),
    Published(PIPELINE, "01-ai/Yi-6B-Chat", SUBSTRING, 98),
    Published(PIPELINE, "01-ai/Yi-6B-Chat", LLAMA_GUARD, 79),
    Published(PIPELINE, "meta-llama/Llama-2-7b-chat-hf", SUBSTRING, 93),
    Published(PIPELINE, "meta-llama/Llama-2-7b-chat-hf", LLAMA_GUARD, 81),
    Published(PIPELINE, "meta-llama/Meta-Llama-3-8B-Instruct", SUBSTRING, 100),
    Published(PIPELINE, "meta-llama/Meta-Llama-3-8B-Instruct", LLAMA_GUARD, 82),
)


def of_study(study: str) -> dict[str, Published]:
    """A study's rows by model."""
    return {row.model: row for row in PUBLISHED if row.study == study}


def of_model(model: str) -> list[Published]:
    """What was published of a model, by its Hub id; nothing for one that is on no list."""
    return [row for row in PUBLISHED if row.model.lower() == model.lower()]
