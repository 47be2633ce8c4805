"""From an image file to its chip, over as many processes as pays."""

from __future__ import annotations

import hashlib
import signal
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from common.decoding import DecodeLimits, Pixels, decode_image
from common.detection import Detector
from common.errors import ImageError, NoFaceError, VeilfaceError
from common.face import ChipSpec, extract_chip, ready_chip

UNREADABLE = bytes(32)  # in place of a digest: no file has it
NO_FACE = "no face found"
CHUNK = 16
WORTH_A_POOL = 128  # starting workers costs as long as finding about this many faces


@dataclass(frozen=True, slots=True)
class Cut:
    """What became of one image file: a chip, or the fault that prevents it.

    Attributes:
        digest: SHA-256 of the file, 32 bytes; `UNREADABLE` if it cannot be read.
        chip: uint8 [S, S, 3], or None.
        fault: None with a chip; `NO_FACE`, or any other reason in words.
    """

    digest: bytes
    chip: Pixels | None
    fault: str | None


@dataclass(frozen=True, slots=True)
class Cutter:
    """From a file to its chip; without a finder the image is a chip already."""

    spec: ChipSpec
    finder: Detector | None
    limits: DecodeLimits

    def __call__(self, path: Path) -> Cut:
        digest = UNREADABLE
        try:
            data = read_image(path, self.limits)
            digest = hashlib.sha256(data).digest()
            image = decode_image(data, name=path.name, limits=self.limits)
            if self.finder is None:
                return Cut(digest, ready_chip(image, self.spec), None)
            chip = extract_chip(image, self.spec, self.finder, name=path.name)
            return Cut(digest, chip, None)
        except NoFaceError:
            return Cut(digest, None, NO_FACE)
        except ImageError as error:
            return Cut(digest, None, error.message.removeprefix(f"{path.name}: "))

    def digest(self, path: Path) -> bytes:
        """SHA-256 of a file; `UNREADABLE` if it cannot be read."""
        try:
            return hashlib.sha256(read_image(path, self.limits)).digest()
        except ImageError:
            return UNREADABLE


def cut_all(cutter: Cutter, paths: Sequence[Path], workers: int) -> Iterator[Cut]:
    """`map`, over processes where that pays: dlib holds the interpreter's lock."""
    if workers == 1 or len(paths) < WORTH_A_POOL:
        yield from map(cutter, paths)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_interrupts)
    try:
        yield from pool.map(cutter, paths, chunksize=CHUNK)
    except BrokenProcessPool as error:
        raise VeilfaceError(
            "a process that detects faces was killed, most likely for memory",
            hint="use fewer workers",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Let Ctrl-C reach the parent alone, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_image(path: Path, limits: DecodeLimits) -> bytes:
    """The bytes of a regular file within the limits, or ImageError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path.name}: not a regular file")
        if status.st_size > limits.max_bytes:
            raise ImageError(f"{path.name}: more than {limits.max_bytes} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read: {error.strerror}") from error
