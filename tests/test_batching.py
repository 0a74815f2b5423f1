"""Batches hold every row once, within the budget, and mask what is padding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_nn.batching import batched, common_prefix, plan

rows = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=30), min_size=1, max_size=20)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_a_plan_holds_every_row_once_and_keeps_to_the_budget(lengths, budget):
    batches = plan(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(rows, st.integers(1, 4))
def test_the_common_prefix_is_shared_and_leaves_what_is_to_be_kept(ids, keep):
    prefix = common_prefix(ids, keep)
    assert all(row[: len(prefix)] == prefix for row in ids)
    assert all(len(row) - len(prefix) >= min(keep, len(row)) or not prefix for row in ids)
    longer = len(prefix) + 1
    if all(len(row) - longer >= keep for row in ids):
        assert len({tuple(row[:longer]) for row in ids}) > 1


@given(rows, st.integers(4, 60))
def test_padding_is_left_masked_and_positions_count_real_tokens(ids, budget):
    prefix = common_prefix(ids, 1)
    seen = []
    for batch in batched(ids, prefix, budget, pad_id=0):
        seen += batch.rows
        for i, row in enumerate(batch.rows):
            rest = ids[row][len(prefix) :]
            gap = batch.input_ids.shape[1] - len(rest)
            assert batch.input_ids[i].tolist() == [0] * gap + rest
            assert batch.attention_mask[i].sum() == len(ids[row])
            expected = torch.arange(len(prefix), len(ids[row]))
            assert torch.equal(batch.position_ids[i, gap:], expected)
    assert sorted(seen) == list(range(len(ids)))
