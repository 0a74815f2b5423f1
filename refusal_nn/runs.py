"""A stage's result folder: atomic writes, settings, manifest, lock. A folder with a summary.json is complete.

    results/<model>/<stage>/   settings.json   what was asked for; rewritten only when it changes, so make can look at it
                               *.csv *.safetensors
                               manifest.json   how it came about, and the sha256 of every artefact
                               summary.json    written last, by rename: the stamp
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_nn.errors import CorruptArtefact, DiskError, FolderInUse, InputError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("refusal_nn", "nnsight", "torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")
KEEP = ("settings.json", "manifest.json", "summary.json", ".lock")


def safe_name(name: str) -> str:
    """A file name for a model: itself if it is [A-Za-z0-9._-]{1,80}, else its cleaned tail and 8 hex digits of its hash."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name):
        return name
    tail = Path(name.rstrip("/")).name.removesuffix(".gguf")
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip(".-")[:60] or "model"
    return f"{cleaned}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success; on failure the old file stays. Raises DiskError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DiskError(f"could not write {path}: {error.strerror}; free some space and run the same command again") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as CSV, columns in the first row's order, floats to 10 significant digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(path, buffer.getvalue())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    """Tensors as safetensors; `about` as canonical JSON under the metadata key refusal_nn."""
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial,
                  metadata={"refusal_nn": json.dumps(about, sort_keys=True)})


def read_csv(path: Path) -> list[dict[str, object]]:
    """Rows of a CSV that write_csv wrote, numbers and booleans parsed."""
    def parsed(text: str) -> object:
        if text in ("True", "False"):
            return text == "True"
        with contextlib.suppress(ValueError):
            return int(text)
        with contextlib.suppress(ValueError):
            return float(text)
        return text

    with path.open(newline="", encoding="utf-8") as file:
        return [{k: parsed(v) for k, v in row.items()} for row in csv.DictReader(file)]


def read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Stage:
    """One stage's folder."""

    folder: Path

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    def request(self, settings: Mapping[str, object]) -> None:
        """Record what is asked for, touching settings.json only if that differs from last time."""
        path, text = self.folder / "settings.json", json.dumps(settings, indent=2, sort_keys=True) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def is_current(self, settings: Mapping[str, object]) -> bool:
        """Whether the folder holds a finished run of just these settings."""
        return self.summary.exists() and read_json(self.folder / "manifest.json").get("settings") == dict(settings)

    @contextlib.contextmanager
    def run(self, settings: Mapping[str, object]) -> Iterator[Run]:
        """Hold the folder's lock while a stage computes; the stamp of an earlier run goes first. Raises FolderInUse."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise FolderInUse(f"{self.folder} is in use by process {lock.read().strip()}; wait for it, or give "
                                  "another RESULTS= folder") from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self.request(settings)
            self.summary.unlink(missing_ok=True)
            for leftover in self.folder.glob(".*.partial"):
                leftover.unlink()
            yield Run(self.folder, dict(settings), time.monotonic())

    def artefact(self, name: str) -> Path:
        """Path of a finished run's file, its sha256 checked. A file that differs is set aside; raises CorruptArtefact."""
        if not self.summary.exists():
            raise InputError(f"{self.folder} holds no finished run; run `make {self.folder.name}` first")
        expected = read_json(self.folder / "manifest.json")["sha256"]
        path = self.folder / name
        if name in expected and path.exists() and sha256(path) == expected[name]:
            return path
        if path.exists():
            path.replace(path.with_name(f"{name}.corrupt"))
        self.summary.unlink()
        raise CorruptArtefact(f"{path} is not what its manifest says and was set aside; run the same command again to recompute it")


@dataclass(frozen=True)
class Run:
    """A stage at work: write artefacts into `folder`, then finish."""

    folder: Path
    settings: dict[str, object]
    started: float

    def finish(self, summary: Mapping[str, object], about: Mapping[str, object]) -> None:
        """Write manifest.json (about: model, revision, dtype, hashes …), then summary.json, the stamp."""
        files = sorted(p for p in self.folder.iterdir() if p.is_file() and p.name not in KEEP and not p.name.endswith(".corrupt"))
        write_json(self.folder / "manifest.json", {
            "settings": self.settings, **about, "wall_seconds": round(time.monotonic() - self.started, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "packages": versions(), "git_commit": git_commit(),
            "sha256": {p.name: sha256(p) for p in files},
        })  # fmt: skip
        write_json(self.folder / "summary.json", summary)


def versions() -> dict[str, str]:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {name: version(name) for name in PACKAGES}


def git_commit() -> str:
    """Commit of the code, with + if the working tree differs; `unknown` outside a checkout."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments],
                              capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
