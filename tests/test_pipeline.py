"""The stages in turn on a tiny random model: their files, and that nothing spoils them."""

import importlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from refusal_nn.captured import read_capture
from refusal_nn.directions import difference_in_means
from refusal_nn.files import read_csv, read_json, sha256
from refusal_nn.prompts import load_prompts
from refusal_nn.runs import Stage

ROOT = Path(__file__).parent.parent
OPTIONS = ["--model", "tiny-llama", "--n", "40", "--dtype", "float32", "--device", "cpu"]
LAYERS = 6
SEED004 = "layer magnitude harmful_mean_proj harmless_mean_proj t_statistic p_value cohens_d valid"
FURTHER = (
    "log10_p cohens_d_crossfit d_low d_high auroc_crossfit auroc_low auroc_high p_permutation "
    "p_familywise valid_in_sample overlap_count overlap_range top1_coordinate_share"
)
SPREAD = (
    "layer harmful_mean harmful_std harmful_min harmful_max harmful_range harmless_mean "
    "harmless_std harmless_min harmless_max harmless_range mean_separation overlap_count"
)
RESULTS = {
    "capture": "activations.safetensors moments.safetensors prompts.csv",
    "validate": "validation_results.csv variance_by_layer.csv top10_layers.csv projections.csv "
    "validated_directions.safetensors confounds.json",
    "similarity": "cosine.csv similarity.json",
}
TABLES = [
    f"{stage}/{name}"
    for stage, names in RESULTS.items()
    for name in names.split()
    if name.endswith((".csv", ".safetensors"))
]


def run(stage, root, *arguments):
    """One experiment in this process, as from the command line."""
    few = ["--permutations", "100"] if stage == "validate" else []
    folders = ["--results", str(root / "results"), "--figures", str(root / "figures")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [stage, *OPTIONS, *few, *folders, *arguments])
        importlib.import_module(f"experiments.{stage}").main()
    return root / "results" / "tiny-llama"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root with all stages computed and drawn; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    for stage in ("capture", "validate", "similarity"):
        run(stage, root)
        if stage != "capture":
            run(stage, root, "--draw")
            run(stage, root, "--show")
    return root


@pytest.fixture(scope="module")
def results(finished):
    return finished / "results" / "tiny-llama"


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished root, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "copied")


def hashes(results, tables=TABLES):
    return {name: sha256(results / name) for name in tables}


@pytest.mark.parametrize("stage", RESULTS)
def test_a_stage_writes_just_the_files_of_its_contract(results, stage):
    about = {"settings.json", "manifest.json", "summary.json", ".lock"}
    assert {path.name for path in (results / stage).iterdir()} == {*RESULTS[stage].split()} | about
    Stage(results / stage).verify()


def test_there_is_a_picture_of_every_figure_and_of_every_layer(finished):
    folder = finished / "figures" / "tiny-llama"
    pictures = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert pictures == {
        "direction_analysis.png",
        "projection_distributions.png",
        "progressive_distributions.png",
        "heatmap.png",
        *(f"layer_distributions/layer_{i:02d}_histogram.png" for i in range(LAYERS)),
    }


def test_the_tables_have_the_seeds_columns_first_and_the_honest_ones_after(results):
    rows = read_csv(results / "validate" / "validation_results.csv")
    assert [row["layer"] for row in rows] == list(range(LAYERS))
    assert list(rows[0])[:8] == SEED004.split()
    assert set(FURTHER.split()) <= set(rows[0])
    top = read_csv(results / "validate" / "top10_layers.csv")
    assert top == sorted(rows, key=lambda row: -row["cohens_d_crossfit"])
    spread = read_csv(results / "validate" / "variance_by_layer.csv")
    assert list(spread[0])[:13] == SPREAD.split()
    assert "separation_variance_ratio" in spread[0]


def test_no_layer_of_a_random_model_is_valid_though_the_seeds_rule_passes_some(results):
    rows = read_csv(results / "validate" / "validation_results.csv")
    assert not any(row["valid"] for row in rows)
    assert any(row["valid_in_sample"] for row in rows)
    assert read_json(results / "validate" / "summary.json")["valid_layers"] == 0


def test_activations_means_and_prompts_belong_together(results):
    captured = read_capture(results / "capture")
    assert captured.states.shape == (LAYERS, 80, 1, 64)
    assert [row["label"] for row in captured.table].count("harmful") == 40
    means = load_file(results / "capture" / "moments.safetensors")
    assert set(means) == {
        f"mean.{s}.{k}" for s in ("fit", "val", "test") for k in ("harmful", "harmless")
    }
    fit = captured.classes("fit", -1)
    np.testing.assert_allclose(
        means["mean.fit.harmful"][:, -1], fit.harmful.mean(1), rtol=1e-4, atol=1e-5
    )
    assert fit.harmful.shape == fit.harmless.shape == (LAYERS, 20, 64)
    assert set(fit.clusters.tolist()).isdisjoint(captured.classes("test", -1).clusters.tolist())


def test_directions_and_projections_are_those_of_the_activations(results):
    fit = read_capture(results / "capture").classes("fit", -1)
    directions = load_file(results / "validate" / "validated_directions.safetensors")["directions"]
    expected = difference_in_means(fit.harmful, fit.harmless)
    np.testing.assert_allclose(directions, expected, rtol=1e-5, atol=1e-6)
    rows = read_csv(results / "validate" / "validation_results.csv")
    np.testing.assert_allclose(
        [row["magnitude"] for row in rows], np.linalg.norm(expected, axis=1), rtol=1e-6
    )
    scores = [
        row["projection"]
        for row in read_csv(results / "validate" / "projections.csv")
        if (row["layer"], row["split"], row["label"]) == (3, "fit", "harmful")
    ]
    assert np.mean(scores) == pytest.approx(rows[3]["harmful_mean_proj"], rel=1e-6)


def test_no_text_of_a_prompt_is_in_any_artefact(finished, results):
    used = {row["id"] for row in read_csv(results / "capture" / "prompts.csv")}
    texts = [p.prompt for p in load_prompts() if p.id in used]
    assert len(texts) == 80
    everything = b"\n".join(path.read_bytes() for path in finished.rglob("*") if path.is_file())
    for text in texts:
        words = text.split()
        for i in range(len(words) - 3):
            assert " ".join(words[i : i + 4]).encode() not in everything, text


def test_a_second_run_gives_the_same_bytes(results, tmp_path):
    run("validate", tmp_path)
    again = run("similarity", tmp_path)
    assert hashes(again) == hashes(results)


KILLED = """
import os, signal, sys
from pathlib import Path
import safetensors.torch
whole = safetensors.torch.save_file
def save_file(tensors, path, **about):
    whole(tensors, path, **about)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = save_file
from experiments import capture
capture.main()
"""


def test_a_run_killed_while_writing_is_taken_up_as_if_it_had_not_been(results, tmp_path):
    folders = ["--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]
    done = subprocess.run([sys.executable, "-c", KILLED, *OPTIONS, *folders], cwd=ROOT)
    capture = tmp_path / "results" / "tiny-llama" / "capture"
    assert done.returncode == -signal.SIGKILL
    assert len(list(capture.rglob(".*.partial"))) == 1
    assert not (capture / "summary.json").exists()
    assert not (capture / "activations.safetensors").exists()
    run("validate", tmp_path)
    assert hashes(run("similarity", tmp_path)) == hashes(results)
    assert not list(capture.rglob(".*.partial"))


def test_a_flipped_bit_in_the_activations_is_noticed_set_aside_and_recomputed(
    copied, results, capsys
):
    path = copied / "results" / "tiny-llama" / "capture" / "activations.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert hashes(run("validate", copied)) == hashes(results)
    assert "activations.safetensors" in capsys.readouterr().err
    assert path.with_name("activations.safetensors.corrupt").read_bytes() == content


def test_other_settings_make_validate_capture_again(copied):
    summary = copied / "results" / "tiny-llama" / "capture" / "summary.json"
    before = summary.stat().st_mtime_ns
    run("validate", copied)
    assert summary.stat().st_mtime_ns == before
    run("validate", copied, "--seed", "1")
    assert summary.stat().st_mtime_ns > before
    assert read_json(summary.with_name("manifest.json"))["settings"]["seed"] == 1


@pytest.mark.parametrize("given", ["-1,-2", "all"])
def test_further_positions_add_a_table_and_change_nothing_at_the_first(results, tmp_path, given):
    found = run("validate", tmp_path, f"--positions={given}")
    after = len(read_json(found / "capture" / "summary.json")["post_instruction_tokens"])
    count = after if given == "all" else 2
    rows = read_csv(found / "validate" / "validation_by_position.csv")
    assert [(row["pos"], row["layer"]) for row in rows] == [
        (-1 - i, layer) for i in range(count) for layer in range(LAYERS)
    ]
    states = load_file(found / "capture" / "activations.safetensors")["states"]
    assert states.shape == (LAYERS, 80, count, 64)
    assert hashes(found, ["validate/validation_results.csv"]).items() <= hashes(results).items()
