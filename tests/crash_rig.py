"""Writers that are killed by the hundred, each forked in milliseconds from one warm process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.process_rig import ROOT


def serve(write_for_ever: Callable[..., object]) -> None:
    """Fork a writer for each line of stdin, which is its arguments, tab by tab.

    Each says its process id, then whatever it acknowledges, a line each; its end is an empty line.
    """
    while line := sys.stdin.readline().rstrip("\n"):
        child = os.fork()
        if child == 0:
            acknowledge(os.getpid())
            write_for_ever(*line.split("\t"))
        os.waitpid(child, 0)
        os.write(1, b"\n")


def acknowledge(what: object) -> None:
    """Tell the test, at once."""
    os.write(1, f"{what}\n".encode())


class Writers:
    """Starts writers, one at a time, and kills them."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._orders, self._told = process.stdin, process.stdout

    def killed(self, *arguments: object, after: int, delay: float) -> list[str]:
        """Kill a writer `delay` seconds after so many words of it; return all it acknowledged."""
        self._orders.write("\t".join(map(str, arguments)).encode() + b"\n")
        writer = int(self._told.readline())
        told = [self._word() for _ in range(after)]
        time.sleep(delay)
        os.kill(writer, signal.SIGKILL)
        while word := self._word():
            told.append(word)
        return told

    def _word(self) -> str:
        return self._told.readline().decode().strip()


@contextmanager
def writers(of: Callable[..., Any]) -> Iterator[Writers]:
    """Start the process that forks writers; `of` is the function of a module that each runs."""
    code = (
        f"from {of.__module__} import {of.__name__} as it; from {__name__} import serve; serve(it)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        with process.stdin:
            yield Writers(process)
