"""What a tokenizer lacks: a pad token, a template, a tokenizer.json."""

import json

import pytest
import torch
from chats import CHATML, saved

from refusal_nn import sources
from refusal_nn.errors import ModelError
from refusal_nn.loading import load
from refusal_nn.tiny import build
from refusal_nn.tracing import next_token_logits

VICUNA = "{% for m in messages %}USER: {{ m.content }} ASSISTANT:{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path, CHATML, "Qwen2Config", {})
    return tmp_path


def configured(folder, **changes):
    path = folder / "tokenizer_config.json"
    kept = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(kept))


def test_a_right_padding_tokenizer_without_a_pad_token_is_put_right(folder, texts):
    before = next_token_logits(load(str(folder), dtype="float32"), texts)
    configured(folder, padding_side="right", pad_token=None)
    after = next_token_logits(load(str(folder), dtype="float32"), texts)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("pad", "eos", "rows", "chosen"),
    [
        ("<|header|>", "<|im_end|>", 800, "<|header|>"),
        (None, "<|im_end|>", 2, "<|im_end|>"),
        ("<|header|>", "<|im_end|>", 2, "<|im_end|>"),
        ("<|header|>", "<|eot|>", 2, "<|im_start|>"),  # the BOS
        (None, None, 1, "<|im_start|>"),
    ],
)
def test_padding_is_with_a_special_token_that_the_model_has_a_row_for(pad, eos, rows, chosen):
    tokenizer = build("qwen2")[1]
    tokenizer.pad_token, tokenizer.eos_token = pad, eos
    sources.set_pad_token(tokenizer, rows)
    assert tokenizer.pad_token == chosen
    assert tokenizer.pad_token_id < rows


def test_a_tokenizer_with_nothing_to_pad_with_is_refused():
    tokenizer = build("qwen2")[1]
    with pytest.raises(ModelError, match=r"<\|im_end\|>, <\|im_start\|>\) .* it has 0;"):
        sources.set_pad_token(tokenizer, 0)
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.bos_token = None
    with pytest.raises(ModelError, match=r"special tokens \(none\)"):
        sources.set_pad_token(tokenizer, 800)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_model_that_brings_no_template_is_given_one_in_its_folder(folder, place):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template: .* as chat_template\.jinja"):
        load(str(folder), dtype="float32")
    if place == "chat_template.jinja":
        (folder / place).write_text(VICUNA)
    else:
        configured(folder, chat_template=VICUNA)
    model = load(str(folder), dtype="float32")
    assert model.lm.tokenizer.decode(model.template.render(["hi"])[0]) == "USER: hi ASSISTANT:"


def test_a_tokenizer_model_alone_is_told_with_what_reads_it(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):  # an empty one is made
        load(str(folder), dtype="float32")
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(ModelError, match=r"no tokenizer\.json; .*/pip install sentencepiece"):
        load(str(folder), dtype="float32")
