"""One self-contained page for a person: is refusal in this model one direction, how sure is that,
and what does it rest on? Made of whatever stages are finished; nothing is computed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from experiments import cli, report_origin
from refusal_nn.errors import InputError
from refusal_nn.names import safe_name

if TYPE_CHECKING:
    from refusal_nn.report import Block

# A stage that is missing: what it would say.
LACKING = {
    "validate": "Where harmful and harmless prompts separate, and whether by form alone",
    "select": "Which direction bypasses refusal by logits",
    "sweep": "The verdict on a single direction, over-refusal, agreement of judges",
    "causal": "What the direction does at given layers only",
    "behaviour": "Whether a prompt's projection predicts its refusal",
    "subspace": "The rank: one direction or many",
}


def main() -> None:
    from experiments import console
    from refusal_nn import report
    from refusal_nn.files import write_text

    args = report_origin.parser().parse_args()
    path = args.results / safe_name(args.model) / "report.html"
    html = report.render(page(args))
    if path.is_file() and path.read_text(encoding="utf-8") == html:
        return console.say(f"up to date: {path}")
    write_text(path, html)
    console.say(f"wrote {path} ({len(html.encode()) / 1e6:.1f} MB)")


def page(args: argparse.Namespace) -> object:
    """All that there is to say. Raises InputError where no stage is finished."""
    from experiments import report_answer, report_frame, report_sections
    from refusal_nn.report import Page, Section

    folder = args.results / safe_name(args.model)
    found = {
        name: report_origin.finished(folder / name, args.model) for name in report_origin.STAGES
    }
    stages = {name: done for name, done in found.items() if done}
    if not stages:
        raise InputError(
            f"{folder} holds no finished stage to report; run "
            f"`{report_origin.command('all', args, {})}` first, or one stage of it"
        )
    asked = report_origin.settings(stages)
    commands = {name: report_origin.command(name, args, asked) for name in report_origin.STAGES}
    of = report_sections.Material(stages, cli.figures_folder(args), commands)
    calibrated = report_origin.finished(args.results / "calibrate")
    drawn = report_sections.Material(
        {"calibrate": calibrated}, args.figures / "calibrate", {"calibrate": "make calibrate"}
    )
    parts = {name: _shown(blocks(of)) for name, blocks in report_sections.SECTIONS.items()}
    parts |= {
        "Controls": _shown(report_frame.controls(of)),
        "Is the instrument right? Calibration": _shown(report_frame.calibration(calibrated, drawn)),
        "Limits": _shown(report_frame.limits(of)),
        "How to cite": _shown(report_frame.citation(of)),
        "To reproduce": _shown(report_frame.reproduction(args, of)),
    }
    missing = [(words, commands[name]) for name, words in LACKING.items() if name not in stages]
    differing = report_origin.conflicts(stages, report_origin.SUBJECT)
    answer = report_answer.answer(args.model, stages, missing, differing)
    sections = [Section(name, blocks) for name, blocks in parts.items() if blocks]
    return Page(f"Refusal in {args.model}", answer, sections)


def _shown(blocks: Iterable[Block]) -> list[Block]:
    """A section's blocks; where an older version wrote its results without a number, only that."""
    from refusal_nn.report import Words

    try:
        return list(blocks)
    except KeyError as number:
        said = f"Not shown: an older version, which did not write {number}, made these results."
        return [Words([f"{said} Run the stage again."])]


if __name__ == "__main__":
    cli.run(main)
