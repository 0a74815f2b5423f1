"""Every way of naming a model, and one clear message for every way of getting it wrong."""

import json
import time

import pytest
import torch
from huggingface_hub import errors as hub

from refusal_nn import checks, loading, sources
from refusal_nn.errors import InputError, ModelError
from refusal_nn.loading import load
from refusal_nn.models import FAMILIES, MODELS
from refusal_nn.tiny import TINY, build
from refusal_nn.tracing import next_token_logits


@pytest.fixture
def folder(tmp_path):
    model, tokenizer = build("qwen2")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_local_folder_is_the_same_model(folder, texts):
    local, tiny = load(str(folder), dtype="float32"), load("tiny-qwen2", dtype="float32")
    torch.testing.assert_close(next_token_logits(local, texts), next_token_logits(tiny, texts))
    assert local.revision.startswith("sha256:")


def test_auto_takes_float32_where_bfloat16_turns_directions(monkeypatch):
    monkeypatch.setattr(loading, "computes_bfloat16", lambda device: True)
    assert load("tiny-llama", device="cpu").dtype == torch.bfloat16
    monkeypatch.setattr(loading, "FAITHFUL", 1.1)
    model = load("tiny-llama", device="cpu")
    assert model.dtype == torch.float32
    assert "it turns directions" in model.notes[1]


def test_auto_takes_float32_where_bfloat16_fails_its_self_test(monkeypatch):
    monkeypatch.setattr(loading, "computes_bfloat16", lambda device: True)
    monkeypatch.setitem(checks.LOGITS, torch.bfloat16, 0.0)
    model = load("tiny-llama", device="cpu")
    assert model.dtype == torch.float32
    assert "bfloat16 was tried" in model.notes[1]


def test_auto_takes_float32_where_the_cpu_would_emulate_bfloat16(monkeypatch):
    monkeypatch.setattr(loading, "computes_bfloat16", lambda device: False)
    assert load("tiny-llama", device="cpu").dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "error", "word"),
    [
        ("qwenn", {}, InputError, "choose one of smollm2, qwen"),
        ("tiny-bert", {}, InputError, "tiny-llama"),
        ("a/b/c", {}, InputError, "unknown model"),
        ("tiny-llama", {"dtype": "int8"}, InputError, "choose auto, float32"),
        ("tiny-llama", {"device": "tpu"}, InputError, "choose auto"),
        ("/nowhere/model.gguf", {}, ModelError, "no such file"),
    ],
)
def test_a_bad_name_or_option_is_answered_with_what_there_is(name, options, error, word):
    with pytest.raises(error, match=word):
        load(name, **options)


def test_a_truncated_or_foreign_gguf_is_a_model_error(tmp_path):
    for name, content in (("cut.gguf", b"GGUF\x03\x00\x00\x00"), ("foreign.gguf", b"PK" * 999)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as GGUF"):
            load(str(tmp_path / name))


def test_a_folder_without_weights_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(str(tmp_path))


def hub_error(kind):
    import httpx

    return kind("said so", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (
            hub_error(hub.GatedRepoError),
            "accept its licence on https://huggingface.co/google/gemma",
        ),
        (hub_error(hub.RepositoryNotFoundError), "no such model on the Hub"),
        (hub_error(hub.RevisionNotFoundError), "revision does not exist"),
        (hub.OfflineModeIsEnabled("offline"), "unset HF_HUB_OFFLINE"),
        (OSError("We couldn't connect"), "Check the connection"),
    ],
)
def test_each_trouble_with_the_hub_has_its_own_remedy(monkeypatch, error, word):
    def fail(*arguments, **options):
        try:
            raise error
        except Exception as cause:
            raise OSError("wrapped by transformers") from cause

    monkeypatch.setattr(sources.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match=word) as caught:
        load("gemma2b", dtype="float32")
    assert len(str(caught.value).splitlines()) <= 6


def spoil(path, how):
    content = path.read_bytes()
    path.write_bytes(how(content))


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def more_blocks(folder, count):
    kinds = ["full_attention"] * count
    edited(folder, num_hidden_layers=count, layer_types=kinds, max_window_layers=count)


def quantized(folder, **how):
    edited(folder, quantization_config=how)


def template(folder, text):
    (folder / "chat_template.jinja").write_text(text)


# What is done to a good folder, and a word of the remedy.
BROKEN = {
    "weights cut off": (lambda f: spoil(f / "model.safetensors", lambda b: b[:-5000]), "fetch"),
    "a header cut off": (lambda f: spoil(f / "model.safetensors", lambda b: b[:50]), "fetch"),
    "empty weights": (lambda f: spoil(f / "model.safetensors", lambda b: b""), "fetch"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "folder with safetensors"),
    "another width": (lambda f: edited(f, hidden_size=128), "other shapes"),
    "another vocabulary": (lambda f: edited(f, vocab_size=100), "other shapes"),
    "more blocks than weights": (lambda f: more_blocks(f, 9), "lacks .* weights"),
    "fewer blocks than weights": (lambda f: more_blocks(f, 3), "does not know of"),
    "a broken configuration": (lambda f: (f / "config.json").write_text("{"), "valid JSON"),
    "awq": (lambda f: quantized(f, quant_method="awq", bits=4), "quantized with awq, and packed"),
    "bitsandbytes": (lambda f: quantized(f, load_in_4bit=True), "with bitsandbytes, .* or a .gguf"),
    "gptq": (lambda f: quantized(f, quant_method="gptq", bits=4), "quantized with gptq"),
    "compressed tensors": (
        lambda f: quantized(f, quant_method="compressed-tensors", format="pack-quantized"),
        "quantized with compressed-tensors",
    ),
    # Of a method that transformers passes over: it would draw the weights at random.
    "exl2": (
        lambda f: (quantized(f, quant_method="exl2"), more_blocks(f, 9)),
        "quantized with exl2, and packed weights are not loaded; give",
    ),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "instruction-tuned"),
    "a broken template": (lambda f: template(f, "{% for %}"), "fetch the tokenizer"),
    "a template that reaches out": (
        lambda f: template(f, "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "unsafe",
    ),
    "a template that raises": (lambda f: template(f, "{{ raise_exception('no') }}"), "no; fetch"),
    "a template without an end": (
        lambda f: template(f, "{% for i in range(10**12) %}a{% endfor %}"),
        "MAX_RANGE",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_message_with_its_remedy(folder, case, capsys):
    harm, word = BROKEN[case]
    harm(folder)
    capsys.readouterr()
    begun = time.process_time()
    with pytest.raises(ModelError, match=word) as caught:
        load(str(folder), dtype="float32")
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) == 1
    assert "".join(capsys.readouterr()) == ""
    assert time.process_time() - begun < 10


def test_weights_that_a_library_leaves_packed_are_refused(folder, monkeypatch):
    model = build("qwen2")[0]
    model.hf_quantizer = object()
    quantized(folder, quant_method="awq", bits=4)
    found = (model, {"missing_keys": [], "unexpected_keys": []})
    monkeypatch.setattr(sources.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: found)
    with pytest.raises(ModelError, match="quantized with awq, and packed weights are not"):
        load(str(folder), dtype="float32")


def test_a_hub_that_does_not_answer_is_asked_once_and_said(monkeypatch):
    monkeypatch.setattr(sources.urllib.request, "getproxies", dict)
    monkeypatch.setattr(sources.constants, "ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    begun = time.perf_counter()
    with pytest.raises(ModelError, match="Check the connection"):
        load("nobody/of-this-name", dtype="float32")
    assert time.perf_counter() - begun < 10


def test_remote_code_is_never_run(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load(str(folder))
    assert not (folder / "ran").exists()


def test_the_tables_hold_the_published_models_and_a_tiny_one_of_every_family():
    published = {"qwen", "qwen3", "gemma2b", "phi3", "llama1b", "llama3b", "llama8b"}
    assert published <= set(MODELS)
    tiny = {build(name)[0].config.model_type for name in TINY}
    assert tiny == set(FAMILIES)


def test_tiny_models_are_the_same_every_time():
    torch.manual_seed(1)
    first = build("gemma")[0].state_dict()
    torch.manual_seed(2)
    again = build("gemma")[0].state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
