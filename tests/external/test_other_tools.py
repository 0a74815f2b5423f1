"""Exports read by the tools themselves: `make test-exports`, which installs them beside ours."""

from pathlib import Path

import pytest
import torch
from inspect_ai.log import read_eval_log
from lm_eval.models.hf_steered import SteeredModel
from safetensors.torch import load_file
from steering_vectors import SteeringVector
from test_exports import ROWS, direction_of

from refusal_nn import exports, tiny
from refusal_nn.interventions import ActivationAddition, DirectionalAblation
from refusal_nn.loading import load
from refusal_nn.tracing import next_token_logits

PROMPT = ["Name a river in Africa"]


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma2"])
def made(request, tmp_path_factory):
    """A tiny model in a folder, as those tools load it, and a direction of it."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in tiny.build(request.param):
        part.save_pretrained(folder)
    model = load(str(folder), dtype="float32")
    return folder, model, direction_of(model, folder)


def ids(model):
    return torch.tensor(model.template.render(PROMPT))


def test_lm_evaluation_harness_ablates_as_we_do(made):
    folder, model, direction = made
    path = Path(folder) / "steered.pt"
    exports.write_steered(path, direction)
    loaded = {"pretrained": str(folder), "device": "cpu", "dtype": "float32"}
    there = SteeredModel(steer_path=str(path), **loaded)._model_call(ids(model))[:, -1]
    here = next_token_logits(model, PROMPT, DirectionalAblation(direction.basis))
    torch.testing.assert_close(there.float(), here, atol=1e-4, rtol=1e-4)
    assert (here - next_token_logits(model, PROMPT)).abs().max() > 0.1


def test_steering_vectors_adds_as_we_do(made):
    folder, model, direction = made
    exports.write_layers(Path(folder) / "v.safetensors", direction)
    held = load_file(Path(folder) / "v.safetensors")
    vector = SteeringVector({int(k): v for k, v in held.items()})
    with vector.apply(model.module), torch.no_grad():
        there = model.module(ids(model)).logits[:, -1]
    here = next_token_logits(model, PROMPT, ActivationAddition(direction.vector, direction.layer))
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)


def test_inspect_reads_back_every_sample_and_the_mean_of_its_arm(tmp_path):
    about = {"finished": "2026-01-01T00:00:00+0000", "stage": "sweep", "model": "m", "version": "0"}
    exports.write_inspect(tmp_path / "sweep.eval", ROWS, about)
    held = read_eval_log(str(tmp_path / "sweep.eval"))
    assert held.status == "success"
    assert [s.scores["compliance"].value for s in held.samples] == [1.0, 0]
    [score] = held.results.scores
    assert (score.name, score.scored_samples) == ("compliance, best, test", 2)
    assert (score.metrics["mean"].value, score.metrics["n"].value) == (0.5, 2)
    assert "SECRET" not in held.model_dump_json()
