"""What the doctor says of a model, sound or not."""

import re

import pytest

from experiments import causes, cli, doctor
from refusal_nn.errors import ModelError
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
    model, tokenizer = build("qwen2")
    model.save_pretrained(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no chat template"):
        told(f"--model={tmp_path}")
    title, *rows = told.said
    assert title.endswith("cannot be used")
    assert rows[0] == ("architecture", "qwen2, 6 layers, d_model 64", "row in FAMILIES")
    assert rows[1][:2] == ("template", "cannot be used")


def test_files_that_cannot_be_read_are_told_too(told, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError):
        told(f"--model={tmp_path}")
    assert told.said[1][:2] == ("files", "cannot be read")
