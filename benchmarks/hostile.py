"""A hostile afternoon: stages killed and interrupted at random times, disks that fill up (of root
only, who can mount them), result files spoilt at random places.

    python benchmarks/hostile.py [kills [faults]]

Every stage runs in a child of this process, which holds the models; the child gets SIGKILL, SIGINT
or SIGTERM a moment after a unit of work drawn uniformly from those of a whole run, then a second
one goes on. A child that was interrupted must say so in just one line and end in 130 or 143.
Counted is what the journal was given (batches, rows, KLs) and units of completions begun: begun
more is lost work (2 of one unit of completions: begun, and given to the journal).
"""

from __future__ import annotations

import importlib
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from experiments import ending
from refusal_nn import feeding, journal, planted, rollouts
from refusal_nn.errors import CorruptArtefact, InputError
from refusal_nn.files import read_json, sha256
from refusal_nn.runs import Stage

CHAIN = ("capture", "validate", "similarity", "select", "baseline", "sweep", "subspace")
SMALL = "--n=72 --dtype=float32 --device=cpu --val=8 --tokens=6 --controls=1 --layers=3"
ENDS = {signal.SIGKILL: (-9, ""), signal.SIGINT: (130, ending.GOES_ON)}
ENDS |= {signal.SIGTERM: (143, ending.GOES_ON)}
BEGUN = mmap.mmap(-1, 8)  # shared with children: units and batches begun


def main(kills: int = 20, faults: int = 200) -> None:
    feeding.TOKEN_BUDGET["cpu"] = 64  # many batches
    _count(journal.Journal, "add")
    _count(rollouts.Rollout, "_unit")
    root = Path(tempfile.mkdtemp())
    (root / "results").mkdir()
    mounted = os.geteuid() == 0
    if mounted:
        _tool("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", root / "results")
    try:
        planted.write_prompts(root / "prompts.csv", 72)
        begun = time.perf_counter()
        for stage in CHAIN:
            _run(stage, root)
        print(f"chain: {time.perf_counter() - begun:.0f} s", flush=True)
        for stage in os.environ.get("KS", "capture,sweep,subspace").split(","):
            for number in ENDS:
                _kill(stage, root, kills, number)
            if mounted:
                _fill(stage, root, kills)
        _spoil(root, faults)
    finally:
        if mounted:
            _tool("umount", root / "results")
        shutil.rmtree(root)


def _tool(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


def _count(owner: object, name: str) -> None:
    whole = getattr(owner, name)

    def counted(*args: object, **options: object) -> object:
        BEGUN[:8] = (int.from_bytes(BEGUN[:8], "little") + 1).to_bytes(8, "little")
        return whole(*args, **options)

    setattr(owner, name, counted)


def _run(stage: str, root: Path) -> None:
    few = "--permutations=100" if stage == "validate" else ""
    words = SMALL.split()[:3] if stage in ("capture", "validate", "similarity") else SMALL.split()
    where = [f"--{name}={root / name}" for name in ("results", "figures")]
    where += [f"--prompts={root / 'prompts.csv'}", "--model=planted-1"]
    sys.argv = [stage, *words, *where, *few.split()]
    importlib.import_module(f"experiments.{stage}").main()


def _child(stage: str, root: Path) -> int:
    """The process id of a command that runs a stage; what it says to stderr goes to root/said."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # until there is someone who hears it
    pid = os.fork()
    if pid == 0:
        code = 1
        # A shell starts background jobs with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            for number, path in ((1, Path(os.devnull)), (2, root / "said")):
                with path.open("w") as file:
                    os.dup2(file.fileno(), number)
            ending.run(lambda: _heard() or _run(stage, root))
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _heard()
    return pid


def _heard() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)


def _ended(pid: int, root: Path) -> tuple[int, str]:
    """Exit code of a child, minus the signal that killed it, and what it said to stderr."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, (root / "said").read_text().strip()


def _begun() -> int:
    found = int.from_bytes(BEGUN[:8], "little")
    BEGUN[:8] = bytes(8)
    return found


def _wait_for(pid: int, units: int) -> None:
    """Until a child has begun so many, or is done."""
    while int.from_bytes(BEGUN[:8], "little") < units:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def _tables(folder: Path) -> dict[str, str]:
    return {
        path.name: sha256(path)
        for path in folder.iterdir()
        if path.name not in (".lock", "manifest.json", "settings.json") and path.is_file()
    }


def _kill(stage: str, root: Path, kills: int, number: signal.Signals) -> None:
    """A line: of how many kills the tables were the same, how much was begun twice."""
    folder, rng = root / "results" / "planted-1" / stage, random.Random(f"{stage} {number}")
    whole = _tables(folder)
    (folder / "summary.json").unlink()
    _begun()
    begun = time.perf_counter()
    assert _ended(_child(stage, root), root) == (0, "")
    length, once = time.perf_counter() - begun, _begun()
    same, lost, other = 0, [], []
    assert _tables(folder) == whole, stage
    while len(lost) < kills:
        (folder / "summary.json").unlink()
        pid = _child(stage, root)
        _wait_for(pid, rng.randrange(once))
        time.sleep(rng.uniform(0, length / once))
        late = (folder / "summary.json").exists()
        os.kill(pid, number)
        end, first = _ended(pid, root), _begun()
        other += [end] * (not late and end != ENDS[number])
        if not (folder / "summary.json").exists():
            assert _ended(_child(stage, root), root) == (0, "")
            lost.append(first + _begun() - once)
            same += _tables(folder) == whole
    print(
        f"{stage}: {same} of {len(lost)} {number.name} ended in the same bytes; a whole run begins "
        f"{once} in {length:.1f} s, begun more: {sorted(lost)}; ended otherwise: {other}",
        flush=True,
    )


def _fill(stage: str, root: Path, times: int) -> None:
    """A line: of how many runs on a disk that filled up the tables were the same in the end; and
    where old files did not stay, or it was not said how many bytes are needed."""
    disk, rng, same, other = root / "results", random.Random(stage), [], []
    folder = disk / "planted-1" / stage
    whole, most = _tables(folder), sum(path.stat().st_size for path in folder.iterdir())
    while len(same) < times:
        (folder / "summary.json").unlink()
        kept, room = _tables(folder), rng.randrange(most)
        with (disk / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(disk).free - room)
        code, said = _ended(_child(stage, root), root)
        (disk / "ballast").unlink()
        if code:
            now = _tables(folder)
            fine = code == 7 and "bytes needed" in said and "\n" not in said
            fine &= kept.items() <= now.items() and "summary.json" not in now
            other += [(room, code, said)] * (not fine)
            assert _ended(_child(stage, root), root) == (0, "")
            same.append(_tables(folder) == whole)
    print(
        f"{stage}: {sum(same)} of {times} full disks ended in the same bytes; otherwise: {other}",
        flush=True,
    )


def _spoil(root: Path, faults: int) -> None:
    """A line: how many of the faults were detected, by kind of file."""
    rng, results = random.Random(0), root / "results" / "planted-1"
    files = sorted(p for p in results.glob("*/*") if p.is_file() and p.name != ".lock")
    kinds = sorted({p.suffix if p.suffix != ".json" else p.name for p in files})
    seen, found = Counter(), Counter()
    for i in range(faults):
        kind = kinds[i % len(kinds)]
        path = rng.choice([p for p in files if p.name.endswith(kind)])
        how, content = rng.choice(("bit", "cut", "added")), path.read_bytes()
        at = rng.randrange(len(content))
        flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        bad = {"bit": flipped, "cut": content[:at], "added": content + rng.randbytes(9)}[how]
        others = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
        path.write_bytes(bad)
        seen[kind, how] += 1
        found[kind, how] += _noticed(Stage(path.parent), path, bad)
        for p, was in others.items():
            p.write_bytes(was)
        for aside in path.parent.glob("*.corrupt"):
            aside.unlink()
    missed = {k: seen[k] - found[k] for k in seen if seen[k] != found[k]}
    noticed = sum(found.values())
    print(f"{noticed} of {faults} faults noticed and set aside, nothing used; missed: {missed}")
    print("kinds of file:", ", ".join(kinds))


def _noticed(stage: Stage, path: Path, bad: bytes) -> bool:
    if path.name == "settings.json":  # what was asked for last: written anew, the stamp removed
        stage.request(wanted := stage.settings())
        return read_json(path) == wanted and not stage.summary.exists()
    try:
        stage.verify()
    except CorruptArtefact:
        aside = path.with_name(f"{path.name}.corrupt")
        return aside.read_bytes() == bad and not path.exists() and not stage.summary.exists()
    except InputError:
        return False
    return False


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
