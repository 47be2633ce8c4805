"""What a JPEG stream promises before anything of it is decoded (ITU-T T.81, annex B).

Markers are read as libjpeg reads them, so that a file cannot show us one stream and the decoder
another: of what follows the first end of an image (a motion photo's film, an editor's backup)
neither takes notice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_START: Final = b"\xff\xd8"
# A marker's code, after any number of fill bytes. 00 is a stuffed byte of the image's own data; 01,
# restarts (D0 to D7) and starts (D8) have no segment.
_MARKER: Final = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
_END, _SCAN = 0xD9, 0xDA
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = (0xC2, 0xC6, 0xCA, 0xCE)


@dataclass(frozen=True)
class JpegStream:
    """The first image of a JPEG file.

    Attributes:
        scans: how many passes over the image it takes.
        segments: how many marked segments it has.
        ended: whether its end is marked.
        coefficients: bytes a pixel that a decoder has to keep of all scans at once: 0 for an image
            that is decoded row by row, else two for each sample of each component.
    """

    scans: int
    segments: int
    ended: bool
    coefficients: float


def read_stream(data: bytes) -> JpegStream:
    """What a JPEG file promises; of a damaged one, as far as it can be read."""
    scans, segments, ended = 0, 0, False
    components, samples, together = 0, 0.0, True
    position = len(_START) if data.startswith(_START) else len(data)
    while found := _MARKER.search(data, position):
        code, position = found.group(1)[0], found.end()
        if code == _END:
            ended = True
            break
        segment = data[position + 2 : position + max(2, _number(data, position))]
        segments += 1
        if code in _FRAMES:
            components, samples = _samples(segment)
            together &= code not in _PROGRESSIVE
        elif code == _SCAN:
            scans += 1
            together &= segment[:1] == bytes([components])
        position += 2 + len(segment)
    return JpegStream(scans, segments, ended, 0.0 if together else 2 * samples)


def _number(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "big")


def _samples(frame: bytes) -> tuple[int, float]:
    """How many components a frame has, and how many samples of all of them a pixel takes."""
    count = frame[5] if len(frame) > 5 else 0
    factors = [(byte >> 4, byte & 15) for byte in frame[7 : 6 + 3 * count : 3]]
    across = max((h for h, _ in factors), default=0)
    down = max((v for _, v in factors), default=0)
    if not across or not down:
        return len(factors), 4.0  # libjpeg will refuse it
    return len(factors), sum(h * v for h, v in factors) / (across * down)
