"""The supervisor: starts parts in order, restarts those that die, stops them together.

A part that ends with code 2 or 3 has said what is wrong and would only say it again: then all are
stopped, and the supervisor ends with the same code. A supervisor that is killed takes its parts
with it, and whoever is left holds the lock, so that there is never a second set.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from common.config import from_json
from common.supervision import Part, Supervision, run_part, stop_on_signals

log = logging.getLogger("veilface")

_FINAL: Final = (2, 3)
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 15.0
_SETTLED_AFTER: Final = 60.0
_READY_WITHIN: Final = 180.0
_GRACE: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1
# Whoever listens everywhere is reached at home.
_HOME: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass
class _Running:
    part: Part
    process: subprocess.Popen[bytes]
    since: float
    pause: float = _FIRST_PAUSE
    again_at: float | None = None


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
        preexec_fn=partial(_die_with, os.getpid()) if sys.platform == "linux" else None,
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        try:
            pipe.write(part.secret.encode())
        except BrokenPipeError:
            log.warning("%s ended before it read its secret", part.name)
    return process


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # killed a moment ago: nobody would ever end this part
        os._exit(1)


def _wait_until_ready(one: _Running, stop: threading.Event) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    began = time.time()
    while not stop.is_set() and not (_listens(one.part.listens) and _wrote(one.part, began)):
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


def _wrote(part: Part, since: float) -> bool:
    """Whether a part has written its file; 2 s allow for a disk that keeps time less exactly."""
    if not part.writes:
        return True
    try:
        return Path(part.writes).stat().st_mtime > since - 2.0
    except OSError:
        return False


def _listens(address: str) -> bool:
    if not address:
        return True
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        socket.create_connection((_HOME.get(host, host), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Carry out the supervision that standard input holds."""
    told = from_json(Supervision, sys.stdin.read(), where="supervision")
    os.set_inheritable(told.lock, False)
    # For all parts: what others write is private too, and no key ends up in a core dump.
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stop = stop_on_signals()

    def body() -> None:
        try:
            code = supervise(told.parts, told.lock, stop)
        finally:
            if told.scratch:
                shutil.rmtree(told.scratch, ignore_errors=True)
        sys.exit(code)

    run_part(body, verbose=told.verbose)


if __name__ == "__main__":
    main()
