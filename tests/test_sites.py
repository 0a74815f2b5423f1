"""The write sites of an architecture without a row are found and verified, or it is refused."""

import dataclasses

import pytest
import torch
from chats import CHATML, saved

from refusal_nn import sites
from refusal_nn.errors import ModelError
from refusal_nn.loading import load
from refusal_nn.models import FAMILIES, PRE_NORM, SANDWICH_NORM, Family
from refusal_nn.tiny import SIZES, TINY, build

UNKNOWN = {
    # A number times each write; LayerNorm; another name for the experts.
    "granite": ("GraniteConfig", {"residual_multiplier": 0.3, "embedding_multiplier": 5.0}),
    "starcoder2": ("Starcoder2Config", {}),
    "granitemoe": ("GraniteMoeConfig", {}),
    # Attention and MLP beside each other; in Phi one dropout module serves both.
    "cohere": ("CohereConfig", {}),
    "phi": ("PhiConfig", {}),
    # Sandwich norms by other names.
    "glm4": ("Glm4Config", {"head_dim": 16}),
    # Blocks that return tuples, positions added to the embedding, other names for everything.
    "gpt2": ("GPT2Config", {}),
    "mixtral": ("MixtralConfig", {}),
    # A decoder beside an image encoder that has as many blocks.
    "gemma3": (
        "Gemma3Config",
        {
            "head_dim": 16,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": SIZES["num_hidden_layers"],
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
    ),
}
EXPECTED = {
    "granitemoe": Family(mlp_write="block_sparse_moe"),
    "glm4": Family(attention_write="post_self_attn_layernorm", mlp_write="post_mlp_layernorm"),
    "gemma3": dataclasses.replace(SANDWICH_NORM, base="model.language_model"),
    "gpt2": Family("transformer", "h", "drop", "attn", "mlp"),
}


@pytest.mark.parametrize("family", sorted(TINY))
def test_what_is_inferred_of_a_known_family_is_its_row(family):
    model = build(family)[0].eval()
    assert sites.infer(family, model) == FAMILIES[model.config.model_type]


@pytest.mark.parametrize("kind", sorted(UNKNOWN))
def test_an_architecture_without_a_row_is_found_and_verified(kind, tmp_path):
    assert kind not in FAMILIES
    model = load(saved(tmp_path, CHATML, *UNKNOWN[kind]), dtype="float32")
    assert model.family == EXPECTED.get(kind, PRE_NORM)
    assert model.self_test["ablation_residue"] < 1e-6
    assert model.self_test["batch_error"] < 1e-4
    assert any("write sites were inferred" in note for note in model.notes)


@pytest.mark.parametrize(
    ("kind", "config_class", "extra", "reason"),
    [
        # Both sublayers give the stream itself, with what they add already in it.
        ("bloom", "BloomConfig", {}, "in block 0 no two modules sum to"),
        # Blocks of two kinds.
        (
            "jamba",
            "JambaConfig",
            {"use_mamba_kernels": False},
            "give: mamba and feed_forward in block 0, self_attn and feed_forward in block 4",
        ),
        # Positions are added outside of any module.
        ("opt", "OPTConfig", {"word_embed_proj_dim": 64}, "gives what enters block 0"),
    ],
)
def test_what_cannot_be_inferred_is_refused_with_the_row_to_add(
    kind, config_class, extra, reason, tmp_path
):
    with pytest.raises(ModelError, match=reason) as caught:
        load(saved(tmp_path, CHATML, config_class, extra), dtype="float32")
    assert f'"{kind}": Family(base=…, blocks=…' in str(caught.value)


def test_a_recurrent_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="keeps no cache of keys and values"):
        load(saved(tmp_path, CHATML, "RecurrentGemmaConfig", {}), dtype="float32")


@pytest.mark.parametrize("block", [0, 1, 5])
@pytest.mark.parametrize(("dtype", "by"), [(torch.float32, 1e4), (torch.bfloat16, 300)])
def test_a_write_that_drowns_the_other_one_in_its_block_hides_no_site(block, dtype, by):
    # One massive coordinate: within what rounding may leave, it explains its block alone.
    model = build("llama", dtype)[0].eval()
    model.model.layers[block].mlp.down_proj.weight.data[7] *= by
    assert sites.infer("llama", model) == PRE_NORM


def test_one_module_that_writes_nothing_of_its_own_is_not_a_site():
    # Without any contribution of its MLP, a block has one write, and no pair is made up.
    model = build("llama")[0].eval()
    for block in model.model.layers:
        block.mlp.down_proj.weight.data.zero_()
    with pytest.raises(ModelError, match="no two modules"):
        sites.infer("llama", model)


def test_wrongly_inferred_sites_do_not_pass_the_self_test(tmp_path, monkeypatch):
    wrong = dataclasses.replace(PRE_NORM, attention_write="input_layernorm")
    monkeypatch.setattr(sites, "infer", lambda name, model: wrong)
    with pytest.raises(ModelError, match=r"of the stream along it, from block 0 on .* write sites"):
        load(saved(tmp_path, CHATML, *UNKNOWN["granite"]), dtype="float32")
