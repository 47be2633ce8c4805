"""What the front let through and turned away, in a file that the status page reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.config import from_json, to_json
from common.storage import write_private

_FILE: Final = "front.json"


@dataclass(frozen=True)
class FrontCounts:
    """Counts since the front was started.

    Attributes:
        since: when it was started, UTC.
        passed: calls that SuperLink answered, by `NAME STATUS`.
        refused: by reason (docs/server-page.md).
        received, sent: bytes of bodies from and to sites.
    """

    since: str
    passed: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    received: int = 0
    sent: int = 0


def front_counts(folder: Path) -> FrontCounts | None:
    """Return what the front wrote last; None before its first time."""
    try:
        text = (folder / _FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return from_json(FrontCounts, text, where=_FILE)


class Tally:
    """Counts in memory; `save` writes them if there is anything new."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._saved: FrontCounts | None = None
        self.passed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.received = self.sent = 0

    def save(self) -> None:
        """Replace the file."""
        counts = FrontCounts(
            self._since, dict(self.passed), dict(self.refused), self.received, self.sent
        )
        if counts != self._saved:
            write_private(self._path, to_json(counts).encode())
            self._saved = counts
