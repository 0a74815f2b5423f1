"""Timing two ways of one thing in one run, and what the machine is."""

import os
import platform
import statistics
import time
from importlib.metadata import version
from typing import NamedTuple

import torch

PACKAGES = ("torch", "transformers", "nnsight", "numpy", "scikit-learn")


class Row(NamedTuple):
    """A line of the table. ratio: theirs over ours, or ours over the floor, as `work` says."""

    work: str
    against: str
    ours: float
    theirs: float
    ratio: float
    bar: str
    note: str


def seconds(run, times=1):
    """The least time of several runs, since noise only adds, and the last one's result."""
    taken, result = [], None
    for _ in range(times):
        begun = time.perf_counter()
        result = run()
        taken.append(time.perf_counter() - begun)
    return min(taken), result


def both(ours, theirs, times=3):
    """Seconds and results of two ways, turn by turn; the median of the ratios of neighbours."""
    taken, results = [], None
    for _ in range(times):
        one, two = seconds(ours), seconds(theirs)
        taken.append((one[0], two[0]))
        results = one[1], two[1]
    ratio = statistics.median(b / a for a, b in taken)
    return *(min(column) for column in zip(*taken, strict=True)), ratio, *results


def peak_flops(model, size=1024):
    """Multiply-adds times two per second of the best matrix product found, in the model's dtype."""
    best = 0.0
    for rows, inner, columns in (
        (2048, model.d_model, 4 * model.d_model),
        (2048, 4 * model.d_model, model.d_model),
        (size, size, size),
        (4 * size, 2 * size, 2 * size),
    ):
        a = torch.randn(rows, inner).to(model.dtype)
        b = torch.randn(columns, inner).to(model.dtype)
        taken, _ = seconds(lambda a=a, b=b: torch.nn.functional.linear(a, b), 8)
        best = max(best, 2 * rows * inner * columns / taken)
    return best


def machine():
    """In a line: processor, cores, threads, versions."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):  # noqa: PTH110
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            found = [line.partition(": ")[2].strip() for line in file if "model name" in line]
        name = found[0] if found else name
    packages = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}{gpu}, {threads}; Python {platform.python_version()}, {packages}"
