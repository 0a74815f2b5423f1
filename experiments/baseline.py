"""What does the untouched model do? Completions of harmful, harmless and safe-but-scary prompts,
judged: what every causal experiment is compared with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments import capture, causes, cli, progress

if TYPE_CHECKING:
    from refusal_nn.models import TracedModel
    from refusal_nn.prompts import Prompt
    from refusal_nn.rollouts import Rollout

NAME = "baseline"
CLEAN = "clean"


def settings(args: argparse.Namespace) -> cli.Settings:
    return causes.settings(args, "tokens", "refusal_words", "judge", "keep_text") | {
        "scary": causes.scary_hash()
    }


def sets(args: argparse.Namespace) -> dict[str, list[Prompt]]:
    """The prompts asked, by set; fit is left out: directions are made of it."""
    parts = causes.parts(args)
    return {
        f"{split}.{label}": causes.of_class(parts[split], label)
        for split in ("val", "test")
        for label in ("harmful", "harmless")
    } | {"scary": causes.scary()}


def rollout_of(
    args: argparse.Namespace, model: TracedModel, nll_limit: float | None = None
) -> Rollout:
    """Completions of this model as the options ask for them, with the judge model if one is."""
    from refusal_nn.judge_models import load_judge
    from refusal_nn.rollouts import Rollout
    from refusal_nn.selection import tokens_of_refusal

    second = load_judge(args.judge, device=args.device) if args.judge else None
    tokens = tokens_of_refusal(model, causes.words(args))
    return Rollout(model, tokens, args.tokens, nll_limit, second, args.keep_text)


def compute(args: argparse.Namespace) -> None:
    from experiments import console
    from refusal_nn.rollouts import Job

    asked = sets(args)
    with cli.stage(args, NAME).run(settings(args)) as run:
        model = causes.load_for_text(args)
        rollout = rollout_of(args, model)
        jobs = [Job(CLEAN, prompt) for prompts in asked.values() for prompt in prompts]
        per_second = progress.speed(model, [job.prompt for job in jobs])
        with progress.completing(NAME, len(jobs), args.tokens, per_second) as on_tokens:
            rows = rollout.rows({CLEAN: None}, jobs, run.journal(model.where), on_tokens)
        named = [name for name, prompts in asked.items() for _ in prompts]
        rows = [{"set": name} | row for name, row in zip(named, rows, strict=True)]
        causes.write_rows(run.folder, rows, rollout)
        about = {"model": args.model, "text_kl": model.self_test.get("text_kl"), **summary(rows)}
        run.finish(about, capture.origin(args, model))
    console.say(f"wrote {run.folder}")


def summary(rows: Sequence[Mapping[str, object]]) -> causes.Row:
    """Refusal rate of each set, how two judges agree, and what NLL the model's own texts have."""
    from refusal_nn import causal
    from refusal_nn.rollouts import nll_limit

    by_set = causal.grouped(rows, "set")
    return {
        "refusal": {name: causal.refusal_rates(of) for name, of in by_set.items()},
        "judges_kappa": causal.agreement(rows),
        "model_judge_kappa": causal.model_agreement(rows),
        "nll_limit": nll_limit([row["nll"] for row in rows if row["nll"] is not None]),
    }


def show(args: argparse.Namespace) -> None:
    from experiments import printed_causes

    printed_causes.show_baseline(cli.finished(args, NAME))


def draw(args: argparse.Namespace) -> None:
    """No figure of its own, only the stamp that make looks at."""
    from refusal_nn import files

    done = cli.stage(args, NAME)
    done.require_finished()
    files.write_json(cli.figures_folder(args) / f"{NAME}.json", {"from": str(done.folder)})


main = causes.main(NAME, __doc__, settings, compute=compute, draw=draw, show=show)

if __name__ == "__main__":
    cli.run(main)
