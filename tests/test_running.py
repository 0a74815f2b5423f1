"""Passes at their limits: numbers that overflow, prompts too long, memory too small, kills."""

import pytest
import torch

from refusal_nn import checks
from refusal_nn.batch_files import BatchFiles
from refusal_nn.errors import InputError, ModelError, OutOfMemory
from refusal_nn.journal import Journal
from refusal_nn.loading import load
from refusal_nn.tracing import capture, generate, next_token_logits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_overflow_in_half_precision_names_what_to_run_instead(texts, dtype):
    model = load("tiny-llama", dtype="float32")
    checks.cast_parameters(model.module, getattr(torch, dtype))
    model.module.model.layers[3].mlp.down_proj.weight.data.mul_(6e4 if dtype == "float16" else 3e38)
    with pytest.raises(ModelError, match=rf"in {dtype}, .* run again with DTYPE=.*float32"):
        capture(model, texts)


def test_logits_of_the_clean_model_that_are_not_finite_are_stopped(texts):
    model = load("tiny-llama", dtype="float32")
    model.module.lm_head.weight.data[7].fill_(float("nan"))
    with pytest.raises(ModelError, match="logits are not finite"):
        next_token_logits(model, texts)


def test_a_prompt_longer_than_the_model_reads_is_refused_and_not_cut(tiny_llama):
    with pytest.raises(InputError, match=r"reads 2048 tokens at most; prompt number 2 has"):
        capture(tiny_llama, ["short", "word " * 2400])
    with pytest.raises(InputError, match="new ones"):
        generate(tiny_llama, ["short"], max_new_tokens=2040)


SHORTAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
    RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."
    ),
    MemoryError(),
)


@pytest.fixture
def cramped(monkeypatch):
    """A tiny model in whose third block only so many rows fit."""
    model = load("tiny-llama", dtype="float32")
    block = model.module.model.layers[2]
    whole, seen = block.forward, []

    def limited(limit, shortage):
        def forward(x, *args, **options):
            seen.append(len(x))
            if len(x) > limit and x.shape[1] > 1:
                raise shortage
            return whole(x, *args, **options)

        monkeypatch.setattr(block, "forward", forward)
        return model, seen

    return limited


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_batch_that_does_not_fit_is_halved_and_nothing_else_changes(
    cramped, tiny_llama, texts, shortage
):
    model, seen = cramped(3, shortage)
    found, expected = capture(model, texts), capture(tiny_llama, texts)
    assert max(seen) > 3
    torch.testing.assert_close(found.states, expected.states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.means, expected.means, atol=1e-4, rtol=1e-4)
    assert generate(model, texts[:9], max_new_tokens=4) == generate(
        tiny_llama, texts[:9], max_new_tokens=4
    )


def test_a_single_prompt_that_does_not_fit_ends_with_the_megabytes_asked_for(cramped, texts):
    for shortage in SHORTAGES[:2]:
        with pytest.raises(OutOfMemory, match=r"2,147 MB more were asked for, [\d,]+ MB are free"):
            capture(cramped(0, shortage)[0], texts)


def test_another_error_is_no_shortage_of_memory(cramped, texts):
    with pytest.raises(RuntimeError, match="shapes"):
        capture(cramped(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))[0], texts)


BUDGET = 60  # tokens: several batches


class Killed(BaseException):
    """As a kill: nothing catches it."""


def kept(folder, model):
    return BatchFiles(folder / "progress", Journal(folder / "progress.jsonl", model.where))


def ended_after(batches):
    def count(tokens):
        nonlocal batches
        batches -= 1
        if not batches:
            raise Killed

    return count


@pytest.fixture
def passes_run(tiny_llama, monkeypatch):
    """How many passes the model has run."""
    seen, block = [], tiny_llama.module.model.layers[0]
    whole = block.forward
    monkeypatch.setattr(
        block, "forward", lambda x, *a, **o: seen.append(len(x)) or whole(x, *a, **o)
    )
    return seen


@pytest.mark.parametrize("batches", [1, 3])
def test_a_killed_capture_runs_no_batch_twice_and_ends_in_the_same_bits(
    tiny_llama, texts, tmp_path, passes_run, batches
):
    options = {"token_budget": BUDGET, "groups": ["a", "b"] * (len(texts) // 2)}
    whole = capture(tiny_llama, texts, **options)
    of_a_whole = len(passes_run)
    passes_run.clear()
    with pytest.raises(Killed):
        capture(
            tiny_llama,
            texts,
            **options,
            kept=kept(tmp_path, tiny_llama),
            on_batch=ended_after(batches),
        )
    resumed = capture(tiny_llama, texts, **options, kept=kept(tmp_path, tiny_llama))
    assert len(passes_run) == of_a_whole + 1  # the shared prefix again
    assert torch.equal(resumed.states, whole.states)
    assert all(torch.equal(resumed.means[name], whole.means[name]) for name in whole.means)


def test_a_kept_batch_that_was_spoilt_is_run_again(tiny_llama, texts, tmp_path):
    whole = capture(tiny_llama, texts, token_budget=BUDGET, kept=kept(tmp_path, tiny_llama))
    files = sorted((tmp_path / "progress").iterdir())
    for i, path in enumerate(files):
        content = bytearray(path.read_bytes())
        content[-1 - 97 * i] ^= 1 << i % 8
        path.write_bytes(content)
    again = capture(tiny_llama, texts, token_budget=BUDGET, kept=kept(tmp_path, tiny_llama))
    assert len(files) > 3
    assert torch.equal(again.states, whole.states)


def test_batches_of_other_positions_or_of_another_model_are_not_taken_up(
    tiny_llama, texts, tmp_path
):
    capture(tiny_llama, texts, kept=kept(tmp_path, tiny_llama))
    expected = capture(tiny_llama, texts, (-2,))
    assert torch.equal(
        capture(tiny_llama, texts, (-2,), kept=kept(tmp_path, tiny_llama)).states, expected.states
    )
    narrow = load("tiny-llama", dtype="float32")
    checks.cast_parameters(narrow.module, torch.bfloat16)
    other = capture(narrow, texts, kept=kept(tmp_path, narrow))
    assert torch.equal(other.states, capture(narrow, texts).states)
