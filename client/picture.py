"""A picture as it arrives, from a file or a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """An encoded image and what errors call it."""

    name: str
    data: bytes
