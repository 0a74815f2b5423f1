"""What the causal stages print: the saved numbers, with n and interval, and no text of a prompt."""

import pytest

from experiments import printed_causes
from refusal_nn.estimates import wilson
from refusal_nn.files import write_csv, write_json

HALF = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
LABELS = {"refusal": 50, "compliance": 40, "degenerate": 7, "deflection": 3}
STOPPED = {"model": "m", "verdict": "UNTESTABLE", "reasons": ["3 prompts refused: fewer than 5"]}


def rate(name, value=0.5):
    if value == "":
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), "")
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


def candidate(layer, ablated=-1.0, added=1.0, kl=0.01, norm=2.0):
    about = {"layer": layer, "pos": -1, "token": "[/INST]"}
    numbers = {"ablated": ablated, "added": added, "kl": kl, "norm": norm}
    return about | numbers | {"n_harmful": 32, "n_harmless": 32}


def selected(folder, rows, chosen=None):
    share = {"refused": 0.9, "low": 0.8, "high": 0.95}
    counts = [{"split": "val", "class": "harmful", "n": 64, "used": 32, **share}]
    counts.append({"split": "val", "class": "harmless", "n": 0, "used": 0})
    about = {"model": "m", "n_layers": 20, "counts": counts, "verdict": None, "reasons": []}
    write_json(folder / "summary.json", about | {"chosen": chosen})
    write_csv(folder / "candidates.csv", rows)


def swept(layer, **changes):
    about = {"layer": layer, "pos": -1, "token": "\n", "alpha": 1.0, "n": 32}
    counts = {"n_refusal": 9, "n_compliance": 16, "n_degenerate": 4, "n_deflection": 3}
    numbers = {**counts, "refusal_score": -1.25, "kl": 0.0321}
    return about | rate("compliance") | rate("coherence", 0.75) | numbers | changes


def measured(best, verdict="NO"):
    names = ("baseline_refusal", "compliance", "compliance_by_logits", "over_controls")
    test = dict.fromkeys((*names, "judges_kappa"), HALF)
    test |= {"controls_compliance": 0.03, "controls": 20, "controls_n": 400}
    test |= {"kl": 0.0456}
    test |= {"mcnemar": {"changed_up": 2, "changed_down": 41, "p": 1.5e-9, "log10_p": -8.8}}
    sets = {name: {"n": 60, **rate("refusal", 0.2)} for name in ("test.harmless", "scary")}
    after = sets | {"scary": {"n": 60, **rate("refusal", 0.1)}}
    found = {"verdict": verdict, "reasons": ["by [rate]", "second judge agrees"], "version": "1"}
    about = {"model": "m", "alpha": 1.0, "best": best, "test": test}
    return about | found | {"refusal_before": sets, "refusal_after": after}


def arm(name, label, **changes):
    about = {"intervention": name, "layers": "13-17", "source_layer": 15, "class": label, "n": 60}
    shares = {"controls_compliance": 0.05, "controls_refusal": 0.9} | rate("coherence", 0.95)
    found = rate("compliance", 0.6) | rate("refusal", 0.3) | rate("over_controls", 0.55)
    return about | found | shares | {"kl": 0.02} | changes


def behaved(folder, within, **changes):
    row = {"layer": 0, **rate("auroc", 0.8), **rate("auroc_harmful", within)}
    row |= {"spearman_severity": 0.3, "spearman_low": 0.1, "spearman_high": 0.5}
    write_csv(folder / "behaviour_by_layer.csv", [row])
    fitted = {"brier": 0.08, "brier_constant": 0.22, "slope": 1.05, "n": 60, "bins": []}
    low = [{"id": "h-7", "label": "refusal"}, {"id": "h-9", "label": "deflection"}]
    about = {"model": "m", "layer": 0, "pos": -1, "auroc": HALF, "auroc_harmful": None}
    about |= {"spearman_severity": HALF, "calibration": fitted, "low_projecting": low}
    write_json(folder / "summary.json", about | changes)


@pytest.fixture
def printed(tmp_path, capsys):
    """What a show function prints of the folder, as lines stripped of blanks at the ends."""

    def lines(show, *figures):
        show(tmp_path, *figures)
        return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return lines


def row_of(lines, start):
    """Cells of the table row that starts so, two blanks or more apart."""
    (row,) = [line for line in lines if line.split("  ")[0].strip() == start]
    return [cell.strip() for cell in row.split("  ") if cell.strip()]


def test_select_lists_those_that_pass_best_first_and_marks_the_chosen(tmp_path, printed):
    rows = [candidate(i, ablated=float(i)) for i in range(16)]
    rows[0] |= {"kl": 0.2}
    rows[1] |= {"added": -0.5}
    rows[2] |= {"norm": 0.0}
    selected(tmp_path, rows, chosen=rows[3])
    lines = printed(printed_causes.show_select, "figures/m")
    assert lines[0] == "val harmful: 64 asked, 90 % [80, 95] (n=64) refused, 32 used"
    assert lines[1] == "val harmless: 0 asked, none refused, 0 used"
    # The last fifth of 20 layers, counted by what enters them, is 15 and after.
    assert lines[2].startswith("m: 12 of 16 candidates pass")
    shown = [line.split()[0] for line in lines if "'[/INST]'" in line and line[0].isdigit()]
    assert shown == [str(i) for i in range(3, 13)]
    numbers = ["+3.00", "+1.00", "0.010", "2.00", "32 + 32"]
    assert row_of(lines, "3") == ["3", "-1 '[/INST]'", *numbers, "chosen"]
    assert row_of(lines, "4")[-1] == "32 + 32"
    where = "layer 3, pos -1 '[/INST]'"
    assert lines[-1] == f"wrote {tmp_path} (16 candidates, {where}) and figures/m"


def test_select_says_why_none_passes_and_shows_the_best_all_the_same(tmp_path, printed):
    rows = [candidate(0, kl=0.5), candidate(1, added=-2.0), candidate(19, kl=None)]
    selected(tmp_path, rows)
    lines = printed(printed_causes.show_select, "figures/m")
    assert "none passes: KL at most 0.1 nats 1, refusal when added 2, both 0" in lines[-2]
    assert row_of(lines, "19")[4] == "2.00"  # the norm: no KL before it
    assert lines[-1] == f"wrote {tmp_path} (3 candidates, none chosen) and figures/m"


@pytest.mark.parametrize("name", ["select", "sweep", "causal"])
def test_a_stage_that_could_test_nothing_says_only_why(name, tmp_path, printed):
    about = STOPPED | {"best": None, "chosen": None, "counts": []}
    write_json(tmp_path / "summary.json", about)
    lines = printed(getattr(printed_causes, f"show_{name}"), "figures/m")
    assert lines == ["UNTESTABLE:", *STOPPED["reasons"], f"wrote {tmp_path} (UNTESTABLE)"]


def test_baseline_shows_refusal_and_labels_by_set(tmp_path, printed):
    sets = {"val.harmful": {"n": 100, **rate("refusal"), "labels": LABELS}}
    sets["scary"] = {"n": 0, "labels": dict.fromkeys(LABELS, 0)}
    about = {"model": "m", "refusal": sets, "judges_kappa": HALF, "nll_limit": 4.321}
    write_json(tmp_path / "summary.json", about)
    lines = printed(printed_causes.show_baseline)
    cells = ["val.harmful", "100", "50 % [40, 60] (n=100)", "50", "40", "7", "3"]
    assert row_of(lines, "val.harmful") == cells
    assert row_of(lines, "scary") == ["scary", "0", "0", "0", "0", "0"]
    assert any("kappa 0.50 [0.40, 0.60] (n=100)" in line for line in lines)
    assert any("4.32 nats" in line for line in lines)
    assert lines[-1] == f"wrote {tmp_path} (2 sets)"


def test_the_sweep_shows_each_layer_then_the_test_then_the_verdict_and_its_reasons(
    tmp_path, printed
):
    rows = [swept(9), swept(15, **rate("compliance", ""))]
    write_csv(tmp_path / "sweep.csv", rows)
    write_json(tmp_path / "summary.json", measured(rows[0]))
    lines = printed(printed_causes.show_sweep, "figures/m")
    rates = ["50 % [40, 60] (n=32)", "75 % [65, 85] (n=32)"]
    numbers = ["3", "4", "0.032", "-1.25"]
    assert row_of(lines, "9") == ["9", "-1 '\\n'", "1", "32", *rates, *numbers, "best"]
    assert row_of(lines, "15") == ["15", "-1 '\\n'", "1", "32", rates[1], *numbers]
    shown = "\n".join(lines)
    for part in (
        "refused untouched 50 % [40, 60] (n=100)",
        "50 % [40, 60] (n=100) by rule judge, 50 % [40, 60] (n=100) by logits",
        "20 random directions 3 % [1, 8] (n=100), difference 50 points [40, 60] (n=100)",
        "KL on harmless 0.046 nats",
        "no longer refused 41, newly refused 2: McNemar p = 1.5e-09",
        "kappa 0.50 [0.40, 0.60] (n=100)",
        "test.harmless refused 20 % [10, 30] (n=60) -> 20 % [10, 30] (n=60)",
        "scary refused 20 % [10, 30] (n=60) -> 10 % [0, 20] (n=60)",
    ):
        assert part in shown
    assert lines[-4:-1] == ["Verdict v1: NO", "by [rate]", "second judge agrees"]
    best = "best layer 9, pos -1, alpha 1"
    assert lines[-1] == f"wrote {tmp_path} (2 directions, {best}) and figures/m"


def test_a_sweep_untestable_by_its_test_still_shows_its_table(tmp_path, printed):
    write_csv(tmp_path / "sweep.csv", [swept(9)])
    write_json(tmp_path / "summary.json", measured(swept(9), "UNTESTABLE"))
    lines = printed(printed_causes.show_sweep, "figures/m")
    assert row_of(lines, "9")[-1] == "best"
    assert "Verdict v1: UNTESTABLE" in lines


def test_every_intervention_is_a_row_with_its_random_directions(tmp_path, printed):
    write_json(tmp_path / "summary.json", {"model": "m", "verdict": None, "reasons": []})
    gap = rate("over_controls", "") | rate("compliance", "")
    rows = [arm("ablate window", "harmful"), arm("add +1", "harmless", **gap)]
    write_csv(tmp_path / "causal.csv", rows)
    lines = printed(printed_causes.show_causal, "figures/m")
    random = [wilson(n, 60).percent().removesuffix(" (n=60)") for n in (3, 54)]
    rates = ["60", "60 % [50, 70]", "30 % [20, 40]", *random]
    rest = ["55 points [45, 65]", "95 % [85, 105]", "0.020"]
    first = ["ablate window", "13-17", "15", "harmful", *rates, *rest]
    assert row_of(lines, "ablate window") == first
    assert row_of(lines, "add +1")[3:] == ["harmless", "60", *rates[2:], *rest[1:]]
    assert lines[-1] == f"wrote {tmp_path} (2 interventions) and figures/m"


def test_behaviour_shows_what_projection_predicts_and_the_low_prompts_by_id(tmp_path, printed):
    behaved(tmp_path, within="")
    lines = printed(printed_causes.show_behaviour, "figures/m")
    assert row_of(lines, "0") == ["0", "0.80 [0.70, 0.90]", "0.30 [0.10, 0.50]"]
    assert "layer 0, pos -1: AUROC of refusal 0.50 [0.40, 0.60] (n=100)" in lines
    assert "layer 0, pos -1: within harmful not measured" in lines
    assert "calibration: Brier 0.080, a constant's 0.220; slope 1.05 (n=60)" in lines
    assert lines[-4:-1] == [
        "harmful prompts of low projection: 2",
        "refused: h-7",
        "not refused: h-9",
    ]
    assert lines[-1] == f"wrote {tmp_path} (1 layers) and figures/m"


def test_behaviour_without_calibration_or_low_prompts_says_so(tmp_path, printed):
    behaved(tmp_path, 0.6, calibration=None, low_projecting=[])
    lines = printed(printed_causes.show_behaviour, "figures/m")
    assert row_of(lines, "0")[2] == "0.60 [0.50, 0.70]"
    assert "calibration of the probability of refusal: not measured" in lines
    assert lines[-3:-1] == ["refused: none", "not refused: none"]
