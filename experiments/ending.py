"""How an experiment ends that cannot go on: one line that says why, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from refusal_nn.errors import DiskError, OutOfMemory, RefusalNNError
from refusal_nn.memory import asked_for, is_out_of_memory
from refusal_nn.plain_text import visible

GOES_ON = "interrupted; the same command goes on where this one stopped"
LONGEST = 2000  # characters of a message: what it quotes may be a whole file


def run(main: Callable[[], None]) -> None:
    """Run an experiment: an expected error ends in one line and its exit code.

    An interruption ends in one line and 130 (Ctrl-C) or 143 (SIGTERM).
    """
    terminated: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, terminate)
    try:
        main()
    except KeyboardInterrupt:
        print(GOES_ON, file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # Not sys.exit: where the interruption passed through eval() or exec() of a string, as of a
        # named tuple that is being made, Python would still end by SIGINT, whatever the code.
        os._exit(143 if terminated else 130)
    except BrokenPipeError:
        # A pipe that closes (| head) is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RefusalNNError, MemoryError, RuntimeError, OSError) as error:
        said, code = _said(error)
        if said is None:
            raise
        print(visible(f"error: {said}"[:LONGEST]), file=sys.stderr)
        sys.exit(code)


def _said(error: Exception) -> tuple[str | None, int]:
    """What to say of an error, None for one that is a fault of this program; the exit code."""
    if isinstance(error, RefusalNNError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        advice = "try DTYPE=bfloat16, DEVICE=cpu or a smaller model"
        return f"out of memory: {asked_for(error)}; {advice}", OutOfMemory.exit_code
    # Of a file: closed to this user, on a disk that fails, a folder in its place.
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "make it usable, or give another RESULTS= folder"
        return f"{error.filename}: {error.strerror}; {remedy}", DiskError.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"what is printed cannot be written: {error.strerror}", DiskError.exit_code
    return None, 1
