"""What other tools are given does there what it does here. What lm-evaluation-harness and
steering-vectors do with a file is written out; `make test-exports` has it done by themselves.
Parquet is read back by pyarrow."""

import json

import pytest
import torch
from chats import CHATML, saved
from pyarrow import parquet
from safetensors.torch import load_file
from test_journal import room
from test_sites import UNKNOWN

from experiments import export
from refusal_nn import exports
from refusal_nn.errors import DiskError, InputError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation
from refusal_nn.loading import load
from refusal_nn.published import read_vectors
from refusal_nn.saved_directions import (
    adds_positions,
    load_direction,
    write_directions,
    write_sites,
)
from refusal_nn.tracing import next_token_logits

PROMPT = "Name a river in Africa"


def direction_of(model, folder, layer=2, **more):
    """A random direction of a model, as select writes it."""
    rows = torch.randn(1, model.d_model, generator=torch.Generator().manual_seed(1))
    names = ("model", "revision", "dtype", "seed", "template_sha256", "prompt_set_sha256")
    about = dict.fromkeys(names, "x") | {"model": model.name, "revision": model.revision}
    where = {"layers": [layer], "positions": [-1], "tokens": ["x"], "n": {}}
    said = {"write_sites": write_sites(model), "adds_positions": adds_positions(model)}
    more = said | {"adapter": False} | more
    write_directions(folder / export.DIRECTIONS, rows, about, **where, **more)
    return load_direction(folder / export.DIRECTIONS, model)


def hooked_logits(model, hooks):
    """Next-token logits with functions of the outputs of modules below the base model."""
    modules, handles = dict(model.module.base_model.named_modules()), []
    for name, change in hooks.items():

        def hook(module, given, output, change=change):
            first = output[0] if isinstance(output, tuple) else output
            changed = change(first)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handles.append(modules[name].register_forward_hook(hook))
    try:
        with torch.no_grad():
            return model.module(torch.tensor(model.template.render([PROMPT]))).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()


def clamp(steering_vector, steering_coefficient, action, bias, head_index):
    """What the harness documents of action clamp, without bias."""
    assert (action, bias, head_index) == ("clamp", None, None)
    unit = steering_vector / steering_vector.norm()

    def change(acts):
        return acts - (acts * unit).sum(-1, keepdim=True) * unit + steering_coefficient * unit

    return change


def ablates_alike(model, folder):
    """Whether the harness's file does there what directional ablation does here."""
    direction = direction_of(model, folder)
    exports.write_steered(folder / "steered.pt", direction)
    held = torch.load(folder / "steered.pt", weights_only=True)
    assert len(held) == 1 + 2 * model.n_layers
    there = hooked_logits(model, {site: clamp(**what) for site, what in held.items()})
    here = next_token_logits(model, [PROMPT], DirectionalAblation(direction.basis))
    clean = next_token_logits(model, [PROMPT])
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)
    return (here - clean).abs().max() > 100 * (there - here).abs().max()


def test_the_harness_file_ablates_as_directional_ablation_does(tiny_model, tmp_path):
    assert ablates_alike(tiny_model, tmp_path)


def test_beside_an_image_encoder_the_names_go_on_from_the_base_model(tmp_path):
    model = load(saved(tmp_path, CHATML, *UNKNOWN["gemma3"]), dtype="float32")
    assert write_sites(model)[0] == "language_model.embed_tokens"
    assert ablates_alike(model, tmp_path)
    assert read_vectors(tmp_path / "steered.pt").at_position()[0].shape == (1, model.d_model)


def test_where_positions_are_added_to_the_embedding_their_write_is_named_too(tmp_path):
    model = load(saved(tmp_path, CHATML, *UNKNOWN["gpt2"]), dtype="float32")
    direction = direction_of(model, tmp_path)
    held = exports.transformer_lens(direction, model.n_layers)["ablate_at"]
    assert held[:3] == ["hook_embed", "hook_pos_embed", "blocks.0.hook_attn_out"]
    # What they add up to is one write here.
    assert len(held) == 1 + len(write_sites(model))
    assert ablates_alike(model, tmp_path)


def test_a_disk_that_takes_nothing_ends_in_words(tiny_llama, tmp_path):
    direction = direction_of(tiny_llama, tmp_path)
    with (
        room(100),
        pytest.raises(DiskError, match=r"could not write .*steered\.pt: File too large"),
    ):
        exports.write_steered(tmp_path / "steered.pt", direction)
    assert not list(tmp_path.glob("*steered.pt*"))


@pytest.mark.parametrize("lacking", ["write_sites", "adds_positions"])
def test_a_direction_of_an_older_version_is_said_to_be_one(tiny_llama, tmp_path, lacking):
    direction = direction_of(tiny_llama, tmp_path)
    del direction.about[lacking]
    made = {"write_sites": exports.steered, "adds_positions": exports.transformer_lens}[lacking]
    layers = [tiny_llama.n_layers] * (lacking == "adds_positions")
    with pytest.raises(InputError, match=f"{lacking}, an older .*: run `make select` again"):
        made(direction, *layers)


def test_steering_vectors_adds_it_to_the_output_of_its_block(tiny_model, tmp_path):
    direction = direction_of(tiny_model, tmp_path)
    exports.write_layers(tmp_path / "v.safetensors", direction)
    held = {int(k): v for k, v in load_file(tmp_path / "v.safetensors").items()}
    assert list(held) == [direction.layer]
    hooks = {f"layers.{i}": lambda acts, v=v: acts + v.reshape(1, 1, -1) for i, v in held.items()}
    addition = ActivationAddition(direction.vector, direction.layer)
    here = next_token_logits(tiny_model, [PROMPT], addition)
    torch.testing.assert_close(hooked_logits(tiny_model, hooks), here, atol=1e-4, rtol=1e-4)


def test_transformer_lens_names_every_write_and_the_place_that_was_read(tiny_llama, tmp_path):
    direction = direction_of(tiny_llama, tmp_path)
    exports.write_transformer_lens(tmp_path / "t.json", direction, tiny_llama.n_layers)
    held = json.loads((tmp_path / "t.json").read_text())
    assert held["read_at"] == "blocks.2.hook_resid_post"
    assert held["ablate_at"][:3] == [
        "hook_embed",
        "blocks.0.hook_attn_out",
        "blocks.0.hook_mlp_out",
    ]
    assert len(held["ablate_at"]) == len(write_sites(tiny_llama))
    torch.testing.assert_close(torch.tensor(held["direction"]), direction.basis[0])


@pytest.mark.parametrize("name", ["steered.pt", "steering_vector.safetensors", "lens.json"])
def test_what_is_exported_is_read_back_as_the_same_direction(tiny_llama, tmp_path, name):
    direction = direction_of(tiny_llama, tmp_path)
    if name == "steered.pt":
        exports.write_steered(tmp_path / name, direction)
    elif name == "lens.json":
        exports.write_transformer_lens(tmp_path / name, direction, tiny_llama.n_layers)
    else:
        exports.write_layers(tmp_path / name, direction)
    found = read_vectors(tmp_path / name)
    [row] = torch.from_numpy(found.at_position()[0]).float()
    torch.testing.assert_close(row / row.norm(), direction.basis[0])
    if name != "steered.pt":  # which is the same for every place
        assert (found.layers, found.site) == ((direction.layer,), "resid_post")
        assert found.positions == (direction.pos,)


def test_a_direction_of_a_model_with_an_adapter_is_not_taken_to_the_plain_weights(
    tiny_llama, tmp_path
):
    direction = direction_of(tiny_llama, tmp_path, adapter=True)
    for made in (exports.steered, exports.layer_activations):
        with pytest.raises(InputError, match="has an adapter"):
            made(direction)
    with pytest.raises(InputError, match="has an adapter"):
        exports.transformer_lens(direction, 3)


ROWS = [
    {"id": "a", "arm": "best", "split": "test", "label": "compliance", "compliance": 1.0}
    | {"coherence": 1, "nll": None, "text": "SECRET", "evidence": "SECRET", "sha256": "SECRET"},
    {"id": "b", "arm": "best", "split": "test", "label": "refusal", "compliance": 0}
    | {"coherence": 0.5, "nll": 1.25, "tokens": 7},
]


def test_a_judged_sample_names_its_prompt_by_id_and_holds_no_text():
    found = list(exports.samples(ROWS))
    assert "SECRET" not in json.dumps(found)
    assert [s["id"] for s in found] == ["best:test:a", "best:test:b"]
    assert found[1]["scores"]["compliance"] == {"value": 0, "answer": "refusal"}
    assert found[1]["metadata"]["nll"] == 1.25


def test_a_mean_is_of_one_arm_and_one_class_and_says_of_how_many():
    rows = [
        {"arm": arm, "split": "test", "class": kind, "compliance": value}
        for arm, kind, value in (
            ("best", "harmful", 1),
            ("best", "harmful", 0.5),
            ("best", "harmless", 0),
            ("random 0", "harmful", 0),
        )
    ]
    assert exports.means(rows) == {
        "best, test, harmful": (0.75, 2),
        "best, test, harmless": (0.0, 1),
        "random 0, test, harmful": (0.0, 1),
    }
    assert exports.means([{"arm": "clean", "set": "scary", "compliance": 1}]) == {
        "clean, scary": (1.0, 1)
    }


def test_a_sample_id_is_no_path():
    [sample] = exports.samples([ROWS[0] | {"id": "../../x"}])
    assert sample["id"] == "best:test:.._.._x"


def test_parquet_gives_the_rows_back_with_nulls_where_nothing_was_measured(tmp_path):
    exports.write_parquet(tmp_path / "rows.parquet", ROWS)
    held = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    names = {name for row in ROWS for name in row}
    assert held == [{name: row.get(name) for name in held[0]} for row in ROWS]
    assert set(held[0]) == names


def test_a_column_of_mixed_kinds_becomes_text(tmp_path):
    exports.write_parquet(tmp_path / "x.parquet", [{"a": 1, "b": ""}, {"a": "one", "b": 2.5}])
    held = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert held == [{"a": "1", "b": None}, {"a": "one", "b": 2.5}]


def test_what_is_not_installed_is_said_with_its_remedy():
    with pytest.raises(InputError, match=r"no_such_package is not installed.*\.\[inspect\]"):
        exports.require("no_such_package", "inspect")
