"""One command, several processes: what to run, by whom, and how to be one of them.

The command checks everything, then becomes the supervisor (`common.supervisor`), which holds
nothing but the standard library: a process that only waits must not hold half a gigabyte.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from common.config import to_json
from common.errors import InputError, VeilfaceError
from common.storage import LOCK, make_private_directory

_TOLD: Final = logging.getLogger("veilface.told")
# A killed supervisor's parts are killed with it; the largest takes a moment to be gone.
_PARTS_END_WITHIN: Final = 20.0


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        command: program and arguments; no secret is ever among them.
        listens: HOST:PORT that must take connections before the next part starts; empty for none.
        writes: file that the part must have written before the next one starts; empty for none.
        secret: written to its standard input, which is then closed.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    listens: str = ""
    writes: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Supervision:
    """What a supervisor does.

    Attributes:
        lock: descriptor of the lock that it and its parts hold.
        scratch: folder that is removed at the end; empty for none. Of one that was killed it stays
            until the next start.
    """

    parts: tuple[Part, ...]
    lock: int
    scratch: str
    verbose: bool


@contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Hold a folder's lock, and yield its descriptor, which parts inherit; InputError if taken.

    The lock holds the process id of who took it. Where that was killed, the parts that still hold
    it are about to end, and are waited for.
    """
    descriptor = _opened(folder)
    try:
        deadline = time.monotonic() + _PARTS_END_WITHIN
        while not _locked(descriptor):
            holder = _holder(descriptor)
            if time.monotonic() > deadline or _lives(holder):
                raise InputError(
                    f"{folder} is in use by another process, {holder}",
                    hint="stop it first, or wait",
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def is_running(folder: Path) -> bool:
    """Say whether someone works in a folder: holds its lock, and was not killed."""
    descriptor = _opened(folder)
    try:
        return not _locked(descriptor) and _lives(_holder(descriptor))
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    path = make_private_directory(folder) / LOCK
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int:
    """The process id in a lock; 0 where none was written."""
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return process > 0


def become_supervisor(supervision: Supervision) -> NoReturn:
    """Replace this process by the supervisor; secrets reach it by a pipe."""
    os.set_inheritable(supervision.lock, True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        pipe.write(to_json(supervision))
    os.dup2(reader, 0)
    os.close(reader)
    # The rest is for whoever lists processes.
    command = [*python("common.supervisor"), "veilface", *sys.argv[1:]]
    os.execv(command[0], command)


def tell(text: str) -> None:
    """Say what a part did as it should, in one line; nobody hears it but of a part."""
    _TOLD.info("%s", text)


def listened_to() -> bool:
    """Whether `tell` is heard: what nobody hears need not be worked out."""
    return _TOLD.isEnabledFor(logging.INFO)


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
        force=True,  # libraries set up the root logger when they are imported
    )
    if not _TOLD.handlers:
        plain = logging.StreamHandler()
        plain.setFormatter(logging.Formatter("veilface: %(message)s"))
        _TOLD.addHandler(plain)
        _TOLD.propagate = False
    _TOLD.setLevel(logging.INFO)
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
