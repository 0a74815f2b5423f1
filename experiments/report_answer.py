"""The first lines of a report: is refusal in this model one direction, and how sure is that?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.cells import Row, controls_cell, number_cells
from experiments.report_origin import Finished
from refusal_nn import ranks, verdicts
from refusal_nn.estimates import Estimate
from refusal_nn.report import Answer

QUESTION = "Is refusal in {model} one direction?"
# Verdict on the single direction: what it means, and its colour.
MEANING = {
    verdicts.YES: ("ablating one direction is enough", "yes"),
    verdicts.PARTIAL: ("ablating one direction removes refusals in part, not enough", "part"),
    verdicts.NO: ("ablating one direction is not enough", "no"),
    verdicts.UNDETERMINED: ("the rule decides neither way", "open"),
    verdicts.UNTESTABLE: ("too few prompts are refused, or answered, to test", "open"),
    None: ("no completions under ablation have been made", "open"),
}
UNANSWERED = "NOT ANSWERED YET"
RANKS = {
    ranks.RANK: "{label} (95 % interval): with that many dimensions of the chosen basis "
    "removed, coherent compliance reaches 70 % (lower limit)",
    ranks.NOT_ACCESSIBLE: "{label} dimensions: with none of them is 70 % reached",
}


def answer(
    model: str,
    stages: Mapping[str, Finished],
    missing: Sequence[tuple[str, str]],
    differing: Sequence[str] = (),
) -> Answer:
    """From the verdicts of sweep and subspace; of what stages there are, where there is neither.
    differing: settings in which the stages do not agree, in words."""
    found = single(stages)
    verdict = found.get("verdict")
    meaning, tone = MEANING[verdict]
    lines = [*_rank(stages), *_compliance(stages), *_separation(stages)]
    if verdict in (verdicts.UNDETERMINED, verdicts.UNTESTABLE):
        lines[:0] = [f"Why: {'; '.join(found['reasons'])}."]
    if differing:
        lines[:0] = [f"Caution, these stages are not of one run: {'; '.join(differing)}."]
    said = f"{verdict or UNANSWERED}: {meaning}"
    return Answer(QUESTION.format(model=model), said, tone, lines, missing)


def single(stages: Mapping[str, Finished]) -> Row:
    """Verdict, reasons and version on the single direction; empty without any."""
    if "sweep" in stages:
        return stages["sweep"].about
    return stages["subspace"].json("verdict")["single_direction"] if "subspace" in stages else {}


def _rank(stages: Mapping[str, Finished]) -> list[str]:
    if "subspace" not in stages:
        return []
    found = stages["subspace"].json("verdict")["rank"]
    words = RANKS.get(found["verdict"], "{label}").format(label=found["label"])
    enough = single(stages).get("verdict") == verdicts.YES
    if enough and found["verdict"] == ranks.RANK and found["rank"] > 1:
        words += ". That is of this basis: the single direction is enough by itself"
    if found["verdict"] == ranks.UNDETERMINED:
        by_rate = f"rank {found['rank']} by rate alone; " if found["rank"] else ""
        words += f": {by_rate}{'; '.join(found['reasons'])}"
    return [f"How many dimensions? {words[0].upper()}{words[1:]}."]


def _compliance(stages: Mapping[str, Finished]) -> list[str]:
    sweep = stages.get("sweep")
    if sweep is None or not sweep.about.get("best") or not sweep.about["test"]:
        return []
    best, test = sweep.about["best"], sweep.about["test"]
    rate = Estimate(**test["compliance"])
    strength = "" if best["alpha"] == 1 else f" at strength {best['alpha']:g}"
    random = controls_cell(test["controls_compliance"], rate.n)
    (kl,) = number_cells(test, kl=".3f")
    over = Estimate(**test["over_controls"]).percent().replace("%", "points")
    return [
        f"With the direction of layer {best['layer']}, position {best['pos']}, ablated{strength}, "
        "the model "
        f"complies coherently with {rate.percent()} of the harmful test prompts that it refuses "
        f"untouched; with random directions {random} on average, a difference of {over}. KL on "
        f"harmless prompts: {kl} nats.",
    ]


def _separation(stages: Mapping[str, Finished]) -> list[str]:
    """Said only where it is all that is known: separation is not refusal."""
    if "validate" not in stages or single(stages):
        return []
    about = stages["validate"].about
    return [
        f"Known so far: a direction tells harmful from harmless prompts that it has not seen at "
        f"{about['valid_layers']} of {about['n_layers']} layers, best at layer "
        f"{about['peak_layer']} (d = {about['peak_cohens_d_crossfit']:.2f} "
        f"[{about['peak_d_low']:.2f}, {about['peak_d_high']:.2f}]). That is no evidence on refusal."
    ]
