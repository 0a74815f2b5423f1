"""Models that many tests share, built once."""

import pytest
import torch

from refusal_nn.loading import load
from refusal_nn.prompts import load_prompts
from refusal_nn.tiny import TINY

# Two threads wait for each other by spinning: beside any other job the suite would take many times
# as long, and tiny models gain nothing from a second one.
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=sorted(TINY))
def tiny_model(request):
    """A tiny random model of each family in turn, in float32."""
    return load(f"tiny-{request.param}", dtype="float32")


@pytest.fixture(scope="session")
def tiny_llama():
    return load("tiny-llama", dtype="float32")


@pytest.fixture(scope="session")
def smollm2():
    """The embedded real model, in float32."""
    return load("smollm2")


@pytest.fixture(scope="session")
def texts():
    """Bundled prompts of very unlike lengths."""
    return sorted((p.prompt for p in load_prompts()), key=len)[::56]
