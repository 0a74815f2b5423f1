"""What is known of a model and what is not: template, first words of refusals, write sites,
precision, self-test. Nothing is written."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments import causes, cli
from refusal_nn.errors import ModelError, RefusalNNError

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel

NAME = "doctor"
PROBE = "What is 7 + 5?"
COLUMNS = ("", "found", "how it is known")
Line = tuple[str, object, str]


def compute(args: argparse.Namespace) -> None:
    """Load and test the model, print what was found; of one that cannot be used, what there is.
    Raises ModelError for that one."""
    from experiments import console

    try:
        model = causes.load(args)
    except ModelError:
        _show(f"{args.model}: cannot be used", _outline(args.model))
        raise
    parts = (_size(model), _text(args), _prompt(model), _tokens(model), _words(model, args))
    parts += (_tests(model),)
    _show(_title(model, args), [line for part in parts for line in part])
    console.say("not looked at: whether it refuses at all (`make baseline` does)")


def _title(model: TracedModel, args: argparse.Namespace) -> str:
    """What it can be used for: without a first token of its refusals, for all that scores none."""
    firsts = _firsts(model, args)
    if any(first is not None for first in firsts.values()):
        return f"{args.model}: can be used"
    return (
        f"{args.model}: can be used for validate and similarity only, for no word of REFUSAL_WORDS="
        f"{','.join(firsts)} is one token that begins an answer"
    )


def _firsts(model: TracedModel, args: argparse.Namespace) -> dict[str, int | None]:
    """First words of its refusals, or those asked for, each with its token if it is one."""
    words = causes.words(args) or model.refusal_words
    return {word: model.template.first_token(word) for word in words}


def _show(title: str, lines: list[Line]) -> None:
    from experiments import console

    console.sheet(title, COLUMNS, lines)


def _size(model: TracedModel) -> Iterator[Line]:
    from refusal_nn.models import FAMILIES

    config, family = model.module.config, model.family
    known = config.model_type in FAMILIES
    yield "architecture", f"{type(model.module).__name__} ({config.model_type})", "its config"
    yield "revision", model.revision, "its source"
    count = sum(p.numel() for p in model.module.parameters())
    size = f"{model.n_layers} layers, d_model {model.d_model}, {count / 1e6:,.1f} M parameters"
    yield "size", f"{size}, {model.gigabytes:.2f} GB", "its weights"
    yield "blocks", f"{family.base}.{family.blocks}", "row in FAMILIES" if known else "inferred"
    writes = ", ".join((family.embedding, family.attention_write, family.mlp_write))
    how = "row in FAMILIES" if known else "inferred from one pass"
    yield "write sites", writes, f"{how}; verified by ablation"
    if model.adapter is not None:
        yield "adapter", f"at layer {model.adapter.layer}", "its file"
    dtype = str(model.dtype).removeprefix("torch.")
    yield "precision", f"{dtype} on {model.device_type}", _precision(model)


def _precision(model: TracedModel) -> str:
    loss = model.self_test.get("precision")
    if loss:
        early, late = (f"{loss[f'cosine_{which}']:.4f}" for which in ("early", "late"))
        return (
            f"cosine with float32's directions at least {early}, from a quarter of the depth on "
            f"{late}, measured (n={loss['n']} prompts)"
        )
    return "exact" if str(model.dtype) == "torch.float32" else "loss against float32 not measured"


def _text(args: argparse.Namespace) -> Iterator[Line]:
    model = causes.load_for_text(args)
    loss = model.self_test.get("text_kl")
    how = f"KL from float32 {loss['kl']:.4f} nats (n={loss['n']})" if loss else "as the rest"
    yield "completions in", str(model.dtype).removeprefix("torch."), how


def _prompt(model: TracedModel) -> Iterator[Line]:
    template, decode = model.template, model.lm.tokenizer.decode
    ids = template.render([PROBE])[0]
    yield "rendered prompt", repr(decode(ids)), f"template {template.hash[:12]}"
    yield "token ids", " ".join(map(str, ids)), f"{len(ids)} tokens"
    pairs = zip(template.tokens, template.post_ids, strict=True)
    after = "  ".join(
        f"{i}: {token!r} {number}"
        for i, (token, number) in enumerate(pairs, -len(template.post_ids))
    )
    yield "after the instruction", after, "common to all prompts"
    for note in template.notes:
        what, colon, found = note.partition(": ")
        yield (what, found, "template") if colon else ("", note, "template")


def _tokens(model: TracedModel) -> Iterator[Line]:
    tokenizer = model.lm.tokenizer
    ids = model.template.render([PROBE])[0]
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    if bos is None:
        yield "BOS", "none", "tokenizer"
    else:
        times = ids.count(bos)
        where = "a turn marker" if bos in model.template.post_ids else "not a turn marker"
        yield "BOS", f"{tokenizer.bos_token!r} {bos}, {where}", f"{times} in this prompt"
    same = ", which also ends an answer" if pad in model.stop_ids else ""
    yield "pad", f"{tokenizer.decode([pad])!r} {pad}{same}", "always left, masked"
    ends = ", ".join(f"{tokenizer.decode([i])!r} {i}" for i in sorted(model.stop_ids))
    yield "ends an answer", ends, "generation config, tokenizer, template"


def _words(model: TracedModel, args: argparse.Namespace) -> Iterator[Line]:
    from refusal_nn.models import REFUSAL_WORDS, alias_of

    of_row = model.refusal_words != REFUSAL_WORDS
    how = "known of it" if of_row else "a guess; REFUSAL_WORDS= sets them"
    how = "REFUSAL_WORDS=" if causes.words(args) else how
    firsts = _firsts(model, args)
    single = ", ".join(f"{word!r} {first}" for word, first in firsts.items() if first is not None)
    yield "a refusal begins", single or "by none of its words", how
    several = ", ".join(repr(word) for word, first in firsts.items() if first is None)
    if several:
        yield "", f"not used, for they are more than one token: {several}", "tokenizer"
    alias = alias_of(args.model)
    if alias is None and model.adapter is None:
        yield "alias", "none", "no row in MODELS"
    elif alias not in (None, args.model):
        yield "alias", alias, "row in MODELS of this repository"


def _tests(model: TracedModel) -> Iterator[Line]:
    from refusal_nn.checks import LOGITS, RESIDUE

    found, logits, residue = model.self_test, LOGITS[model.dtype], RESIDUE[model.dtype]
    allowed = f"measured; at most {logits:.2g} allowed"
    yield "batch against alone", f"{found['batch_error']:.1e} of the logits' spread", allowed
    if "prefix_error" in found:
        off = "" if model.shares_prefix else "; sharing is off"
        yield "shared prefix", f"{found['prefix_error']:.1e} of the logits' spread{off}", allowed
    yield "strength 0", "changes no bit" if found["noop_identical"] else "differs", "measured"
    left = f"{found['ablation_residue']:.1e} of the stream, worst block"
    yield "left after ablation", left, f"measured; at most {residue:.2g} allowed"


def _outline(name: str) -> list[Line]:
    """What can be told without a model that works; of an adapter, of the model that it is for."""
    from refusal_nn import sources
    from refusal_nn.models import FAMILIES
    from refusal_nn.names import adapter_file
    from refusal_nn.organisms import read_organism
    from refusal_nn.templates import read_template

    try:
        adapter = adapter_file(name)
        base = read_organism(adapter).about["base"] if adapter else name
        config, tokenizer = sources.outline(base)
    except RefusalNNError as error:
        return [("files", "cannot be read", str(error))]
    known = "row in FAMILIES" if config.model_type in FAMILIES else "no row in FAMILIES"
    depth = getattr(config, "num_hidden_layers", "?")
    width = getattr(config, "hidden_size", "?")
    size = f"{config.model_type}, {depth} layers, d_model {width}"
    try:
        template = read_template(tokenizer)
        said = ("template", "can be used", ", ".join(template.notes))
    except ModelError as error:
        said = ("template", "cannot be used", str(error))
    of = [("adapter", f"of {base}", "its file")] if adapter else []
    return [*of, ("architecture", size, known), said]


def main() -> None:
    p = cli.parser(NAME, __doc__)
    p.add_argument("--refusal-words", default="", help="first words of refusals, as I,Sorry")
    compute(p.parse_args())


if __name__ == "__main__":
    cli.run(main)
