"""Capture the residual stream of both classes after every block: what all other stages read."""

from __future__ import annotations

import argparse

from experiments import cli

NAME = "capture"


def compute(args: argparse.Namespace) -> None:
    """Load, forecast, capture, write activations, moments and the table of prompts."""
    from experiments import console
    from refusal_nn import confounds, files, prompts, splits
    from refusal_nn.loading import load
    from refusal_nn.tracing import capture

    settings = cli.capture_settings(args)
    notes: list[str] = []
    parts = splits.split(prompts.load_prompts(args.prompts or None, notes), args.n, args.seed)
    splits.require_enough(parts["fit"])
    rows = [(name, prompt) for name, chosen in parts.items() for prompt in chosen]
    texts = [prompt.prompt for _, prompt in rows]
    with cli.stage(args, NAME).run(settings) as run:
        console.say(f"loading {args.model}")
        model = load(args.model, dtype=args.dtype, device=args.device)
        positions = _positions(args.positions, model)
        for line in (*model.notes, *notes):
            console.say(line)
        with console.forecast_progress(model, texts, positions) as on_batch:
            acts = capture(
                model,
                texts,
                positions,
                groups=[f"{s}.{p.label}" for s, p in rows],
                on_batch=on_batch,
            )
        tokens = [model.template.token(pos) for pos in positions]
        about = {
            "positions": positions,
            "tokens": tokens,
            "layer": "residual stream after block i, before the final norm",
        }
        files.write_tensors(run.folder / "activations.safetensors", {"states": acts.states}, about)
        post = {
            "positions": list(range(-len(model.template.tokens), 0)),
            "tokens": model.template.tokens,
            "counts": acts.counts,
        }
        files.write_tensors(
            run.folder / "moments.safetensors",
            {f"mean.{g}": m.float() for g, m in acts.means.items()},
            post,
        )
        clusters = splits.near_duplicate_clusters([prompt for _, prompt in rows])
        files.write_csv(
            run.folder / "prompts.csv",
            [
                {
                    "id": p.id,
                    "label": p.label,
                    "split": s,
                    "category": p.category or "",
                    "severity": p.severity or "",
                    "pair": p.pair or "",
                    "cluster": c,
                    **confounds.surface(p.prompt),
                }
                for (s, p), c in zip(rows, clusters, strict=True)
            ],
        )
        counts = {
            name: {label: sum(p.label == label for p in chosen) for label in prompts.LABELS}
            for name, chosen in parts.items()
        }
        summary = {
            "model": args.model,
            "n_layers": model.n_layers,
            "d_model": model.d_model,
            "prompts": counts,
            "positions": positions,
            "tokens": tokens,
            "post_instruction_tokens": model.template.tokens,
            "notes": [*model.notes, *notes],
            "self_test": model.self_test,
        }
        run.finish(
            summary,
            {
                "model": args.model,
                "revision": model.revision,
                "dtype": str(model.dtype),
                "device": str(model.device),
                "seed": args.seed,
                "template_sha256": model.template.hash,
                "prompt_set_sha256": splits.prompts_hash([p for _, p in rows]),
            },
        )
    console.say(
        f"wrote {run.folder} ({model.n_layers} layers, {len(rows)} prompts, positions "
        f"{', '.join(map(str, positions))})"
    )


def _positions(text: str, model: object) -> list[int]:
    from refusal_nn.errors import InputError

    post = list(range(-1, -len(model.template.tokens) - 1, -1))
    if text == "all":
        return post
    chosen = [int(part) for part in text.split(",")]
    if min(chosen) < post[-1]:
        raise InputError(
            f"POSITIONS={text}: this template has {len(post)} tokens after the instruction, so "
            f"choose from -1 to {post[-1]}"
        )
    return chosen


def main() -> None:
    args = cli.parser(NAME, __doc__).parse_args()
    if args.settings_only:
        return cli.stage(args, NAME).request(cli.capture_settings(args))
    compute(args)


if __name__ == "__main__":
    cli.run(main)
