"""From token ids to batches: sorted by length, bounded in tokens, left-padded, the prefix common to
all cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of the prompt list and their inputs; the mask also covers the cached prefix, the ids do
    not."""

    rows: list[int]
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor

    def part(self, which: slice) -> Batch:
        """Some of its rows, padded as they were."""
        tensors = (self.input_ids, self.attention_mask, self.position_ids)
        return Batch(self.rows[which], *(values[which] for values in tensors))

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        # Ids alone would be read with an all-ones mask and wrong positions: always the three
        # together.
        return {
            "input_ids": self.input_ids.to(device),
            "attention_mask": self.attention_mask.to(device),
            "position_ids": self.position_ids.to(device),
        }


def common_prefix(ids: Sequence[Sequence[int]], keep: int) -> list[int]:
    """Tokens with which every row begins, leaving at least `keep` tokens (one at least) of every
    row."""
    longest = min(map(len, ids)) - max(keep, 1)
    length = 0
    while length < longest and len({row[length] for row in ids}) == 1:
        length += 1
    return list(ids[0][:length])


def plan(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Rows in order of length, cut into batches of at most token_budget tokens after padding (one
    row at least)."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[row] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def batched(
    ids: Sequence[Sequence[int]], prefix: Sequence[int], token_budget: int, pad_id: int
) -> Iterator[Batch]:
    """Left-padded batches of what follows the prefix."""
    rest = [list(row[len(prefix) :]) for row in ids]
    for rows in plan([len(r) for r in rest], token_budget):
        width = max(len(rest[row]) for row in rows)
        gaps = [width - len(rest[row]) for row in rows]
        input_ids = torch.tensor(
            [[pad_id] * gap + rest[row] for row, gap in zip(rows, gaps, strict=True)]
        )
        mask = torch.tensor([[1] * len(prefix) + [0] * gap + [1] * (width - gap) for gap in gaps])
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)[:, len(prefix) :]
        yield Batch(rows, input_ids, mask, position_ids)
