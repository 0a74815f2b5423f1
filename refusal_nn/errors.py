"""Errors that a user can cause or must know of, each with the exit code of the command that meets
it."""

from __future__ import annotations


class RefusalNNError(Exception):
    """Base of all expected errors: one clear message (what, allowed values, next command), no
    traceback."""

    exit_code = 1


class InputError(RefusalNNError, ValueError):
    """A bad argument, prompt file or table."""

    exit_code = 2


class ModelError(RefusalNNError):
    """A model that is missing, gated, of unknown shape, or that fails the self-test on load."""

    exit_code = 3


class NotFinite(ModelError, ValueError):
    """NaN or infinity where a number is needed."""


class CorruptArtefact(RefusalNNError):
    """A result file that is not what the manifest says, and that could not be recomputed."""

    exit_code = 4


class RemoteFailure(RefusalNNError):
    """A server that is down, refuses, differs in version or did not answer in time."""

    exit_code = 5


class OutOfMemory(RefusalNNError, MemoryError):
    """One prompt alone does not fit in memory."""

    exit_code = 6


class DiskError(RefusalNNError, OSError):
    """A result could not be written."""

    exit_code = 7


class Incomplete(RefusalNNError):
    """A part of what was asked for failed; the rest is done and written."""

    exit_code = 9


class FolderInUse(RefusalNNError):
    """Another run holds the result folder."""

    exit_code = 8
