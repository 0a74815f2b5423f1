"""What in planted models misleads as real ones do, and how they are named and fed."""

import numpy as np
import pytest
import torch
from planting import N, bench, effect, ids_of, prompts, raw

from refusal_nn import planted, planted_words, sources
from refusal_nn.errors import InputError
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.loading import load
from refusal_nn.models import REFUSAL_WORDS
from refusal_nn.prompts import load_prompts, words
from refusal_nn.scores import begins_refusal, kl_divergence
from refusal_nn.selection import tokens_of_refusal
from refusal_nn.splits import near_duplicate_clusters
from refusal_nn.tracing import capture, generate, next_token_logits

PLANTED = [(1, 17), (2, 0), (2, 17), (4, 17), (12, 17)]


@pytest.mark.parametrize(("k", "seed"), PLANTED)
def test_one_coordinate_is_a_hundred_times_the_median_one(k, seed):
    size = np.abs(np.concatenate(bench(k, seed).states, 1))
    assert (size.max(2) / np.median(size, 2)).mean(1).min() >= 100  # in every layer
    assert len(np.unique(size.argmax(2))) == 1


def test_without_the_massive_trap_no_coordinate_stands_out():
    size = raw(massive=False)[2](prompts(24, 0)[1]).abs()
    assert (size.amax(2) / size.median(2).values).mean(1).max() < 20


@pytest.mark.parametrize(("punctuation", "low", "high"), [(True, 3, np.inf), (False, -1, 1)])
def test_a_closing_full_stop_is_represented_if_that_trap_is_set(punctuation, low, high):
    texts = [t.rstrip(".") for t in prompts(48, 3)[1]]
    bare, stopped = (
        raw(punctuation=punctuation)[2](texts),
        raw(punctuation=punctuation)[2]([f"{t}." for t in texts]),
    )
    along = (stopped - bare)[:, :24].mean(1)
    for layer, direction in enumerate(along):
        # Held-out prompts, and others with the full stop than without.
        a, b = stopped[layer, 24:36] @ direction, bare[layer, 36:] @ direction
        assert low < effect(a.numpy(), b.numpy()) < high


def test_the_full_stop_has_no_causal_role():
    it = bench(2, 17)
    bare = [t.rstrip(".") for t in it.harmless]
    along = capture(it.model, it.harmless).at(-1) - capture(it.model, bare).at(-1)
    direction = torch.nn.functional.normalize(along[0].mean(0), dim=0)[None]
    ablation = DirectionalAblation(direction)
    assert it.refused([f"{t}." for t in it.harmful]) == it.refused(it.harmful) == 93 / N
    assert it.refused(it.harmful, direction[None]) == [pytest.approx(93 / N)]
    clean = next_token_logits(it.model, it.harmless)
    ablated = next_token_logits(it.model, it.harmless, ablation)
    assert kl_divergence(clean, ablated).mean() < 0.01


def after_padding(model, tokenizer, texts, pads=8):
    """First words of continuations after a run of padding that no mask hides."""
    found = []
    for text in texts:
        ids = ids_of(tokenizer, text)
        ids = torch.cat([ids, torch.full((1, pads), tokenizer.pad_token_id)], 1)
        with torch.no_grad():
            found.append(tokenizer.decode(model(ids).logits[0, -1].argmax()))
    return found


@pytest.mark.parametrize("k", [1, 2, 12])
def test_padding_that_is_not_masked_raises_refusal_if_that_trap_is_set(k):
    harmless = prompts(24, 0)[1]
    for padding, share in ((True, 1.0), (False, 0.0)):
        model, tokenizer, _ = raw(k, padding=padding)
        first = after_padding(model, tokenizer, harmless)
        assert np.mean([word in REFUSAL_WORDS for word in first]) == share


def test_padding_on_the_left_with_a_mask_changes_nothing():
    it = bench(4, 17)
    texts = [*it.harmful[:12], "Describe rain", " ".join(it.harmless[:4])]
    together = next_token_logits(it.model, texts, share_prefix=False)
    alone = torch.cat([next_token_logits(it.model, [t], share_prefix=False) for t in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    batched = generate(it.model, texts, max_new_tokens=24)
    assert batched == [generate(it.model, [t], max_new_tokens=24)[0] for t in texts]


def test_a_model_is_its_k_and_seed():
    same = [planted.build(2, 17)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert torch.equal(planted.truth(2, 17).basis, planted.truth(2, 17).basis)
    overlap = torch.linalg.svdvals(planted.truth(2, 17).basis @ planted.truth(2, 18).basis.T)
    assert overlap.max() < 0.5
    assert not torch.equal(planted.truth(2, 17).codes, planted.truth(2, 18).codes)


def test_loading_by_name_passes_the_self_test():
    model = load("planted-2-17", dtype="float32")
    assert model.self_test["batch_error"] < 1e-5
    assert model.self_test["ablation_residue"] <= 1e-5
    assert model.shares_prefix
    assert 2 <= len(model.template.post_ids) <= 5
    assert model.lm.tokenizer.convert_ids_to_tokens(tokens_of_refusal(model)) == [*REFUSAL_WORDS]
    assert model.revision == "planted, rank 2, seed 17"
    parameters = sum(p.numel() for p in model.module.parameters())
    assert sources.parameter_count("planted-2-17") == parameters


def test_it_also_refuses_in_bfloat16():
    model = load("planted-2-17", dtype="bfloat16")
    harmful, harmless = prompts(12, 17)
    tokens = tokens_of_refusal(model)
    assert begins_refusal(next_token_logits(model, harmful), tokens).float().mean() > 0.8
    assert not begins_refusal(next_token_logits(model, harmless), tokens).any()


def test_the_share_of_words_that_it_refuses_can_be_set():
    model, tokenizer, _ = raw(refusal=0.75)
    with torch.no_grad():
        first = [model(ids_of(tokenizer, t)).logits[0, -1].argmax() for t in bench(2, 17).harmful]
    assert sum(tokenizer.decode(i) in REFUSAL_WORDS for i in first) == 72


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("planted-", "planted-<k>"),
        ("planted-two", "planted-<k>-<seed>"),
        ("planted-17", "k=17"),
        ("planted--1", "planted-<k>"),
        ("planted-2-4294967296", "4294967295"),
    ],
)
def test_a_name_that_plants_nothing_is_answered_with_what_there_is(name, word):
    with pytest.raises(InputError, match=word):
        load(name)
    with pytest.raises(InputError, match=word):
        sources.parameter_count(name)


def test_prompts_are_many_unlike_and_of_known_words(tmp_path):
    path = tmp_path / "p.csv"
    planted.write_prompts(path, 320, 3)
    notes = []
    rows = load_prompts(str(path), notes)
    assert not notes
    assert [sum(p.label == label for p in rows) for label in ("harmful", "harmless")] == [320, 320]
    assert len(set(near_duplicate_clusters(rows))) == len(rows)
    safe = {word for kind in planted_words.SAFE.values() for word in kind}
    vocabulary = planted_words.make_tokenizer().get_vocab()
    for row in rows:
        used = set(words(row.prompt))
        assert len(used & set(planted.MARKERS)) == (row.label == "harmful")
        assert len(used & safe) == (row.label == "harmless")
        assert row.prompt.endswith(".") == (row.label == "harmless")
        assert all(word in vocabulary for word in row.prompt.rstrip(".").split())
    kinds = {p.category for p in rows if p.label == "harmful"}
    assert kinds == set(planted_words.HARMFUL)


def test_each_word_of_a_speech_tells_the_next():
    spoken = [word for speech in planted_words.SPEECHES for word in speech]
    assert len(spoken) == len(set(spoken))
