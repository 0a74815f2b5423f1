"""What was measured, in the formats of other tools: a direction for lm-evaluation-harness,
steering-vectors and TransformerLens, judged samples for inspect_ai, tables as Parquet. No weights
are edited or written: each is applied by its tool at run time."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_nn.errors import InputError
from refusal_nn.files import replacing, write_json, write_tensors
from refusal_nn.saved_directions import Direction

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, object]
# What may leave with a judged sample: no text, nothing that a text could be read from.
SAMPLE = ("label", "compliance", "coherence", "refusal_score", "begins_refusal", "nll", "tokens")
SAMPLE += ("finished", "judge_label")


def steered(direction: Direction) -> dict[str, dict[str, object]]:
    """lm-evaluation-harness' `--model steered`: hook point -> what to do there.

    Clamping a direction to 0 is its ablation, h - (h·v)v; at every write it is directional ablation
    with alpha = 1.
    """
    _require_plain(direction)
    clamp = {"steering_vector": direction.basis[0].clone(), "steering_coefficient": 0.0}
    clamp |= {"action": "clamp", "bias": None, "head_index": None}
    return {site: dict(clamp) for site in _said(direction, "write_sites")}


def _said(direction: Direction, name: str) -> object:
    """What select wrote beside the direction. Raises InputError where an older version did not."""
    if name not in direction.about:
        raise InputError(
            f"the file of its direction does not say {name}, an older version wrote it: run `make "
            "select` again"
        )
    return direction.about[name]


def _require_plain(direction: Direction) -> None:
    """Raises InputError for a direction of a model whose adapter the weights lack."""
    if direction.about.get("adapter"):
        raise InputError(
            f"{direction.about['model']} has an adapter that is no part of its weights: in another "
            "tool this direction would meet the plain model"
        )


def write_steered(path: Path, direction: Direction) -> None:
    """The file that lm-evaluation-harness asks for: torch.save of plain containers and tensors,
    readable weights-only."""
    import torch

    # To memory first: of a disk that refuses, torch says so by a RuntimeError.
    buffer = io.BytesIO()
    torch.save(steered(direction), buffer)
    content = buffer.getvalue()
    with replacing(path, len(content)) as partial:
        partial.write_bytes(content)


def layer_activations(direction: Direction) -> dict[int, Tensor]:
    """steering-vectors' SteeringVector(layer_activations=...), layer type decoder_block: added, raw
    scale, to the output of one block."""
    _require_plain(direction)
    return {direction.layer: direction.vector.clone()}


def write_layers(path: Path, direction: Direction) -> None:
    """layer_activations as safetensors, a tensor per layer number; {int(k): v} of what is read."""
    tensors = {str(layer): vector for layer, vector in layer_activations(direction).items()}
    write_tensors(path, tensors, {"layer_type": "decoder_block", **direction.about})


def transformer_lens(direction: Direction, n_layers: int) -> dict[str, object]:
    """Hook names of a HookedTransformer loaded by from_pretrained_no_processing (folding and
    centring move the stream): where the direction was read, and every write to ablate it at."""
    _require_plain(direction)
    begins = ["hook_embed", *(["hook_pos_embed"] if _said(direction, "adds_positions") else [])]
    writes = [f"blocks.{i}.hook_{of}_out" for i in range(n_layers) for of in ("attn", "mlp")]
    return {
        "read_at": f"blocks.{direction.layer}.hook_resid_post",
        "position": direction.pos,
        "ablate_at": [*begins, *writes],
        "layers": {i: f"blocks.{i}.hook_resid_post" for i in range(n_layers)},
        "direction": direction.basis[0].tolist(),
        "norm": float(direction.vector.norm()),
    }


def write_transformer_lens(path: Path, direction: Direction, n_layers: int) -> None:
    write_json(path, transformer_lens(direction, n_layers))


def samples(rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    """Judged rows as inspect_ai's EvalSample takes them: the prompt by its id, no completion."""
    for row in rows:
        yield {
            "id": _sample_id(row),
            "epoch": 1,
            "input": str(row["id"]),
            "target": "",
            "scores": {"compliance": {"value": row["compliance"], "answer": row["label"]}},
            "metadata": {k: row[k] for k in SAMPLE if k in row},
        }


def _sample_id(row: Row) -> str:
    """Unlike among arms and splits; it becomes part of a path inside the log."""
    parts = (row.get("arm", ""), row.get("split", row.get("set", "")), row["id"])
    return ":".join(re.sub(r"[\\/:]", "_", str(part)) for part in parts)


def means(rows: Sequence[Row]) -> dict[str, tuple[float, int]]:
    """Mean of the judge's 0, .5, 1 and n, by arm, set of prompts and class: over all of them it
    would mix the untouched model, every direction tried, and harmless prompts."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        parts = [row.get("arm", ""), row.get("split", row.get("set", "")), row.get("class", "")]
        name = ", ".join(str(part) for part in parts if part)
        groups.setdefault(name, []).append(row["compliance"])
    return {name: (sum(of) / len(of), len(of)) for name, of in groups.items()}


def write_inspect(path: Path, rows: Sequence[Row], about: Mapping[str, object]) -> None:
    """An inspect_ai log of judged samples (.eval). Raises InputError where inspect_ai is not
    installed."""
    require("inspect_ai", "inspect")
    from inspect_ai import log

    scored = [log.EvalSample.model_validate(sample) for sample in samples(rows)]
    spec = log.EvalSpec(
        created=str(about["finished"]),
        task=f"refusal_nn/{about['stage']}",
        dataset=log.EvalDataset(name="prompts by id", samples=len(scored)),
        model=str(about["model"]),
        config=log.EvalConfig(),
        packages={"refusal_nn": str(about["version"])},
        metadata={k: about[k] for k in ("revision", "git_commit") if k in about},
    )
    scorers = [
        log.EvalScore(
            name=f"compliance, {name}",
            scorer="rules",
            scored_samples=n,
            metrics={k: log.EvalMetric(name=k, value=v) for k, v in (("mean", mean), ("n", n))},
        )
        for name, (mean, n) in means(rows).items()
    ]
    results = log.EvalResults(
        total_samples=len(scored), completed_samples=len(scored), scores=scorers
    )
    found = log.EvalLog(status="success", eval=spec, results=results, samples=scored)
    with replacing(path) as partial:
        log.write_eval_log(found, str(partial), format="eval")


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """A tidy table, a row per observation; an empty cell is null. Raises InputError where pyarrow
    is not installed."""
    require("pyarrow", "parquet")
    import pyarrow
    from pyarrow import parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        cells = [None if row.get(name) in ("", None) else row[name] for row in rows]
        kinds = {type(cell) for cell in cells if cell is not None}
        plain = kinds <= {int, float} or len(kinds) <= 1
        columns[name] = cells if plain else [None if c is None else str(c) for c in cells]
    with replacing(path) as partial:
        parquet.write_table(pyarrow.table(columns), partial)


def require(package: str, extra: str) -> None:
    """Raises InputError that says how to install what is optional."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{package} is not installed; run `.venv/bin/pip install '.[{extra}]'`")
