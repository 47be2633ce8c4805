"""From an image file to its chip."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path

from common.decoding import DecodeLimits, Pixels, decode_image
from common.detection import Detector
from common.errors import ImageError, NoFaceError, VeilfaceError
from common.face import ChipSpec, extract_chip, ready_chip

UNREADABLE = bytes(32)  # in place of a digest: no file has it
NO_FACE = "no face found"


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
            return Cut(digest, self._chip(image, self.finder, path.name), None)
        except NoFaceError:
            return Cut(digest, None, NO_FACE)
        except ImageError as error:
            return Cut(digest, None, error.message.removeprefix(f"{path.name}: "))

    def _chip(self, image: Pixels, finder: Detector, name: str) -> Pixels:
        try:
            return extract_chip(image, self.spec, finder, name=name)
        except VeilfaceError:
            raise  # of the detector itself, or without a face
        except Exception as error:  # detectors fed hostile pixels raise whatever they like
            raise ImageError(f"{name}: cannot be looked at: {type(error).__name__}") from error

    def digest(self, path: Path) -> bytes:
        """SHA-256 of a file; `UNREADABLE` if it cannot be read."""
        try:
            return hashlib.sha256(read_image(path, self.limits)).digest()
        except ImageError:
            return UNREADABLE


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
