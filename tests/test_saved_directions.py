"""A direction's file says what it is, and is read back only for the model that it was fitted on."""

import dataclasses
import json
import sys
from argparse import Namespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from experiments import select, validate
from experiments.capture import full_origin
from refusal_nn import DirectionalAblation, load_direction
from refusal_nn.errors import InputError
from refusal_nn.loading import load
from refusal_nn.saved_directions import write_directions
from refusal_nn.tracing import capture

ROWS = torch.arange(1.0, 25.0).reshape(3, 2, 4)  # (layer, pos, d_model)


def origin(**changed):
    names = ("model", "revision", "dtype", "seed", "template_sha256", "prompt_set_sha256")
    return dict.fromkeys(names, "x") | changed


@pytest.fixture
def file(tmp_path):
    def write(rows=ROWS, **changed):
        path = tmp_path / "d.safetensors"
        where = {"layers": [0, 1, 2], "positions": [-2, -1], "tokens": ["a", "b"], "n": {}}
        write_directions(path, rows, origin(**changed), **where)
        return path

    return write


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("pos", [-2, -1])
def test_each_layer_and_position_is_found_where_it_was_put(file, layer, pos):
    found = load_direction(file(), layer=layer, pos=pos)
    assert torch.equal(found.vector, ROWS[layer, pos])
    assert (found.layer, found.pos) == (layer, pos)
    assert found.basis.shape == (1, 4)
    assert float(found.basis.norm()) == pytest.approx(1)


@pytest.mark.parametrize(
    "where", [{}, {"layer": 3, "pos": -1}, {"layer": 0}, {"layer": 0, "pos": 0}]
)
def test_of_several_one_must_be_named_that_is_there(file, where):
    with pytest.raises(InputError, match=r"choose (layer|pos)= from"):
        load_direction(file(), **where)


def test_a_place_without_a_direction_is_refused(file):
    with pytest.raises(InputError, match="no direction at layer 1, pos -1"):
        load_direction(file(ROWS * torch.tensor([1.0, 0, 1])[:, None, None]), layer=1, pos=-1)


@pytest.mark.parametrize(
    "tensors",
    [{"directions": ROWS}, {"direction": ROWS[0, 0]}, {"basis": ROWS[:, 0].clone()}],
)
def test_a_file_without_our_metadata_is_refused_with_what_reads_it(tmp_path, tensors):
    save_file(tensors, tmp_path / "d.safetensors")
    with pytest.raises(InputError, match="no direction file of format 1"):
        load_direction(tmp_path / "d.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a tensor", b"\x80\x04."])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, content):
    (tmp_path / "d.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_direction(tmp_path / "d.safetensors")


@pytest.mark.parametrize("name", ["layers", "positions", "d_model", "model", "revision"])
@pytest.mark.parametrize("spoilt", [None, "0"])
def test_metadata_that_lack_what_reading_needs_are_refused(file, tiny_llama, name, spoilt):
    with safe_open(file(), "pt") as held:
        about = json.loads(held.metadata()["refusal_nn"])
    about |= {name: {} if name in ("model", "revision") else spoilt}
    path = file().with_name("spoilt.safetensors")
    save_file({"directions": ROWS}, path, {"refusal_nn": json.dumps(about)})
    with pytest.raises(InputError, match="no direction file of format 1"):
        load_direction(path, tiny_llama, layer=0, pos=-1)


def test_a_number_alone_is_no_direction(file):
    with safe_open(file(), "pt") as held:
        about = held.metadata()
    path = file().with_name("scalar.safetensors")
    save_file({"directions": torch.tensor(1.0)}, path, about)
    with pytest.raises(InputError, match="not what its metadata says"):
        load_direction(path, layer=0, pos=-1)


def test_a_tensor_that_is_not_what_its_metadata_says_is_refused(file):
    with pytest.raises(InputError, match="not what its metadata says"):
        load_direction(file(ROWS[:2]), layer=0, pos=-1)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """validate on tiny-llama."""
    results = tmp_path_factory.mktemp("validated")
    with pytest.MonkeyPatch.context() as patch:
        options = ["--model", "tiny-llama", "--n", "40", "--dtype", "float32", "--device", "cpu"]
        options += ["--results", str(results), "--permutations", "100"]
        patch.setattr(sys, "argv", ["validate", *options])
        validate.main()
    return results / "tiny-llama" / "validate" / "validated_directions.safetensors"


def test_a_validated_direction_says_what_it_is_and_is_taken_out_of_its_own_model(
    validated, tiny_llama
):
    found = load_direction(validated, tiny_llama, layer=3)
    about = found.about
    assert (about["model"], about["site"], about["split"]) == ("tiny-llama", "resid_post", "fit")
    assert about["revision"] == tiny_llama.revision
    assert about["tokens"] == [tiny_llama.template.token(-1)]
    assert about["template_sha256"] == tiny_llama.template.hash
    assert about["n"] == {"harmful": 20, "harmless": 20}
    assert {"torch", "nnsight", "transformers"} <= set(about["packages"])
    left = capture(tiny_llama, ["Name a river"], (-1,), DirectionalAblation(found.basis)).at(-1)
    share = (left[3] @ found.basis[0]).abs() / left[3].norm()
    assert float(share) < 1e-5


def test_another_model_of_equal_width_and_one_of_another_width_are_refused(
    validated, file, tiny_llama
):
    with pytest.raises(InputError, match=r"was fitted on tiny-llama .* this is tiny-mistral"):
        load_direction(validated, load("tiny-mistral", dtype="float32"), layer=3)
    with pytest.raises(InputError, match="4 wide at layer 0; tiny-llama has width"):
        load_direction(file(), tiny_llama, layer=0, pos=-1)


@pytest.mark.parametrize(("name", "ok"), [("tiny-llama", True), ("another", False)])
def test_a_revision_that_says_nothing_binds_to_the_name(file, tiny_llama, name, ok):
    vague = dataclasses.replace(tiny_llama, revision="unknown")
    rows = torch.ones(3, 2, tiny_llama.d_model)
    path = file(rows, model=name, revision="unknown")
    if ok:
        assert load_direction(path, vague, layer=0, pos=-1).layer == 0
    else:
        with pytest.raises(InputError, match="was fitted on another"):
            load_direction(path, vague, layer=0, pos=-1)


def test_select_writes_every_direction_and_the_chosen_one_alone(tmp_path, tiny_llama):
    summary = {"chosen": {"layer": 2, "pos": -2, "ablated": -1.0, "added": 1.0, "kl": 0.01}}
    summary["counts"] = [
        {"class": c, "split": s, "used": 5} for c in ("harmful", "harmless") for s in ("fit", "val")
    ]
    rows = torch.randn(4, 3, tiny_llama.d_model)
    args = Namespace(model="tiny-llama", backend="local", seed=0)
    about = full_origin(args, tiny_llama, {"fit": []})
    select._write_directions(tmp_path, rows, about, tiny_llama, summary)
    one = load_direction(tmp_path / "direction.safetensors", tiny_llama)
    assert torch.equal(one.vector, rows[2, -2])
    assert (one.layer, one.pos, one.about["scores"]["kl"]) == (2, -2, 0.01)
    assert one.about["n"] == {"harmful": 5, "harmless": 5}
    every = load_direction(tmp_path / "directions.safetensors", tiny_llama, layer=2, pos=-2)
    assert torch.equal(every.vector, one.vector)
