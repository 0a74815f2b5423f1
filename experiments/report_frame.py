"""What stands around a report's evidence: controls, calibration, limits, citation, reproduction."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping

from experiments import printed_subspace
from experiments.cells import Row, controls_cell, rate_cell
from experiments.report_origin import Finished, command, conflicts, settings
from experiments.report_sections import Blocks, Material
from refusal_nn.estimates import Estimate
from refusal_nn.report import Command, Fold, Table, Words
from refusal_nn.verdicts import UNTESTABLE

# What was done against being fooled, each said only of stages that did it.
CONTROLS = (
    (
        ("validate",),
        "Separation: labels permuted within pairs and directions refitted, p over all layers at "
        "once.",
    ),
    (
        ("sweep", "causal"),
        "Directions: random unit directions drawn from the covariance of harmless activations, "
        "ablated or added at the same sites, on the same prompts.",
    ),
    (
        ("subspace",),
        "Subspaces: random subspaces of equal rank, drawn likewise; beside each, the share of "
        "coherent texts, since broken text is no compliance.",
    ),
    (
        ("sweep", "subspace"),
        "Choice: layers, positions and bases are chosen on val; test prompts are read once.",
    ),
)
LIMITS = (
    "A verdict is about these prompts, this template, this precision and this judge.",
    "Refusal that is gone under ablation proves no direction by itself: hence random directions, "
    "KL and coherence beside it.",
    "A rank is an upper bound for the one nested basis that val prompts chose; its interval covers "
    "prompts, not that choice.",
    "Where the classes separate, refusal need not be decided.",
    "The rule judge has not been measured against human labels.",
)
CITATION = (
    "@software{refusal_nn,",
    "  title = {refusal_nn: is refusal one direction?}, version = {%s}, year = {2026},",
    "  license = {MIT}, note = {git %s; model %s, revision %s}",
    "}",
)
METHOD = "Method: Arditi et al. 2024, Refusal in language models is mediated by a single "
METHOD += "direction, arXiv:2406.11717 (difference in means, directional ablation)."
ORIGIN = ("model", "revision", "dtype", "device", "backend", "seed")
USUAL = {"n": 320, "tokens": 100, "val": 32, "controls": 20, "permutations": 1000}
ENDS = {"value": "", "low": "_low", "high": "_high"}


def controls(of: Material) -> Blocks:
    rows = list(_beside(of.stages))
    if rows:
        columns = ("what", "measured [95 %]", "random [95 %]", "difference [95 %], points")
        yield Table("Coherent compliance, chosen against random", columns, rows)
    tested = {name for name, done in of.stages.items() if not _untestable(done)}
    said = [words for stages, words in CONTROLS if tested & {*stages}]
    if said:
        yield Words(said, listed=True)


def _untestable(done: Finished) -> bool:
    """Whether a stage ended before it asked the model anything."""
    return done.about.get("verdict") == UNTESTABLE and not done.about.get("best")


def _beside(stages: Mapping[str, Finished]) -> Iterator[tuple[str, str, str, str]]:
    test = stages["sweep"].about.get("test") if "sweep" in stages else None
    if test:
        measured = Estimate(**test["compliance"]).percent()
        random = _random(test, test["compliance"]["n"])
        yield "best direction", measured, random, _points(test["over_controls"])
    for row in stages["subspace"].rows("rank_curve") if "subspace" in stages else []:
        if row["split"] == "test":
            over = {k: row[f"over_controls{end}"] for k, end in ENDS.items()}
            random = _random(row, row["n"])
            name = f"first {row['rank']} of the basis"
            yield name, rate_cell(row, "compliance"), random, _points(over)


def _random(of: Row, prompts: int) -> str:
    rate = controls_cell(of["controls_compliance"], prompts)
    # Results of an older version do not say how many completions.
    return f"{rate}, {of['controls_n']} completions" if "controls_n" in of else rate


def _points(found: Mapping[str, float]) -> str:
    value, low, high = (100 * found[k] for k in ENDS)
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def calibration(done: Finished | None, drawn: Material) -> Blocks:
    """The instrument on models of known rank; said where it was not run here."""
    if done is None:
        words = "Every causal stage on models whose rank is planted: how often is it found? That "
        yield Words([words + "has not been run beside these results:"])
        yield Command(["make calibrate"])
        return
    rows, rates = done.rows("confusion"), done.rows("summary")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        table = printed_subspace.confusion_table(mine)
        yield Table(f"{kind}: reported rank by planted rank", *table)
    words = "Planted rank by reported one; framed: as planted."
    yield from drawn.picture("calibrate", "confusion", words)
    yield Table("Rates over planted models", *printed_subspace.rates_table(rates))
    yield Words([f"Not as required: {line}" for line in done.about["missed"]], listed=True)


def limits(of: Material) -> Blocks:
    yield Words([*_own_limits(settings(of.stages)), *LIMITS], listed=True)


def _own_limits(asked: Mapping[str, object]) -> Iterator[str]:
    for name, usual in USUAL.items():
        if name in asked and asked[name] < usual:
            yield f"This run used {name.upper()}={asked[name]}, where {usual} is usual."
    if asked.get("system", "default") != "default":
        yield f"The system prompt was not the template's own: SYSTEM={asked['system']}."
    if asked.get("layers"):
        yield f"Only layers {asked['layers']} were looked at."
    if asked.get("prompts", "bundled") != "bundled":
        yield "The prompts are not the bundled matched pairs: see whether form tells them apart."


def citation(of: Material) -> Blocks:
    about = list(of.stages.values())[-1].manifest
    said = (about["packages"]["refusal_nn"], _commit(about), about.get("model"))
    text = "\n".join(CITATION) % (*said, about.get("revision"))
    yield Command(text.splitlines())
    yield Words([METHOD])


def reproduction(args: argparse.Namespace, of: Material) -> Blocks:
    """The command, what differs between stages, and each stage's manifest."""
    yield Command([command("all", args, settings(of.stages)), command("report", args, {})])
    differing = conflicts(of.stages)
    if differing:
        yield Words(["These stages are not of one run:", *differing])
    columns = ("stage", *ORIGIN, "finished", "seconds", "git commit")
    rows = [
        (name, *(_short(done.manifest.get(k, "")) for k in ORIGIN), *_when(done.manifest))
        for name, done in of.stages.items()
    ]
    yield Table("How each stage came about (manifest.json)", columns, rows)
    yield Fold("Versions, prompts, files and their hashes", list(_hashes(of.stages)))


def _short(value: object) -> str:
    """Hashes by their first figures: whole, they make a table wider than paper."""
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{12,}", r"\1…", str(value))


def _when(manifest: Mapping[str, object]) -> tuple[object, ...]:
    return manifest["finished"], manifest["wall_seconds"], _commit(manifest)


def _commit(manifest: Mapping[str, object]) -> str:
    """Its first figures, and the + of a modified working tree."""
    whole = manifest["git_commit"]
    return whole[:12] + "+" * whole.endswith("+")


def _hashes(stages: Mapping[str, Finished]) -> Blocks:
    last = list(stages.values())[-1].manifest
    yield Table("Package versions", ("package", "version"), list(last["packages"].items()))
    about = [
        (f"{name}: {key}", value)
        for name, done in stages.items()
        for key, value in done.manifest.items()
        if key in ("revision", "template_sha256", "prompt_set_sha256")
    ]
    files = [
        (f"{name}/{file}", value)
        for name, done in stages.items()
        for file, value in done.manifest["sha256"].items()
    ]
    yield Table(
        "Weights, template, prompts and files", ("what", "commit or sha256"), [*about, *files]
    )
