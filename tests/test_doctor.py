"""What the doctor says of a model, sound or not."""

import re

import pytest
import torch

from experiments import causes, cli, doctor
from refusal_nn.errors import ModelError
from refusal_nn.models import MODELS, ModelSpec, alias_of
from refusal_nn.organisms import Adapter, write_organism
from refusal_nn.tiny import build


@pytest.fixture
def told(monkeypatch):
    """Its table, line by line, with what was printed beside it."""
    said = []
    from experiments import console

    monkeypatch.setattr(console, "sheet", lambda title, columns, rows: said.extend([title, *rows]))
    monkeypatch.setattr(console, "say", lambda line: None)

    def ask(*options):
        said.clear()
        causes._loaded.clear()
        p = cli.parser(doctor.NAME, doctor.__doc__)
        p.add_argument("--refusal-words", default="")
        try:
            doctor.compute(p.parse_args(["--dtype=float32", *options]))
        finally:
            causes._loaded.clear()
        return said[0], {what: (found, how) for what, found, how in said[1:] if what}

    ask.said = said
    return ask


def test_a_sound_model_is_told_in_full(told):
    title, lines = told("--model=tiny-gemma2")
    assert title == "tiny-gemma2: can be used"
    assert lines["architecture"] == ("Gemma2ForCausalLM (gemma2)", "its config")
    assert lines["size"][0].startswith("6 layers, d_model 64, 0.3 M parameters, 0.00 GB")
    assert lines["blocks"] == ("model.layers", "row in FAMILIES")
    writes = "embed_tokens, post_attention_layernorm, post_feedforward_layernorm"
    assert lines["write sites"] == (writes, "row in FAMILIES; verified by ablation")
    assert lines["rendered prompt"][0].startswith("'<|begin|><|header|>user<|end_header|>")
    assert lines["after the instruction"][0].startswith("-8: '<|eot|>' 5  -7: '<|header|>' 3")
    assert lines["BOS"] == ("'<|begin|>' 2, not a turn marker", "1 in this prompt")
    assert lines["pad"][0] == "'<|eot|>' 5, which also ends an answer"
    assert lines["system prompt"] == ("none", "template")
    assert lines["precision"] == ("float32 on cpu", "exact")
    assert re.match(r"'I' \d+$", lines["a refusal begins"][0])
    assert float(lines["left after ablation"][0].split()[0]) < 1e-6
    assert lines["strength 0"][0] == "changes no bit"


def test_options_reach_the_model_and_are_told(told):
    _, lines = told("--model=tiny-qwen2", "--system=Be kind.", "--refusal-words=I,xyzzy")
    assert lines["system prompt"][0] == "given, '<|im_start|>system\\nBe kind.<|im_end|>\\n'"
    assert lines["a refusal begins"][1] == "REFUSAL_WORDS="


def test_of_a_model_that_cannot_be_used_what_is_known_is_told(told, tmp_path):
    with pytest.raises(ModelError, match="no chat template"):
        told(f"--model={saved(tmp_path, template=False)}")
    title, *rows = told.said
    assert title.endswith("cannot be used")
    assert rows[0] == ("architecture", "qwen2, 6 layers, d_model 64", "row in FAMILIES")
    assert rows[1][:2] == ("template", "cannot be used")


def test_files_that_cannot_be_read_are_told_too(told, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError):
        told(f"--model={tmp_path}")
    assert told.said[1][:2] == ("files", "cannot be read")


def saved(folder, template=True):
    """A tiny model in a folder, with its chat template or without."""
    model, tokenizer = build("qwen2")
    if not template:
        tokenizer.chat_template = None
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return str(folder)


def adapter_for(base, path):
    """An adapter's file that was trained on a model."""
    tensors = torch.zeros(2, 64), torch.zeros(2), torch.zeros(1, 1), torch.eye(64)[:1]
    about = {"base": base, "base_revision": "x", "refusal_words": ["I"], "planted_rank": 1}
    write_organism(path, Adapter(2, *tensors), about)
    return str(path)


def test_weights_without_their_folder_are_said_to_be_no_adapter(told, tmp_path):
    saved(tmp_path)
    with pytest.raises(ModelError, match="is no adapter of this package"):
        told(f"--model={tmp_path / 'model.safetensors'}")
    _, (what, found, how) = told.said
    assert (what, found) == ("files", "cannot be read")
    assert "is no adapter of this package" in how


def test_of_an_adapter_whose_base_cannot_be_used_the_base_is_told(told, tmp_path):
    path = adapter_for(saved(tmp_path / "base", template=False), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="no chat template"):
        told(f"--model={path}")
    _, *rows = told.said
    assert rows[0] == ("adapter", f"of {tmp_path / 'base'}", "its file")
    assert rows[1][0] == "architecture"
    assert rows[2][:2] == ("template", "cannot be used")


def test_of_an_adapter_whose_base_is_not_there_the_reason_is_told(told, tmp_path):
    path = adapter_for(str(tmp_path / "gone.gguf"), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"gone\.gguf: no such file"):
        told(f"--model={path}")
    assert told.said[1][:2] == ("files", "cannot be read")


def test_a_narrow_precision_is_told_of_early_layers_and_of_late_ones(told):
    _, lines = told("--model=tiny-llama", "--dtype=bfloat16")
    found, how = lines["precision"]
    assert found == "bfloat16 on cpu"
    number = r"(0\.\d{4}|1\.0000)"
    words = (
        rf"at least {number}, from a quarter of the depth on {number}, measured \(n=\d+ prompts\)"
    )
    early, late = re.search(words, how).groups()
    assert early <= late


def test_a_model_of_whose_refusal_words_none_is_a_token_cannot_be_used_for_all(told):
    title, lines = told("--model=tiny-qwen2", "--refusal-words=xyzzy,plugh")
    assert title == (
        "tiny-qwen2: can be used for validate and similarity only, for no word of "
        "REFUSAL_WORDS=xyzzy,plugh is one token that begins an answer"
    )
    assert lines["a refusal begins"][0] == "by none of its words"


def test_a_model_is_known_by_its_repository_as_by_its_alias(told, tmp_path, monkeypatch):
    repo = saved(tmp_path)
    monkeypatch.setitem(MODELS, "mine", ModelSpec(repo, refusal_words=("I",)))
    for name in ("mine", repo):
        assert alias_of(name) == "mine"
        _, lines = told(f"--model={name}")
        found, how = lines["a refusal begins"]
        assert found.startswith("'I' ")
        assert how == "known of it"
    assert lines["alias"] == ("mine", "row in MODELS of this repository")
    assert alias_of("google/gemma-2b-it") == "gemma2b"
    assert alias_of("some/other") is None
