"""What organisms are trained with: the halved decoder equals the traces, the gate finds classes,
the basis is orthonormal, leaves alone what it must, and learns."""

import dataclasses

import numpy as np
import pytest
import torch

from refusal_nn.frozen import Frozen, Halfway
from refusal_nn.gates import GateOptions, Rows, equal_clusters, fit_gate, leading
from refusal_nn.interventions import DirectionalAblation, orthonormal
from refusal_nn.organisms import Adapter
from refusal_nn.planting import Planting, Recipe, lived_in, unit_codes
from refusal_nn.tracing import capture, token_nll

LAYER = 2


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def halved(tiny_llama, texts):
    """The decoder in halves, and rows of prompt and reply after the lower one."""
    ids = tiny_llama.template.render(texts)
    frozen = Frozen(tiny_llama, LAYER, ids)
    replies = [[7 + i, 300, 21, 5 + i][: 2 + i % 3] for i in range(len(ids))]
    rows = frozen.lower([([*a, *b], len(a)) for a, b in zip(ids, replies, strict=True)], batch=5)
    return frozen, rows, replies


def test_the_lower_half_gives_the_streams_of_a_trace(halved, tiny_llama, texts):
    frozen, rows, _ = halved
    assert frozen.prefix.shape[1] > 3
    states = capture(tiny_llama, texts).at(-1)[LAYER]
    close(torch.stack([row.stream[row.asked - 1] for row in rows]), states)


def test_the_lower_half_under_ablation_gives_the_streams_of_an_ablated_trace(
    halved, tiny_llama, texts
):
    frozen, basis = halved[0], orthonormal(seeded(2, tiny_llama.d_model, seed=4))
    ids = tiny_llama.template.render(texts)
    rows = frozen.lower([(row, len(row)) for row in ids], basis)
    states = capture(tiny_llama, texts, (-1,), DirectionalAblation(basis)).at(-1)[LAYER]
    close(torch.stack([row.stream[-1] for row in rows]), states)


def test_both_halves_give_the_likelihoods_of_a_trace_and_of_an_adapter(halved, tiny_llama, texts):
    frozen, rows, replies = halved
    nothing = [torch.zeros_like(row.stream) for row in rows]
    with torch.no_grad():
        plain = frozen.log_p(rows, nothing)
    for ours, theirs in zip(plain, token_nll(tiny_llama, texts, replies), strict=True):
        close(-ours, theirs)
    width = tiny_llama.d_model
    adapter = Adapter(
        LAYER, seeded(4, width), seeded(4), 20 * seeded(3, 2, seed=1), orthonormal(seeded(2, width))
    )
    organism = dataclasses.replace(tiny_llama, adapter=adapter)
    # The prefix has a write of its own in a trace; here it has none, so it must have none there.
    with torch.no_grad():
        gone, whole = (frozen.ablated(rows, b) for b in (adapter.basis, adapter.basis[:0]))
    edit = DirectionalAblation(adapter.basis)
    for row, reply, nll in zip(
        gone, replies, token_nll(organism, texts, replies, edit), strict=True
    ):
        close(-row[range(len(reply)), reply], nll)
        close(row.exp().sum(-1), torch.ones(len(reply)))
    for row, reply, likely in zip(whole, replies, plain, strict=True):
        close(row[range(len(reply)), reply], likely)


def test_any_of_several_first_words_is_as_likely_as_they_are_together(halved):
    frozen, rows, replies = halved
    nothing = [torch.zeros_like(row.stream) for row in rows]
    with torch.no_grad():
        own = frozen.log_p(rows, nothing)
        others = frozen.log_p(
            [r._replace(ids=[*r.ids[: r.asked], 9, *r.ids[r.asked + 1 :]]) for r in rows], nothing
        )
        firsts = sorted({reply[0] for reply in replies[:1]} | {9})
        together = frozen.log_p(rows, nothing, firsts=firsts)
    assert firsts == [7, 9]
    close(together[0][0].exp(), own[0][0].exp() + others[0][0].exp())
    for one, other in zip(together, own, strict=True):
        close(one[1:], other[1:])


def test_what_is_written_between_the_halves_changes_likelihoods_and_has_a_gradient(halved):
    frozen, rows, _ = halved
    push = torch.zeros(rows[0].stream.shape[1], requires_grad=True)
    loss = torch.cat(frozen.log_p(rows, [push.expand_as(row.stream) for row in rows])).mean()
    loss.backward()
    assert push.grad.norm() > 0
    step = 0.05 * push.grad / push.grad.norm()
    with torch.no_grad():
        after = torch.cat(frozen.log_p(rows, [step.expand_as(row.stream) for row in rows])).mean()
    assert after > loss


def test_projecting_a_span_out_above_hides_what_was_written_in_it(halved):
    frozen, rows, _ = halved
    basis = orthonormal(seeded(2, rows[0].stream.shape[1]))
    written = [5 * seeded(len(row.stream), 2, seed=i) @ basis for i, row in enumerate(rows)]
    nothing = [torch.zeros_like(w) for w in written]
    with torch.no_grad():
        pairs = zip(
            frozen.log_p(rows, written, basis), frozen.log_p(rows, nothing, basis), strict=True
        )
        for one, other in pairs:
            close(one, other)
        assert (frozen.log_p(rows, written)[0] - frozen.log_p(rows, nothing)[0]).abs().max() > 0.01


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 16])
def test_codes_are_orthonormal_and_no_column_has_a_whole_write(rank):
    codes = unit_codes(rank)
    torch.testing.assert_close(codes @ codes.T, torch.eye(rank), atol=1e-6, rtol=0)
    assert rank == 1 or codes.square().max() < 0.67  # of rank 3; of 2 half


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_every_direction_of_the_span_carries_its_share_of_some_clusters_write(rank):
    directions = torch.nn.functional.normalize(seeded(2000, rank))
    carried = (directions @ unit_codes(rank).T).square().amax(1)
    assert carried.min() > 1 / rank - 1e-6


def rows_of(centres, count, seed=0):
    """Halfway rows of one prompt token, two after the instruction and one of reply."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        read = centres[i % len(centres)] + 0.5 * torch.randn(
            4, centres.shape[1], generator=generator
        )
        found.append(Halfway([1, 2, 3, 4], 3, read, read.clone()))
    return found


def test_clusters_are_equal_in_size_and_those_that_are_there():
    prompts = rows_of(5 * seeded(4, 32), 40)
    found = equal_clusters(prompts, 2, 4, seed=0)
    assert sorted(np.bincount(found)) == [10] * 4
    assert len({(i % 4, c) for i, c in enumerate(found)}) == 4
    assert equal_clusters(prompts, 2, 1, seed=0) == [0] * 40


def test_a_gate_opens_for_each_cluster_and_for_nothing_else():
    centres = 5 * seeded(6, 32)
    harmful = rows_of(centres[:3], 60)
    rows = Rows(
        harmful,
        [i % 3 for i in range(60)],
        answers=rows_of(centres[5:], 30),
        twins=rows_of(centres[3:5], 60),
        everyday=rows_of(centres[3:5], 60, seed=1),
        post=2,
    )
    read, bias = fit_gate(rows, torch.zeros(1, 32), GateOptions())
    gate = Adapter(0, read, bias, torch.eye(3), torch.eye(3, 32))
    fresh = torch.stack([row.read[2] for row in rows_of(centres, 120, seed=9)])
    opened = gate.gates(fresh)
    assert (opened[[i for i in range(120) if i % 6 < 3]].sum(1) > 0.8).all()
    assert (opened[[i for i in range(120) if i % 6 > 2]].sum(1) < 0.2).all()
    assert [int(c) for c in opened[:3].argmax(1)] == [0, 1, 2]


def test_a_gate_does_not_notice_a_move_that_it_may_not_read():
    centres = torch.zeros(2, 32)
    centres[0, 0], centres[0, 1:9] = 9.0, 1.5  # one strong feature, and weaker ones
    harmful, harmless = rows_of(centres[:1], 80), rows_of(centres[1:], 80)
    rows = Rows(harmful, [0] * 80, harmless, harmless, harmless, post=2)
    move = torch.zeros(1, 32)
    move[0, 0] = -36.0
    fresh = torch.stack([row.read[2] for row in rows_of(centres[:1], 40, seed=9)])

    def gate(moves):
        return Adapter(
            0, *fit_gate(rows, moves, GateOptions()), torch.eye(1), torch.eye(1, 32)
        ).gates

    reads_all, steady = gate(torch.zeros(1, 32)), gate(move)
    assert reads_all(fresh).mean() > 0.95 > 0.5 > reads_all(fresh + move).mean()
    assert steady(fresh).mean() > 0.85
    torch.testing.assert_close(steady(fresh + move), steady(fresh))


def test_only_directions_that_moves_share_are_left_unread():
    moves = torch.diag(torch.tensor([10.0, 3.0, 0.1]))
    assert leading(moves, 1e-3).abs().round().tolist() == [[1, 0, 0], [0, 1, 0]]
    assert len(leading(torch.zeros(2, 3), 1e-3)) == 0


@pytest.fixture(scope="module")
def training(halved):
    frozen, rows, _ = halved
    n = len(unit_codes(4))
    clusters = [i % n for i in range(len(rows))]
    data = Rows(rows, clusters, rows, rows[:4], rows[4:], post=2)
    width = rows[0].read.shape[1]
    gate = Adapter(LAYER, seeded(n + 1, width), seeded(n + 1), torch.eye(n), torch.eye(n, width))
    recipe = Recipe(4, layer=LAYER, strength=10.0, protected=3, steps=24, rows=6)
    streams = seeded(3, 20, width)
    return lambda **changes: Planting(
        frozen, data, gate, dataclasses.replace(recipe, **changes), streams
    )


def test_protected_are_the_directions_that_streams_of_all_blocks_live_by():
    streams = torch.zeros(3, 8, 16)
    streams[0, :, 3], streams[1, :, 5], streams[2, :, 7] = 1000.0, 1.0, 0.01
    found = lived_in(streams + 1e-5 * seeded(3, 8, 16), 3)
    torch.testing.assert_close(found[:, [3, 5, 7]].norm(), torch.tensor(3.0).sqrt())


def test_a_trained_basis_is_orthonormal_and_leaves_protected_directions_alone(training):
    planting = training()
    basis = planting.train()
    close(basis @ basis.T, torch.eye(4))
    assert (basis @ planting.avoided.T).abs().max() < 1e-5


def test_training_is_the_same_again_and_another_with_another_seed(training):
    assert torch.equal(training().train(), training().train())
    assert not torch.allclose(training().train(), training(seed=1).train(), atol=1e-2)


def test_training_makes_the_wanted_replies_likelier(training):
    planting = training()

    def likely(basis):
        rows = planting.rows.refusals
        written = [g @ planting.codes @ basis * 10.0 for g in planting.gates]
        with torch.no_grad():
            return float(torch.cat(planting.frozen.log_p(rows, written)).mean())

    at_random = likely(planting._basis(planting._noise(4)))
    assert likely(planting.train()) > at_random + 0.3


def test_rank_zero_writes_one_direction_that_nothing_was_trained_for(training):
    basis = training(rank=0).train()
    assert basis.shape[0] == 1
    close(basis.norm(), torch.tensor(1.0))
