"""A process of its own that makes chips, so that no picture can take its reader along.

    with CutProcess(cutter) as process:
        cut = process.cut(path)        # a Cut, whatever the picture does to the process

It has a limit of memory, is the first that the kernel ends when memory is short, and holds no
torch. Only plain bytes come back from it: what a hostile picture might make of a decoder must not
reach further than its own chip.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

import numpy as np

from common.cutter import UNREADABLE, Cut, Cutter
from common.errors import InputError, VeilfaceError
from common.supervision import python

DIED: Final = "the process that read it died, most likely for want of memory"
_MEMORY: Final = 640 * 2**20  # on top of what it holds before the first picture
_SECONDS: Final = 300.0
_READY: Final = b"ready"
_DIGEST: Final = 32
_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(f">{_DIGEST}scI")
_CHIP, _FAULT, _ERROR = b"c", b"f", b"e"
_LONGEST_WORDS: Final = 2**16
# Stacks of threads count as memory, and many cores would bring many of them.
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_ONE_THREAD: Final = dict.fromkeys(_THREADS, "1")


class CutProcess:
    """One process for one thread; it is started anew after a picture that ended it."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """End the process from another thread, whatever it is doing: its picture is skipped."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process; the next picture would start another."""
        if self._process is None:
            return
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()
        self._process = None

    def cut(self, path: Path) -> Cut:
        """What `Cutter` makes of a file; of one that ends the process, that it did.

        Raises InputError for what is wrong with the cutter itself, VeilfaceError if no process can
        be started.
        """
        process = self._process or self._start()
        try:
            _send(_stream(process.stdin), os.fsencode(path))
            return self._answer(process)
        except (EOFError, BrokenPipeError, TimeoutError):
            self.close()
            return Cut(UNREADABLE, None, DIED)

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            python("common.cut_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _ONE_THREAD,
            process_group=0,  # Ctrl-C is for the parent alone, which ends it
        )
        try:
            _send(_stream(self._process.stdin), pickle.dumps(self._cutter))
            if _receive(_stream(self._process.stdout), len(_READY)) != _READY:
                raise EOFError
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            self.close()
            raise VeilfaceError(
                "no process that reads pictures can be started", hint="free some memory"
            ) from error
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> Cut:
        stream = _stream(process.stdout)
        digest, kind, length = _HEAD.unpack(_receive(stream, _HEAD.size))
        side = self._cutter.spec.size
        if length > (3 * side * side if kind == _CHIP else _LONGEST_WORDS):
            raise EOFError
        body = _receive(stream, length)
        if kind == _CHIP and length == 3 * side * side:
            return Cut(digest, np.frombuffer(body, np.uint8).reshape(side, side, 3), None)
        words = body.decode(errors="replace")
        if kind == _ERROR:
            raise InputError(words)
        return Cut(digest, None, words)


def main() -> None:
    """Be the process: a pickled cutter on standard input, then paths; cuts on standard output."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    cutter = pickle.loads(_take(sys.stdin.buffer))
    assert isinstance(cutter, Cutter)
    _limit_memory()
    out.write(_READY)
    out.flush()
    while path := _take(sys.stdin.buffer):
        digest, kind, body = UNREADABLE, _FAULT, b""
        try:
            cut = cutter(Path(os.fsdecode(path)))
            digest = cut.digest
            if cut.chip is not None:
                kind, body = _CHIP, cut.chip.tobytes()
            else:
                body = str(cut.fault).encode(errors="replace")[:_LONGEST_WORDS]
        except VeilfaceError as error:
            kind, body = _ERROR, str(error).encode(errors="replace")[:_LONGEST_WORDS]
        out.write(_HEAD.pack(digest, kind, len(body)) + body)
        out.flush()


def _limit_memory() -> None:
    """Let an allocation too much fail here, and the kernel end this process before any other."""
    if sys.platform != "linux":
        return
    held = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            held = int(line.split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + _MEMORY, resource.RLIM_INFINITY))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _send(stream: BinaryIO, data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _take(stream: BinaryIO) -> bytes:
    """The next message of the parent; empty when there is none any more."""
    head = stream.read(_LENGTH.size)
    return stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""


def _receive(stream: BinaryIO, wanted: int) -> bytes:
    """Exactly `wanted` bytes; EOFError if the process ended, TimeoutError if it takes for ever."""
    found, until, watch = bytearray(), time.monotonic() + _SECONDS, select.poll()
    watch.register(stream, select.POLLIN)
    while len(found) < wanted:
        if not watch.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
        piece = os.read(stream.fileno(), wanted - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _stream(pipe: object) -> BinaryIO:
    assert hasattr(pipe, "fileno")
    return pipe  # type: ignore[return-value]


if __name__ == "__main__":
    main()
