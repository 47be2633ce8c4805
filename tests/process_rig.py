"""Processes of tests: where our commands are, free ports, and starting and ending a few of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")
ROOT: Final = Path(__file__).resolve().parents[1]
BIN: Final = Path(sys.executable).parent
# Below those that Linux gives to outgoing connections: one of its own choice may be in use again by
# the time that a process listens on it.
_PORTS: Final = range(20_000, 32_000)
# Seconds: what takes two of them here may take a minute where the machine is busy.
PATIENCE: Final = 240.0
# Seconds between two looks: what is looked at costs the machine as much as what is waited for.
SLOWLY: Final = 0.1
# For what lasts only moments.
QUICK: Final = 0.01


def free_port() -> int:
    """A loopback port on which nothing listens."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with suppress(OSError), closing(socket.create_server(("127.0.0.1", port))):
            return port


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def until(
    what: Callable[[], T | None],
    why: str | Callable[[], str],
    within: float = PATIENCE,
    every: float = SLOWLY,
) -> T:
    """Return what `what` finds; an AssertionError once it has found nothing for too long."""
    deadline = time.monotonic() + within
    while not (found := what()):
        if time.monotonic() > deadline:
            told = why if isinstance(why, str) else why()
            raise AssertionError(f"not within {within:.0f} s: {told}")
        time.sleep(every)
    return found


def wait_for(port: int) -> None:
    """Wait until something listens on a loopback port: `flwr run` does not try twice."""
    until(lambda: listens("127.0.0.1", port), f"something listens on port {port}")


@contextmanager
def processes(
    *commands: tuple[list[str], Path, dict[str, str]],
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run commands in their own process groups, output to a file each, until the block ends."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command, log, environment in commands:
            with log.open("wb") as output:
                running.append(
                    subprocess.Popen(
                        command,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )
        yield running
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def code_copy(folder: Path) -> Path:
    """A copy of what the app bundle holds, so that the checkout's own folders stay out of it."""
    app = folder / "app"
    for room in ("common", "client", "server"):
        shutil.copytree(ROOT / room, app / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, app / name)
    return app
