"""The sections of a report, each of one question, from the saved tables of finished stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments import printed, printed_causes, printed_subspace
from experiments.cells import Row, controls_cell, estimate_cell, kappa_cell, rate_cell
from experiments.report_answer import single
from experiments.report_origin import Finished
from refusal_nn import verdicts
from refusal_nn.estimates import Estimate
from refusal_nn.report import Block, Command, Fold, Picture, Table, Words

Blocks = Iterator[Block]
PREDICTED = {
    "auroc": "AUROC of the projection for refusal",
    "auroc_harmful": "the same within harmful prompts",
    "spearman_severity": "Spearman's rho with severity",
}


@dataclass(frozen=True)
class Material:
    """Finished stages, where their figures lie, and the command that makes each stage."""

    stages: Mapping[str, Finished]
    figures: Path
    commands: Mapping[str, str]

    def picture(self, stage: str, name: str, caption: str) -> Blocks:
        """A figure, unless it is missing or older than its stage."""
        path, stamp = self.figures / f"{name}.svg", self.figures / f"{stage}.json"
        made = self.stages[stage].folder / "summary.json"
        if path.is_file() and stamp.is_file() and stamp.stat().st_mtime >= made.stat().st_mtime:
            yield Picture(path, caption)
        else:
            yield Words([f"The figure {name} has not been drawn of these results:"])
            yield Command([self.commands[stage]])


def verdict(of: Material) -> Blocks:
    """Each number of the rule beside what is asked of it."""
    found = single(of.stages)
    if not found:
        return
    sweep = of.stages.get("sweep")
    if sweep and sweep.about.get("test"):
        test = sweep.about["test"]
        columns = ("quantity, on test prompts", "measured [95 %]", "asked")
        caption = f"What the single-direction rule, v{found['version']}, looks at"
        yield Table(caption, columns, list(_gates(test)))
        down, up, p = (test["mcnemar"][name] for name in ("changed_down", "changed_up", "p"))
        yield Words(
            [f"Harmful prompts no longer refused: {down}; newly refused: {up}; McNemar p = {p:.2g}"]
        )
    yield Words([f"{found['verdict']}, because:"])
    yield Words(found["reasons"], listed=True)
    if not sweep or not sweep.about["best"]:
        return
    words = "Ablation by layer. Red: harmful prompts, refused untouched, then complied with "
    words += "coherently; grey: coherent; vertical strokes: 95 % intervals. Middle: KL on harmless "
    words += "prompts. Below: separation of the classes. Diamond: the chosen direction on test; "
    words += "dotted, with shaded interval: random directions there."
    yield from of.picture("sweep", "sweep", words)
    best = printed_causes.place_of(sweep.about["best"])
    columns, rows = printed_causes.sweep_table(sweep.rows("sweep"), best)
    yield Fold("Every layer", [Table("Directions ablated everywhere, on val", columns, rows)])


def _gates(test: Row) -> Iterator[tuple[str, str, str]]:
    rates = {
        "refused untouched": ("baseline_refusal", "at least 50 %, of 30 prompts refused"),
        "complies, coherently (rule judge)": ("compliance", ""),
        "the same, by how the answer begins": ("compliance_by_logits", ""),
        "the same, by the judge model": ("compliance_by_model", ""),
    }
    yes, no = f"{verdicts.YES_FROM:.0%}", f"{verdicts.NO_UP_TO:.0%}"
    asked = f"YES: lower limit from {yes}; NO: upper limit to {no}".replace("%", " %")
    for words, (name, bar) in rates.items():
        if test.get(name):
            yield words, Estimate(**test[name]).percent(), bar or asked
    random = controls_cell(test["controls_compliance"], test["compliance"]["n"])
    yield f"complies, {test['controls']} random directions, mean", random, ""
    over = Estimate(**test["over_controls"]).percent().replace("%", "points")
    least = f"lower limit above {100 * verdicts.OVER_CONTROLS:.0f} points"
    yield "difference from random directions", over, least
    yield "KL on harmless prompts", f"{test['kl']:.3f} nats", f"at most {verdicts.MOST_KL:g} nats"


def rank(of: Material) -> Blocks:
    done = of.stages.get("subspace")
    if not done:
        return
    about, rows = done.json("verdict"), done.rows("rank_curve")
    yield Words([f"Verdict v{about['rank']['version']}: {about['rank']['label']}, because:"])
    yield Words(about["rank"]["reasons"], listed=True)
    if not rows:
        return
    place = printed_subspace.place_of(about)
    test = [r for r in rows if r["split"] == "test" and printed_subspace.place_of(r) == place]
    val = [r for r in rows if r["split"] == "val"]
    if test:
        where = f"{place[0]} {place[1]}".strip() + f", position {about['pos']}"
        table = printed_subspace.rank_table(test, about["rank"])
        yield Table(f"First k dimensions of the basis removed, on test: {where}", *table)
    words = "Coherent compliance (red) and KL by how many dimensions are removed. Grey squares: "
    words += "random subspaces of equal rank. Faint: the other bases, and val. Shaded: the "
    words += "interval of the rank. Strokes: 95 % intervals."
    yield from of.picture("subspace", "rank_curve", words)
    table = printed_subspace.construction_table(val, done.rows("spectrum"), place)
    more = [Table("Constructions of the basis, compared on val", *table)]
    words = "Singular values as shares of the first, in red; in blue the floor that harmless "
    more += of.picture("subspace", "spectrum", words + "prompts alone give.")
    words = "Mean principal angle between subspaces, in degrees; below it the range."
    more += of.picture("subspace", "angles", words)
    yield Fold("How the basis was chosen: constructions, spectra, angles", more)


def layers(of: Material) -> Blocks:
    done = of.stages.get("validate")
    if done:
        words = "Left: distance between class means. Middle: effect size on held-out prompts with "
        words += "95 % band (x: not valid), dotted in-sample. Right: effect size beside AUROC."
        yield from of.picture("validate", "direction_analysis", words)
        table = printed.layer_table(done.rows("validation_results"))
        note = printed.OVERLAP.strip() + ". valid: p (family) < .01 and lower limit of d above 0.5."
        title = f"Separation of harmful from harmless prompts by layer, {printed.asked(done.about)}"
        yield Table(title, *table, note)
        yield Words(printed.in_words(done.about, done.json("confounds")), listed=True)
        yield Fold("Distributions of the projections", list(_distributions(of)))
    if "similarity" in of.stages:
        words = "Cosine between the directions of two layers. Beside it the cosine between the "
        words += "directions of two halves of the prompts: below it, layers really differ."
        yield from of.picture("similarity", "heatmap", words)


def _distributions(of: Material) -> Blocks:
    words = "At the layer of the largest effect, harmful red and harmless blue: density, "
    words += "cumulative share, box plot, each prompt in order (hover a point for its id)."
    yield from of.picture("validate", "projection_distributions", words)
    words = "Eight layers from first to last: held-out projections, effect size and its interval."
    yield from of.picture("validate", "progressive_distributions", words)
    for path in sorted((of.figures / "layer_distributions").glob("*.svg")):
        layer = int(path.stem.split("_")[1])
        words = f"Layer {layer}: held-out projections; outline: in-sample."
        yield from of.picture("validate", f"layer_distributions/{path.stem}", words)


def candidates(of: Material) -> Blocks:
    done = of.stages.get("select")
    if not done:
        return
    if done.about["reasons"]:
        yield Words(done.about["reasons"], listed=True)
    rows, chosen = done.rows("candidates"), done.about["chosen"]
    if not rows:
        return
    if chosen is None:
        yield Words([printed_causes.why_none(rows)])
    words = "Every layer and position: refusal score of harmful prompts with the direction "
    words += "ablated, of harmless ones with it added, and KL on harmless prompts. Ring: chosen."
    yield from of.picture("select", "candidates", words)
    table = printed_causes.candidate_table(rows, printed_causes.place_of(chosen))
    yield Fold("Every candidate", [Table("Candidate directions, by logits on val", *table)])


def interventions(of: Material) -> Blocks:
    done = of.stages.get("causal")
    rows = done.rows("causal") if done else []
    if rows:
        words = "Each intervention: harmful prompts complied with (red), harmless ones refused "
        words += "(blue); rings: the mean of random directions at the same sites. Strokes: 95 % "
        words += "intervals."
        yield from of.picture("causal", "causal", words)
        yield Table("Interventions beside random directions", *printed_causes.causal_table(rows))
    elif done:
        yield Words(done.about["reasons"], listed=True)


def behaviour(of: Material) -> Blocks:
    done = of.stages.get("behaviour")
    if not done:
        return
    about = done.about
    where = f"layer {about['layer']}, position {about['pos']}"
    rows = [(words, estimate_cell(about[k])) for k, words in PREDICTED.items()]
    columns = ("quantity", "estimate [95 %]")
    yield Table(f"What a prompt's projection predicts, at {where}", columns, rows)
    words = "Left: each prompt's projection, filled where refused (hover a point for its id). "
    words += "Middle: AUROC by layer. Right: predicted against observed refusal. 95 % intervals."
    yield from of.picture("behaviour", "behaviour", words)
    low = printed_causes.low_in_words(about["low_projecting"])
    yield Words([printed_causes.calibration_in_words(about["calibration"]), *low], listed=True)


def over_refusal(of: Material) -> Blocks:
    baseline, sweep = of.stages.get("baseline"), of.stages.get("sweep")
    if not baseline:
        return
    after = (sweep.about.get("refusal_after") if sweep else None) or {}
    rows = [
        (name, was["n"], rate_cell(was, "refusal"), rate_cell(after.get(name, {}), "refusal"))
        for name, was in baseline.about["refusal"].items()
    ]
    columns = ("prompts", "n", "refused untouched [95 %]", "refused, direction ablated [95 %]")
    note = "scary: safe prompts that sound dangerous. Refusals of them and of harmless prompts are "
    note += "over-refusal. An empty cell: not asked."
    yield Table("Refusals by set of prompts", columns, rows, note)


def judges(of: Material) -> Blocks:
    kappas = {"judges_kappa": "how the answer begins", "model_judge_kappa": "judge model"}
    rows = [
        (f"{name}, rule judge against {words}", kappa_cell(found[k]))
        for name, found in _judged(of)
        for k, words in kappas.items()
        if found.get(k)
    ]
    if rows:
        note = "Refused or not. The rule judge has not been measured against human labels."
        yield Table("Agreement of judges", ("completions", "Cohen's kappa [95 %]"), rows, note)


def _judged(of: Material) -> Iterator[tuple[str, Row]]:
    if "baseline" in of.stages:
        yield "untouched", of.stages["baseline"].about
    if "sweep" in of.stages and of.stages["sweep"].about.get("test"):
        yield "direction ablated", of.stages["sweep"].about["test"]


def confounds(of: Material) -> Blocks:
    if "validate" in of.stages:
        table = printed.form_table(of.stages["validate"].json("confounds"))
        note = "AUROC 0.5: the form of the prompts does not tell the classes apart."
        yield Table("Could form alone tell the classes apart?", *table, note)


SECTIONS: dict[str, Callable[[Material], Blocks]] = {
    "Verdict: one direction?": verdict,
    "One direction or many: the rank": rank,
    "Layers: where the classes separate": layers,
    "Which direction: candidates by logits": candidates,
    "Interventions at given layers": interventions,
    "Does the projection predict behaviour?": behaviour,
    "Over-refusal": over_refusal,
    "Judges": judges,
    "Confounds": confounds,
}
