"""Words around figures, the same on every screen and page."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 person, 2 persons."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
