"""One command, several processes: started in order, restarted when they die, stopped together.

A process that ends with code 2 or 3 has said what is wrong and would only say it again: then all
are stopped, and the supervisor ends with the same code. A supervisor that is killed takes its
processes with it, and whoever is left holds the lock, so that there is never a second set.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from common.errors import InputError, VeilfaceError
from common.storage import make_private_directory

log = logging.getLogger("veilface")

_FINAL: Final = (2, 3)
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 15.0
_SETTLED_AFTER: Final = 60.0
_READY_WITHIN: Final = 60.0
_GRACE: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        command: program and arguments; no secret is ever among them.
        ready: whether those that come after it may start; asked until it is true.
        secret: written to its standard input, which is then closed.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    secret: bytes = field(default=b"", repr=False)


@dataclass
class _Running:
    part: Part
    process: subprocess.Popen[bytes]
    since: float
    pause: float = _FIRST_PAUSE
    again_at: float | None = None


@contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Hold a folder's lock, and yield its descriptor, which parts inherit; InputError if taken."""
    path = make_private_directory(folder) / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder} is in use by another process", hint="stop it first, or wait"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def is_running(folder: Path) -> bool:
    """Say whether someone holds a folder's lock."""
    try:
        with only_one(folder):
            return False
    except InputError:
        return True


def supervise(parts: Sequence[Part], lock: int, stop: threading.Event) -> int:
    """Run all parts until `stop` is set or one of them ends for good; return the exit code."""
    running: list[_Running] = []
    try:
        for part in parts:
            started = _Running(part, _start(part, lock), time.monotonic())
            running.append(started)
            _wait_until_ready(started, stop)
        log.info("%s: all parts are up", ", ".join(part.name for part in parts))
        while not stop.wait(0.2):
            for one in running:
                _keep(one, lock)
    except _Ended as ended:
        return ended.code
    finally:
        _stop([one.process for one in reversed(running)])
    return 0


class _Ended(Exception):  # noqa: N818 - names what happened
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _start(part: Part, lock: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        list(part.command),
        stdin=subprocess.PIPE,
        env={**os.environ, **part.environment},
        pass_fds=(lock,),
        start_new_session=True,  # a key press reaches the supervisor alone, which stops in order
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        try:
            pipe.write(part.secret)
        except BrokenPipeError:
            log.warning("%s ended before it read its secret", part.name)
    return process


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_ready(one: _Running, stop: threading.Event) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while not stop.is_set() and not one.part.ready():
        code = one.process.poll()
        if code is not None:
            log.error("%s ended with code %d while starting", one.part.name, code)
            raise _Ended(code if code in _FINAL else 1)
        if time.monotonic() > deadline:
            log.error("%s was not ready within %.0f s", one.part.name, _READY_WITHIN)
            raise _Ended(1)
        stop.wait(0.1)


def _keep(one: _Running, lock: int) -> None:
    """Start a part again that has died, after a pause that grows while it keeps dying."""
    now = time.monotonic()
    if one.again_at is None:
        code = one.process.poll()
        if code is None:
            return
        if code in _FINAL:
            raise _Ended(code)
        if now - one.since > _SETTLED_AFTER:
            one.pause = _FIRST_PAUSE
        log.warning("%s ended with code %d; again in %.1f s", one.part.name, code, one.pause)
        one.again_at = now + one.pause
    elif now >= one.again_at:
        one.process, one.since, one.again_at = _start(one.part, lock), now, None
        one.pause = min(2.0 * one.pause, _LONGEST_PAUSE)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set; for the main thread."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def python(module: str) -> list[str]:
    """Return the command that runs an installed module; a folder it is started in plays no part."""
    return [sys.executable, "-P", "-m", module]


def run_part(body: Callable[[], None], *, verbose: bool) -> NoReturn:
    """Be one part: log to stderr, say an expected failure in one line, exit with its code."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("flwr", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING if verbose else logging.ERROR)
    try:
        body()
    except VeilfaceError as error:
        print(f"veilface: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(1)
    sys.exit(0)
