"""A stage's result folder: atomic writes, settings, manifest, lock. A folder with a summary.json is
complete.

results/<model>/<stage>/   settings.json   what was asked for; rewritten only when it changes, so
make can look at it
                           *.csv *.safetensors
                           manifest.json   how it came about, and the sha256 of every artefact,
                           of summary.json and of its own content
                           summary.json    written last, by rename: the stamp
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from refusal_nn.errors import CorruptArtefact, DiskError, FolderInUse, InputError
from refusal_nn.files import json_text, read_json, sha256, write_text
from refusal_nn.journal import Journal
from refusal_nn.origins import git_commit, versions

JOURNAL = "progress.jsonl"
BATCHES = "progress"  # a folder: what a capture at work has done
# A person may delete it after reading, or write into it: it is no artefact.
KEPT = "kept_text.jsonl"
KEEP = ("settings.json", "manifest.json", "summary.json", ".lock", JOURNAL, KEPT)


@dataclass(frozen=True)
class Stage:
    """One stage's folder."""

    folder: Path

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    def request(self, settings: Mapping[str, object]) -> bool:
        """Record what is asked for, touching settings.json only if that differs from last time;
        whether it does."""
        self._require_own()
        path, text = (
            self.folder / "settings.json",
            json.dumps(settings, indent=2, sort_keys=True) + "\n",
        )
        if path.exists() and path.read_bytes() == text.encode():
            return False
        # Its time alone does not tell make: a clock may have been set back.
        self.summary.unlink(missing_ok=True)
        write_text(path, text)
        return True

    def is_current(self, settings: Mapping[str, object]) -> bool:
        """Whether the folder holds a finished run of just these settings."""
        try:
            return self.summary.exists() and self.settings() == dict(settings)
        except CorruptArtefact:
            return False

    def _require_own(self) -> None:
        """Raises InputError where a link would lead what is written to another place."""
        for path in (self.folder.parent, self.folder, self.folder / ".lock"):
            if path.is_symlink():
                raise InputError(
                    f"{path} is a link; results are written to their own folders only: remove it, "
                    "or give another RESULTS= folder"
                )
        self._require_plain()

    def _require_plain(self) -> None:
        """Raises InputError where a folder, a pipe or a device has the name of a file of ours: it
        could not be replaced, or would be read for ever."""
        for path in (self.folder / name for name in KEEP):
            if path.exists() and not path.is_file():
                raise InputError(
                    f"{path} is no plain file: remove it, or give another RESULTS= folder"
                )

    @contextlib.contextmanager
    def run(self, settings: Mapping[str, object]) -> Iterator[Run]:
        """Hold the folder's lock while a stage computes; the stamp of an earlier run goes first.
        Raises FolderInUse."""
        self._require_own()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"could not make {self.folder}: {error.strerror}") from error
        with (self.folder / ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise FolderInUse(
                    f"{self.folder} is in use by process {lock.read().strip()}; wait for it, or "
                    "give "
                    "another RESULTS= folder"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self.request(settings)
            self.summary.unlink(missing_ok=True)
            for leftover in self.folder.glob(".*.partial"):
                if not leftover.is_dir():
                    leftover.unlink()
            yield Run(self.folder, dict(settings), time.time(), _artefacts(self.folder))

    def artefact(self, name: str) -> Path:
        """Path of a finished run's file, its sha256 checked. A file that differs is set aside;
        raises CorruptArtefact."""
        path, expected = self.folder / name, self._manifest()["sha256"]
        if name in expected and path.is_file() and sha256(path) == expected[name]:
            return path
        raise self._set_aside(path)

    def require_finished(self) -> None:
        """Raises InputError where there is no finished run."""
        if not self.summary.exists():
            raise InputError(
                f"{self.folder} holds no finished run; run `make {self.folder.name}` first"
            )

    def settings(self) -> dict[str, object]:
        """What the finished run was asked for."""
        return self._manifest()["settings"]

    def about(self) -> dict[str, object]:
        """The finished run's summary, checked. Raises InputError, CorruptArtefact."""
        self._manifest()
        return read_json(self.summary)

    def verify(self) -> None:
        """Check every artefact of a finished run. Raises CorruptArtefact, the faulty file set
        aside."""
        for name in self._manifest()["sha256"]:
            self.artefact(name)

    def _manifest(self) -> dict[str, dict[str, object]]:
        self.require_finished()
        self._require_plain()
        path = self.folder / "manifest.json"
        try:
            text = path.read_text(encoding="utf-8")
            manifest = json.loads(text)
        except (OSError, ValueError):
            text = manifest = None
        if not isinstance(manifest, dict) or _signed(manifest) != text:
            raise self._set_aside(path)
        if sha256(self.summary) != manifest["summary_sha256"]:
            raise self._set_aside(self.summary)
        return manifest

    def _set_aside(self, path: Path) -> CorruptArtefact:
        aside = path.with_name(f"{path.name}.corrupt")
        try:
            if os.path.lexists(path):
                path.replace(aside)
            self.summary.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(
                f"{path} is not what was written there, and could not be set aside as "
                f"{aside.name}: {error.strerror}; remove both"
            ) from error
        return CorruptArtefact(
            f"{path} is not what was written there and was set aside; the same command computes "
            "it again."
        )


@dataclass(frozen=True)
class Run:
    """A stage at work: write artefacts into `folder`, then finish.

    started: seconds since 1970. before: artefacts of an earlier run, with their times.
    """

    folder: Path
    settings: dict[str, object]
    started: float
    before: dict[Path, int]

    def journal(self, where: Mapping[str, str]) -> Journal:
        """Rows of this very run if it was killed before, and the place for more.

        where: the weights and what they run on, which settings such as DEVICE=auto do not say: rows
        of one precision are not taken up for another's.
        """
        about = {"settings": self.settings, "packages": versions(), "code": code_hash()}
        about["where"] = dict(where)
        return Journal(self.folder / JOURNAL, about)

    def finish(self, summary: Mapping[str, object], about: Mapping[str, object]) -> None:
        """Write manifest.json (about: model, revision, hashes …), then summary.json, the stamp.

        What an earlier run left and this one did not write again is of other settings: removed.
        """
        files = _artefacts(self.folder)
        for stale in [path for path, time_ns in files.items() if self.before.get(path) == time_ns]:
            stale.unlink()
            del files[stale]
        stamp = json_text(summary)
        manifest = {
            "settings": self.settings,
            **about,
            "wall_seconds": round(time.time() - self.started, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "packages": versions(),
            "git_commit": git_commit(),
            "sha256": {p.name: sha256(p) for p in files},
            "summary_sha256": hashlib.sha256(stamp.encode()).hexdigest(),
        }
        # As it will be read: tuples are lists then.
        write_text(self.folder / "manifest.json", _signed(json.loads(json_text(manifest))))
        # Someone may have asked for other settings meanwhile: this stamp is not theirs.
        Stage(self.folder).request(self.settings)
        write_text(self.folder / "summary.json", stamp)
        (self.folder / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.folder / BATCHES, ignore_errors=True)


def _signed(manifest: Mapping[str, object]) -> str:
    """The manifest's text, its own sha256 in it."""
    content = {k: v for k, v in manifest.items() if k != "own_sha256"}
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json_text(content | {"own_sha256": own})


def _artefacts(folder: Path) -> dict[Path, int]:
    """The artefacts in a folder, in order of name, each with its time of modification."""
    return {
        path: path.stat().st_mtime_ns
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in KEEP and path.suffix != ".corrupt"
    }


def code_hash() -> str:
    """sha256 over this package's source files as they are now."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()
