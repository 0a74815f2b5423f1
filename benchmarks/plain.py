"""What anyone would use instead: plain PyTorch hooks, batches of 32 in file order, padded to the
longest, whole logits (as github.com/andyrdt/refusal_direction does)."""

from contextlib import ExitStack, contextmanager

import torch

from refusal_nn.batching import Batch, batched
from refusal_nn.generation import GREEDY
from refusal_nn.interventions import project_out

SIZE = 32


def in_file_order(model, texts, size=SIZE, completions=None):
    """Left-padded batches with nothing shared and nothing sorted."""
    ids, pad = model.template.render(texts), model.lm.tokenizer.pad_token_id
    if completions is not None:
        ids = [[*row, *new] for row, new in zip(ids, completions, strict=True)]
    for i in range(0, len(ids), size):
        some = ids[i : i + size]
        [one] = batched(some, [], size * max(map(len, some)), pad)
        back = sorted(range(len(one.rows)), key=one.rows.__getitem__)
        yield Batch(
            [i + row for row in range(len(some))],
            *(x[back] for x in (one.input_ids, one.attention_mask, one.position_ids)),
        )


@contextmanager
def hooks(*pairs):
    """(module, forward hook) for as long as the context lasts; a hook returns the new output."""
    with ExitStack() as stack:
        for module, hook in pairs:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _changed(change):
    def hook(module, inputs, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


def planted(model):
    """An organism's adapter; nothing for other models."""
    if model.adapter is None:
        return []
    mlp = _blocks(model)[model.adapter.layer].mlp
    return [(mlp, lambda _, inputs, output: output + model.adapter.written(inputs[0]))]


def ablating(model, basis):
    """Of one basis (rank, d_model) for all rows, or (row, rank, d_model)."""
    change = _changed(lambda x: project_out(x, basis))
    sites = [model.module.get_input_embeddings()]
    for block in _blocks(model):
        sites += [getattr(block, model.family.attention_write)]
        sites += [getattr(block, model.family.mlp_write)]
    return [*planted(model), *((site, change) for site in sites)]


def adding(model, vector, layer):
    hook = _changed(lambda x: (x.float() + vector).to(x.dtype))
    return [*planted(model), (_blocks(model)[layer], hook)]


def _blocks(model):
    return getattr(getattr(model.module, model.family.base), model.family.blocks)


@torch.no_grad()
def means(model, texts, positions):
    """Mean of the stream after every block, (layer, pos, d_model) float64."""
    sums = torch.zeros(model.n_layers, len(positions), model.d_model, dtype=torch.float64)

    def adds(layer):
        def hook(module, inputs, output):
            out = output[0] if isinstance(output, tuple) else output
            sums[layer] += out[:, positions].double().sum(0).cpu()

        return hook

    blocks = [(block, adds(layer)) for layer, block in enumerate(_blocks(model))]
    with hooks(*planted(model), *blocks):
        for batch in in_file_order(model, texts):
            model.module(**batch.inputs(model.device))
    return sums / len(texts)


@torch.no_grad()
def states(model, shared, feed, positions):
    """What passes.states gives, by hooks on the same batch, prefix and all."""
    stream = []

    def hook(module, inputs, output):
        stream.append((output[0] if isinstance(output, tuple) else output)[:, positions].clone())

    with hooks(*planted(model), *((block, hook) for block in _blocks(model))):
        getattr(model.module, model.family.base)(**shared.inputs(feed))
    return torch.stack([after.float() for after in stream]).cpu()


@torch.no_grad()
def layer_by_layer(model, texts, layers):
    """One forward pass per prompt and layer, as the report of Experiment 0 has it."""
    found = {}
    for layer in layers:
        kept = []
        hook = _changed(lambda x, kept=kept: kept.append(x[:, -1].float()) or x)
        with hooks(*planted(model), (_blocks(model)[layer], hook)):
            for batch in in_file_order(model, texts, 1):
                model.module(**batch.inputs(model.device))
        found[layer] = torch.cat(kept).double().mean(0)
    return found


@torch.no_grad()
def last_logits(model, texts, pairs):
    """(prompt, vocab), batch by batch, whole logits computed."""
    with hooks(*pairs):
        return torch.cat(
            [
                model.module(**batch.inputs(model.device)).logits[:, -1].float()
                for batch in in_file_order(model, texts)
            ]
        )


@torch.no_grad()
def complete(model, texts, tokens, pairs):
    """Greedy new tokens of every prompt, up to the first that stops."""
    found, options = [], GREEDY | {"eos_token_id": sorted(model.stop_ids)}
    with hooks(*pairs):
        for batch in in_file_order(model, texts):
            inputs = {k: v for k, v in batch.inputs(model.device).items() if k != "position_ids"}
            pad = model.lm.tokenizer.pad_token_id
            ids = model.module.generate(
                **inputs, **options, max_new_tokens=tokens, pad_token_id=pad
            )
            found += [_stopped(row, model) for row in ids[:, inputs["input_ids"].shape[1] :]]
    return found


@torch.no_grad()
def nll(model, texts, completions):
    """Mean nats per token of each completion under the clean model, whole logits computed."""
    found = []
    with hooks(*planted(model)):
        for batch in in_file_order(model, texts, completions=completions):
            inputs = batch.inputs(model.device)
            logits = model.module(**inputs).logits[:, :-1].float()
            each = torch.nn.functional.cross_entropy(
                logits.mT, inputs["input_ids"][:, 1:], reduction="none"
            )
            lengths = [len(completions[row]) for row in batch.rows]
            found += [float(row[-n:].mean()) for row, n in zip(each, lengths, strict=True)]
    return found


def _stopped(row, model):
    ids = row.tolist()
    stop = next((i for i, token in enumerate(ids) if token in model.stop_ids), len(ids))
    return tuple(ids[: stop + 1])
