"""Memory that does not suffice: told from other errors, and how much was asked for. No heavy
import at its top."""

from __future__ import annotations

import re

_SIZES = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMG]iB)", re.IGNORECASE)
# What torch says where it raises a plain RuntimeError.
_WORDS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory did not suffice, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def asked_for(error: BaseException) -> str:
    """As `2,048 MB were asked for`, where the error says it; else that it is not known."""
    found = _ASKED.search(str(error))
    if found is None:
        return "how much more is needed is not known"
    size = float(found[1]) * _SIZES[found[2].lower()]
    return f"{size / 1e6:,.0f} MB more were asked for"


def free_bytes(device: str) -> float:
    """Memory that is free on a device, in bytes."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return psutil.virtual_memory().available
