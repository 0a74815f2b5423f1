"""Directions found one after another: each is the difference in means that is left when those
before it are ablated everywhere."""

from types import SimpleNamespace

import pytest
import torch

from refusal_nn import selection
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.prompts import Prompt, load_prompts
from refusal_nn.selection import fit_directions, iterate_directions
from refusal_nn.tracing import capture

LAYER, POS = 3, -2


@pytest.fixture(scope="module")
def few():
    rows = load_prompts()
    return {label: [p for p in rows if p.label == label][:9] for label in ("harmful", "harmless")}


@pytest.fixture(scope="module")
def found(tiny_llama, few):
    return iterate_directions(tiny_llama, few, LAYER, POS, 4)


def left(model, prompts, before, layer=LAYER, pos=POS):
    """Unit difference in means while the rows of `before` are ablated, by one capture of each
    class."""
    edit = DirectionalAblation(before) if len(before) else None
    means = [
        capture(model, [p.prompt for p in prompts[label]], (pos,), edit).states[layer, :, 0].mean(0)
        for label in ("harmful", "harmless")
    ]
    return torch.nn.functional.normalize(means[0] - means[1], dim=0)


def test_rows_are_orthonormal(found, tiny_llama):
    assert found.shape == (4, tiny_llama.d_model)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found @ found.T, torch.eye(4), atol=1e-6, rtol=0)


def test_the_first_is_the_difference_in_means_towards_harmful(found, tiny_llama, few):
    torch.testing.assert_close(found[0], left(tiny_llama, few, []), atol=1e-5, rtol=0)
    raw = fit_directions(tiny_llama, few)[LAYER, POS]
    torch.testing.assert_close(found[0], raw / raw.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_each_later_one_is_the_difference_that_ablating_the_earlier_leaves(
    found, tiny_llama, few, k
):
    by_hand = left(tiny_llama, few, found[:k])
    assert (found[:k] @ by_hand).abs().max() < 1e-4
    torch.testing.assert_close(found[k], by_hand, atol=1e-3, rtol=0)
    # It is not what was there before: projecting the clean difference leaves nothing.
    assert (found[k] @ left(tiny_llama, few, [])).abs() < 1e-5


def test_fewer_rounds_give_the_first_of_the_same_rows(found, tiny_llama, few):
    torch.testing.assert_close(iterate_directions(tiny_llama, few, LAYER, POS, 2), found[:2])


def test_another_place_has_directions_of_its_own(found, tiny_llama, few):
    other = iterate_directions(tiny_llama, few, 1, -1, 1)
    torch.testing.assert_close(other[0], left(tiny_llama, few, [], 1, -1), atol=1e-5, rtol=0)
    assert (other[0] @ found[0]).abs() < 0.99


def test_classes_that_do_not_differ_leave_nothing(tiny_llama, few):
    same = [Prompt(f"t{i}", p.prompt, "harmless") for i, p in enumerate(few["harmful"])]
    none = iterate_directions(tiny_llama, few | {"harmless": same}, LAYER, POS, 3)
    assert none.shape == (0, tiny_llama.d_model)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_it_stops_when_nothing_is_left(tiny_llama, few, monkeypatch, scale):
    """A stream whose classes differ along two directions, the second of which the first hides."""
    base = scale * torch.randn(9, tiny_llama.d_model, generator=torch.Generator().manual_seed(0))
    first, second = torch.linalg.qr(base[:2].T).Q.T

    def stream(model, texts, positions, edit):
        hidden = base.clone()
        if texts == [p.prompt for p in few["harmful"]]:
            hidden += scale * (first if edit is None else first + 0.1 * second)
        if edit is not None:
            hidden -= (hidden @ edit.basis.T) @ edit.basis
        return SimpleNamespace(at=lambda pos: hidden[None])

    monkeypatch.setattr(selection, "capture", stream)
    found = iterate_directions(tiny_llama, few, 0, -1, 5)
    torch.testing.assert_close(found, torch.stack([first, second]), atol=1e-5, rtol=0)
