"""Nodes of sites forked from one process that has imported everything: each a process of its own.

Importing costs a node seconds of a processor, which a test with many sites would mostly do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.process_rig import QUICK, ROOT


def serve(ended: str) -> None:
    """Fork a node for each line of stdin, say its process id, and write how it ended to a file."""
    from client.up import main

    living = set[int]()

    def reap(*_: object) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                living.discard(found[0])
                Path(ended, str(found[0])).write_text(str(os.waitstatus_to_exitcode(found[1])))

    signal.signal(signal.SIGCHLD, reap)
    while line := sys.stdin.readline():
        log, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(log)
            sys.argv = ["client.up", *arguments]
            main()
        living.add(child)
        os.write(1, f"{child}\n".encode())
    for pid in [*living]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become(log: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for target, path, how in (
        (0, os.devnull, os.O_RDONLY),
        (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, how, 0o600)
        os.dup2(opened, target)
        os.close(opened)
    os.dup2(1, 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the one before has read ahead


@dataclass(frozen=True)
class Forked:
    """Another's child process, with as much of `subprocess.Popen` as a party needs."""

    pid: int
    _ended: Path

    def poll(self) -> int | None:
        text = self._ended.read_text() if self._ended.exists() else ""
        return int(text) if text else None

    def wait(self, timeout: float = 60.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked node", timeout)
            time.sleep(QUICK)
        return code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class WarmNodes:
    """The process that forks them, in the environment that they are to have."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._ended = folder
        folder.mkdir()
        code = f"from {__name__} import serve; serve({str(folder)!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def fork(self, log: Path, arguments: Sequence[str]) -> Forked:
        """Start a node with the arguments of `client.up`, and a log."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(log), *arguments]).encode() + b"\n")
        pid = int(self._process.stdout.readline())
        return Forked(pid, self._ended / str(pid))

    def close(self) -> None:
        """Kill what still runs."""
        with self._process:
            pass
