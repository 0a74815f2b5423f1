"""An adapter is part of the model: equal to a plain hook in every trace, and gone where its span is
ablated."""

import contextlib
import dataclasses

import pytest
import torch
from test_generation import NEW, by_hand, hooked, writes

from refusal_nn.errors import InputError, ModelError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, orthonormal
from refusal_nn.names import adapter_file
from refusal_nn.organisms import Adapter, plant, read_organism, write_organism
from refusal_nn.tracing import capture, generate, next_token_logits, token_nll

LAYER = 2


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def random_adapter(width, rank=2, clusters=3, layer=LAYER):
    g = torch.Generator().manual_seed(0)
    return Adapter(
        layer,
        torch.randn(1 + clusters, width, generator=g),
        torch.randn(1 + clusters, generator=g),
        20 * torch.randn(clusters, rank, generator=g),
        orthonormal(torch.randn(rank, width, generator=g)),
    )


@pytest.fixture(scope="module")
def organism(tiny_llama):
    return dataclasses.replace(tiny_llama, adapter=random_adapter(tiny_llama.d_model))


@contextlib.contextmanager
def written_by_a_hook(model):
    """The plain module, to be called by hand, with the same write."""
    adapter = random_adapter(model.d_model)

    def add(_, inputs, output):
        whether, *which = (inputs[0] @ adapter.read.T + adapter.bias).unbind(-1)
        gates = torch.sigmoid(whether)[..., None] * torch.stack(which, -1).softmax(-1)
        return output + gates @ adapter.codes @ adapter.basis

    handle = model.module.model.layers[LAYER].mlp.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def test_an_adapter_is_a_hook_before_any_other_in_every_kind_of_trace(organism, tiny_llama, texts):
    g = torch.Generator().manual_seed(5)
    basis = orthonormal(torch.randn(1, organism.d_model, generator=g))
    edit, project = DirectionalAblation(basis), lambda h: h - (h @ basis.T) @ basis
    said = [c.ids for c in generate(organism, texts, edit, max_new_tokens=NEW)]
    logits = next_token_logits(organism, texts, edit)
    states, nll = capture(organism, texts).at(-1), token_nll(organism, texts, said, edit)
    with written_by_a_hook(tiny_llama), torch.no_grad():
        sites = list(writes(tiny_llama))
        assert said == [by_hand(tiny_llama, text, sites, project) for text in texts]
        for i, ids in enumerate(tiny_llama.template.render(texts)):
            out = tiny_llama.module(torch.tensor([ids]), output_hidden_states=True)
            close(states[:-1, i], torch.stack([h[0, -1] for h in out.hidden_states[1:-1]]))
            with hooked(sites, project):
                whole = tiny_llama.module(torch.tensor([[*ids, *said[i]]])).logits[0]
            close(logits[i], whole[len(ids) - 1])
            log_p = whole[len(ids) - 1 : -1].log_softmax(-1)
            close(nll[i], -log_p[torch.arange(len(said[i])), list(said[i])])


def test_an_adapter_changes_the_model_it_is_part_of_and_only_that(organism, tiny_llama, texts):
    plain = next_token_logits(tiny_llama, texts)
    assert (next_token_logits(organism, texts) - plain).abs().max() > 0.1
    assert torch.equal(next_token_logits(tiny_llama, texts), plain)
    before = capture(organism, texts).states - capture(tiny_llama, texts).states
    assert before[:LAYER].abs().max() == 0
    assert before[LAYER].abs().max() > 0.1


def test_what_an_adapter_writes_lies_in_its_span_and_ablation_takes_all_of_it(
    organism, tiny_llama, texts
):
    basis = organism.adapter.basis
    written = (capture(organism, texts).states - capture(tiny_llama, texts).states)[LAYER]
    close((written @ basis.T) @ basis, written)
    ablated = DirectionalAblation(basis)
    close(
        next_token_logits(organism, texts, ablated), next_token_logits(tiny_llama, texts, ablated)
    )
    assert [c.ids for c in generate(organism, texts, ablated, max_new_tokens=9)] == [
        c.ids for c in generate(tiny_llama, texts, ablated, max_new_tokens=9)
    ]
    later = DirectionalAblation(basis, layers=(LAYER,))
    close(
        capture(organism, texts, (-1,), later).states[LAYER],
        capture(tiny_llama, texts, (-1,), later).states[LAYER],
    )


def test_batches_prefix_and_stacked_vectors_change_nothing_for_an_organism(organism, texts):
    alone = next_token_logits(organism, texts, token_budget=1, share_prefix=False)
    close(next_token_logits(organism, texts), alone)
    g = torch.Generator().manual_seed(3)
    vectors = torch.randn(len(texts), organism.d_model, generator=g)
    each = generate(organism, texts, ActivationAddition(vectors, 3), max_new_tokens=6)
    for i, text in enumerate(texts):
        one = generate(organism, [text], ActivationAddition(vectors[i], 3), max_new_tokens=6)
        assert one[0].ids == each[i].ids


def about(revision):
    return {
        "base": "smollm2",
        "base_revision": revision,
        "planted_rank": 2,
        "refusal_words": ["Sorry", "No"],
        "recipe": {},
        "prompts_sha256": [],
        "card": {},
    }


def test_an_organism_survives_its_file(tmp_path, tiny_llama, texts):
    path, adapter = tmp_path / "mine.safetensors", random_adapter(tiny_llama.d_model)
    write_organism(path, adapter, about(tiny_llama.revision))
    model = plant(tiny_llama, read_organism(path), "mine", path)
    own = dataclasses.replace(tiny_llama, adapter=adapter)
    assert torch.equal(next_token_logits(model, texts), next_token_logits(own, texts))
    assert (model.name, model.refusal_words) == ("mine", ("Sorry", "No"))
    assert "sha256" in model.revision
    assert adapter_file(str(path)) == path


def test_an_adapter_that_does_not_fit_is_refused_by_name(tmp_path, tiny_llama):
    path = tmp_path / "mine.safetensors"
    write_organism(path, random_adapter(tiny_llama.d_model), about("another"))
    with pytest.raises(ModelError, match="was trained on smollm2 of another"):
        plant(tiny_llama, read_organism(path), "mine", path)
    for wrong in (random_adapter(32), random_adapter(tiny_llama.d_model, layer=6)):
        write_organism(path, wrong, about(tiny_llama.revision))
        with pytest.raises(ModelError, match="does not fit"):
            plant(tiny_llama, read_organism(path), "mine", path)
    fits = random_adapter(tiny_llama.d_model)
    write_organism(path, dataclasses.replace(fits, read=fits.read[1:]), about("any"))
    with pytest.raises(ModelError, match="do not fit each other"):
        read_organism(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no adapter of this package"):
        read_organism(path)
    with pytest.raises(
        InputError, match="organism-77 is not bundled; `make organism K=77` trains one"
    ):
        adapter_file("organism-77")
    assert adapter_file("smollm2") is None
