"""Two things timed side by side: interleaved runs, medians, one ratio."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Case:
    """One comparison: medians of `runs` interleaved runs; ratio = ours / peer, in time."""

    name: str
    ours: float
    peer: float
    ratio: float
    unit: str
    runs: int


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], runs: int, unit: str = "s"
) -> Case:
    """Time `ours` and `peer` in turn `runs` times each, after one warm-up of both."""
    ours()
    peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for call, seconds in zip((ours, peer), times, strict=True):
            gc.collect()
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return case(name, statistics.median(times[0]), statistics.median(times[1]), runs, unit)


def case(name: str, ours: float, peer: float, runs: int, unit: str = "s") -> Case:
    """Return the case of two times that were measured elsewhere, in one run."""
    return Case(name, round(ours, 6), round(peer, 6), round(ours / peer, 4), unit, runs)


def machine() -> dict[str, str | int]:
    """Return what the timings depend on: processor, cores, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "opacus", "flwr")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a kernel file
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or "unknown"
    return platform.processor() or "unknown"
