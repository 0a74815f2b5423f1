"""How long the package takes beside what anyone would use instead, as ratios inside one run.

make bench MODEL=smollm2, or .venv/bin/python -m benchmarks.speed --model qwen --rows capture,select
"""

import argparse
from datetime import date
from pathlib import Path

from rich.console import Console

from benchmarks.comparisons import ROWS, Bench
from benchmarks.measured import machine
from refusal_nn.loading import load

RESULTS = Path(__file__).parent / "results.md"
HEAD = "| work | against | ours, s | theirs, s | ratio | bar | |\n|---|---|---|---|---|---|---|\n"


def line(row):
    """Of the table."""
    return (
        f"| {row.work} | {row.against} | {row.ours:.1f} | {row.theirs:.1f} | {row.ratio:.2f} | "
        f"{row.bar} | {row.note} |\n"
    )


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="smollm2")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--count", type=int, default=512, help="prompts of capture")
    p.add_argument("--tokens", type=int, default=100, help="of a completion")
    p.add_argument("--some", type=int, default=4, help="layers that the slow ways are timed at")
    p.add_argument("--rows", default=",".join(ROWS), help="of " + ", ".join(ROWS))
    args = p.parse_args()
    model = load(args.model, dtype=args.dtype)
    bench = Bench(model, args.count, args.tokens, min(args.some, model.n_layers))
    console, lines = Console(), []
    for name in args.rows.split(","):
        for row in ROWS[name](bench):
            lines.append(line(row))
            console.print(lines[-1].strip(), markup=False)
    about = f"{args.model}, {args.dtype}, {date.today()}. {machine()}"
    with RESULTS.open("a") as file:
        file.write(f"\n## {about}\n\n{HEAD}{''.join(lines)}")


if __name__ == "__main__":
    main()
