"""Tables of models and of decoder families, and what a loaded model is to the rest of the package.

Differences between models are rows here. A new model is a row in MODELS; a new architecture a row
in FAMILIES.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from refusal_nn.errors import ModelError

if TYPE_CHECKING:
    from nnsight import TransformersModel

    from refusal_nn.interventions import Intervention
    from refusal_nn.services import Service
    from refusal_nn.templates import Template


@dataclass(frozen=True)
class Family:
    """Where a decoder keeps its blocks, and what each block adds to the residual stream; names of
    modules.

    attention_write, mlp_write: inside a block, the modules whose outputs are added to the stream.
    """

    base: str = "model"
    blocks: str = "layers"
    embedding: str = "embed_tokens"
    attention_write: str = "self_attn"
    mlp_write: str = "mlp"


PRE_NORM = Family()
# These normalise each sublayer's output before adding it: the norm is the write, not the attention
# or the MLP.
SANDWICH_NORM = Family(
    attention_write="post_attention_layernorm", mlp_write="post_feedforward_layernorm"
)

FAMILIES = {  # by config.model_type
    "llama": PRE_NORM,
    "mistral": PRE_NORM,
    "qwen2": PRE_NORM,
    "qwen3": PRE_NORM,
    "gemma": PRE_NORM,
    "phi3": PRE_NORM,
    "gemma2": SANDWICH_NORM,
    "gemma3_text": SANDWICH_NORM,
    "olmo2": SANDWICH_NORM,
}


def family_of(name: str, config: object) -> Family:
    """The family of a model whose weights are elsewhere, by its configuration. Raises ModelError
    where it is not known."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"{name} is a {config.model_type} model; known are {', '.join(FAMILIES)}; others are "
            "inferred where the weights are on this machine (BACKEND=local); or add a row to "
            "FAMILIES in refusal_nn/models.py, and the self-test on load will check it"
        )
    return family


# "I cannot", "As an AI" (Arditi et al. 2024, for Qwen), and how other models begin.
REFUSAL_WORDS = ("I", "As", "Sorry", "Unfortunately")


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from: a Hub repository (with a revision if pinned), or embedded (from the
    package index).

    qwen1: a Qwen-1 model, read as Qwen2's architecture (qwen1.py). dtype: what DTYPE=auto means for
    it, where that is known. refusal_words: first words of its
    refusals, of which the refusal score sums the probabilities.
    """

    repo: str
    revision: str | None = None
    embedded: bool = False
    qwen1: bool = False
    dtype: str = "auto"
    refusal_words: tuple[str, ...] = REFUSAL_WORDS


MODELS = {
    # In bfloat16 its early directions turn by up to 37 degrees (matched pairs, n=64): massive
    # coordinates, small differences.
    "smollm2": ModelSpec("HuggingFaceTB/SmolLM2-135M-Instruct", embedded=True, dtype="float32"),
    "qwen": ModelSpec("Qwen/Qwen2.5-1.5B-Instruct"),
    "qwen3": ModelSpec("Qwen/Qwen3-1.7B"),
    "qwen1": ModelSpec("Qwen/Qwen-1_8B-Chat", qwen1=True, refusal_words=("I", "As")),
    "gemma2b": ModelSpec("google/gemma-2b-it", refusal_words=("I",)),
    "phi3": ModelSpec("microsoft/Phi-3-mini-4k-instruct"),
    "llama1b": ModelSpec("meta-llama/Llama-3.2-1B-Instruct", refusal_words=("I",)),
    "llama3b": ModelSpec("meta-llama/Llama-3.2-3B-Instruct", refusal_words=("I",)),
    "llama8b": ModelSpec("meta-llama/Llama-3.1-8B-Instruct", refusal_words=("I",)),
}


def alias_of(name: str) -> str | None:
    """The alias of a model that is called by it or by its Hub repository; None without a row."""
    by_repo = {spec.repo: alias for alias, spec in MODELS.items()}
    return name if name in MODELS else by_repo.get(name)


def spec_of(name: str) -> ModelSpec:
    """The row of a model that is called by its alias or by its Hub repository; of any other what
    holds without one."""
    return MODELS.get(alias_of(name), ModelSpec(name))


@dataclass(frozen=True)
class TracedModel:
    """A chat model ready to be traced: nnsight's envoy tree, its template and its family.

    lm: the model, weights frozen. revision: commit, or sha256 of a weights file. stop_ids: tokens
    that end a turn. notes: what loading chose, in words. shares_prefix: whether a cached prefix
    gives the logits that a whole prompt gives. self_test: what loading measured. adapter: what is
    part of the model though not of its weights, applied in every trace before anything else.
    refusal_words: first words of its refusals. service: where its passes run; None: here.
    """

    name: str
    lm: TransformersModel
    template: Template
    family: Family
    revision: str
    stop_ids: frozenset[int]
    notes: tuple[str, ...] = ()
    shares_prefix: bool = True
    self_test: dict[str, object] = field(default_factory=dict)
    service: Service | None = None
    adapter: Intervention | None = None
    refusal_words: tuple[str, ...] = REFUSAL_WORDS

    def anew(self) -> TracedModel:
        """The same, for what is timed or may have changed: on a server no earlier answer is taken
        up."""
        return self if self.service is None else replace(self, service=self.service.anew())

    def shipped(self) -> TracedModel:
        """What passes need of it, without what need not travel."""
        return replace(self, template=None, notes=(), self_test={}, service=None, refusal_words=())

    @property
    def module(self) -> torch.nn.Module:
        return self.lm._module

    @property
    def base(self) -> object:
        """Envoy of the decoder below the head."""
        return functools.reduce(getattr, self.family.base.split("."), self.lm)

    @property
    def blocks(self) -> object:
        """Envoys of the decoder blocks, in forward order."""
        return getattr(self.base, self.family.blocks)

    @property
    def embedding(self) -> object:
        return getattr(self.base, self.family.embedding)

    @property
    def text_config(self) -> object:
        """The decoder's configuration, of a model that also sees images its part."""
        return self.module.config.get_text_config()

    @property
    def n_layers(self) -> int:
        return self.text_config.num_hidden_layers

    @property
    def d_model(self) -> int:
        return self.text_config.hidden_size

    @property
    def window(self) -> float:
        """Tokens that the shortest-sighted attention layer can see."""
        return getattr(self.text_config, "sliding_window", None) or float("inf")

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype if self.service is None else self.service.dtype

    @property
    def device(self) -> torch.device:
        """Where tensors of ours go: on a server, passes take them to the weights."""
        return self.module.device if self.service is None else torch.device("cpu")

    @property
    def device_type(self) -> str:
        """What kind of device passes run on."""
        return self.device.type if self.service is None else self.service.device

    @property
    def where(self) -> dict[str, str]:
        """Which weights run, in what precision, on what."""
        here = {"revision": self.revision, "dtype": str(self.dtype), "device": self.device_type}
        return here | ({} if self.service is None else self.service.where)

    @property
    def gigabytes(self) -> float:
        return sum(p.numel() * p.element_size() for p in self.module.parameters()) / 1e9
