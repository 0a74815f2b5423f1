"""The write sites of an architecture that FAMILIES does not know, found from one forward pass.

A decoder block adds to the residual stream what two of its modules give, a number times each. Which
two is solved for, not read from names; the self-test on load then checks the answer by ablation.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from refusal_nn.errors import ModelError
from refusal_nn.models import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 24
# The share of what a block adds that its two writes may leave unexplained, by what rounding does.
UNEXPLAINED = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def infer(name: str, model: PreTrainedModel) -> Family:
    """The family of a model of any architecture: where its blocks are, what enters the residual
    stream, and which two modules of a block write to it.

    Runs the model once on random tokens. Raises ModelError, with the row to add, where the stream
    is no sum of such writes.
    """
    base, blocks = _block_list(name, model)
    outside = {n: m for n, m in model.get_submodule(base).named_children() if n != blocks}
    inside = list(model.get_submodule(f"{base}.{blocks}"))
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    watched = outside | {
        f"{i}.{n}": m for i, block in enumerate(inside) for n, m in block.named_children()
    }
    recording = _recorded(watched), _recorded(dict(enumerate(inside)))
    with recording[0] as given, recording[1] as streams, torch.no_grad():
        output = model(input_ids=ids.to(model.device), use_cache=True)
    if getattr(output, "past_key_values", None) is None:
        raise ModelError(
            f"{name} is a {model.config.model_type} model, which keeps no cache of keys and values "
            "to generate from; only attention models can be used"
        )
    allowed = UNEXPLAINED[model.dtype]
    if len(streams) != len(inside):
        raise _refused(name, model, "not every block runs once")
    entering = [n for n in given if n in outside and _left([given[n][1]], streams[0][0]) <= allowed]
    if not entering:
        raise _refused(name, model, f"no module of {base} gives what enters block 0")
    added = [_Added(_children(given, i), *streams[i], allowed) for i in range(len(inside))]
    writes, fault = _common_pair(added)
    if fault:
        raise _refused(name, model, fault)
    return Family(base, blocks, entering[0], *writes)


def _refused(name: str, model: PreTrainedModel, fault: str) -> ModelError:
    kind = model.config.model_type
    return ModelError(
        f"{name} is a {kind} model, whose write sites are not known and could not be inferred: "
        f'{fault}. If you know them, add the row "{kind}": Family(base=…, blocks=…, embedding=…, '
        "attention_write=…, mlp_write=…) to FAMILIES in refusal_nn/models.py; the self-test on "
        "load checks it"
    )


def _block_list(name: str, model: PreTrainedModel) -> tuple[str, str]:
    """Path of the module that holds the decoder blocks, and its name for their list. It holds the
    token embedding too: so they are not those of an image encoder, nor experts in a block."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    embedding = model.get_input_embeddings()
    path = next(path for path, module in model.named_modules() if module is embedding)
    base = path.rpartition(".")[0]
    lists = [
        child
        for child, module in model.get_submodule(base).named_children()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(lists) != 1 or not base:
        fault = f"beside its token embedding are {len(lists)} lists of {depth} blocks, not one"
        raise _refused(name, model, fault)
    return base, lists[0]


@contextlib.contextmanager
def _recorded(modules: Mapping[object, nn.Module]) -> Iterator[dict[object, tuple[Tensor, Tensor]]]:
    """What each module that ran once within was given and gave, in order of the calls: (1, token,
    d_model), copied, for some blocks add in place."""
    seen: dict[object, tuple[Tensor, Tensor]] = {}
    calls: Counter[object] = Counter()

    def hook(key: object, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        given = next(iter(args), kwargs.get("hidden_states"))
        gave = output[0] if isinstance(output, tuple) else output
        if isinstance(gave, Tensor) and isinstance(given, Tensor):
            seen[key] = (_copy(given), _copy(gave))
            calls[key] += 1

    handles = [
        module.register_forward_hook(lambda *called, key=key: hook(key, *called), with_kwargs=True)
        for key, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    # One that runs again, as a dropout for both sublayers, is no site.
    for key in [key for key, count in calls.items() if count > 1]:
        del seen[key]


def _copy(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64, copy=True)


def _children(given: Mapping[str, tuple[Tensor, Tensor]], block: int) -> dict[str, Tensor]:
    """What a block's modules gave, in order of the calls."""
    start = f"{block}."
    return {n.removeprefix(start): gave for n, (_, gave) in given.items() if n.startswith(start)}


class _Added(NamedTuple):
    """What a block's modules gave, the stream before and after it, the share of their difference
    that may be left unexplained."""

    children: Mapping[str, Tensor]
    before: Tensor
    after: Tensor
    allowed: float

    def explained_by(self, *names: str) -> bool:
        """Whether what these modules gave explains together what the block adds."""
        if not {*names} <= {*self.children}:
            return False
        parts = [self.children[name] for name in names]
        return _left(parts, self.after - self.before) <= self.allowed

    def pair(self) -> tuple[str, str] | None:
        """The first two modules that explain it together, and neither alone."""
        fitting = [n for n, gave in self.children.items() if gave.shape == self.before.shape]
        own = [n for n in fitting if not self.explained_by(n)]
        return next((p for p in itertools.combinations(own, 2) if self.explained_by(*p)), None)


def _common_pair(blocks: Sequence[_Added]) -> tuple[tuple[str, ...], str]:
    """The two modules that write in every block; none, and why, where there are no such two.

    Chosen in the first block where neither suffices alone: elsewhere one may write so much, as a
    massive activation, that the other is within what rounding may leave.
    """
    pairs = [block.pair() for block in blocks]
    first = next((i for i, pair in enumerate(pairs) if pair), 0)
    for i, (block, pair) in enumerate(zip(blocks, pairs, strict=True)):
        if pairs[first] and block.explained_by(*pairs[first]):
            continue
        if pair is None:
            return (), f"in block {i} no two modules sum to what it adds to the stream"
        kinds = (f"{' and '.join(pairs[k])} in block {k}" for k in (first, i))
        return (), f"not all blocks add what the same two modules give: {', '.join(kinds)}"
    return pairs[first], ""


def _left(parts: list[Tensor], whole: Tensor) -> float:
    """The share of `whole` that no sum of the parts, a number times each, explains."""
    if any(part.shape != whole.shape for part in parts):
        return float("inf")
    columns = torch.stack([part.flatten() for part in parts], dim=1)
    weights = torch.linalg.lstsq(columns, whole.flatten()[:, None]).solution
    return float((whole.flatten() - (columns @ weights)[:, 0]).norm() / whole.norm())
