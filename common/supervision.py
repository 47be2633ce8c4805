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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from common.config import to_json
from common.errors import InputError, VeilfaceError
from common.storage import make_private_directory


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        command: program and arguments; no secret is ever among them.
        listens: HOST:PORT that must take connections before the next part starts; empty for none.
        secret: written to its standard input, which is then closed.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    listens: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Supervision:
    """What a supervisor does.

    Attributes:
        lock: descriptor of the lock that it and its parts hold.
        scratch: folder that is removed at the end; empty for none.
    """

    parts: tuple[Part, ...]
    lock: int
    scratch: str
    verbose: bool


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
