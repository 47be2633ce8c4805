"""The operation log: append-only, hash-chained, pseudonymous, sealed.

    hash_n = SHA-256(hash_(n-1) || n || sealed entry n),   hash_0 = 64 zeros

An entry is sealed under the log's key and bound to its number and to the hash before it. The head
is in the sealed manifest. Without the key, a change, a removal from the middle and another order
are found; with it, also a chain that was recomputed and a tail that was cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from client.vault.manifest import NO_LOG, Manifest, associated
from common.errors import InputError, SealError
from common.sealing import open_sealed, seal

Operation = Literal[
    "enrol", "verify", "identify", "erase", "rotate", "renew",
    "migrate", "export", "import", "trust", "refused",
]  # fmt: skip
OPERATIONS: Final[tuple[str, ...]] = get_args(Operation)
OUTCOMES: Final = (
    "done", "begun", "accepted", "rejected", "unknown", "duplicate", "quality", "no-face",
    "many-faces", "wrong-model", "forbidden", "rate", "damaged", "failed",
)  # fmt: skip
_PSEUDONYM: Final = 32


@dataclass(frozen=True)
class LogEntry:
    """One operation: `time` in UTC to the second, never a name and never a score.

    `templates` is how many went with an erasure, so that its receipt can be given again.
    """

    seq: int
    time: str
    operation: str
    pseudonym: str | None
    outcome: str
    hash: str
    templates: int | None = None


@dataclass(frozen=True)
class LogReport:
    """What a check of the log found: `findings` is empty exactly when it holds."""

    findings: tuple[str, ...]
    entries: int
    head: str

    @property
    def ok(self) -> bool:
        return not self.findings


def next_entry(
    manifest: Manifest,
    vault_id: str,
    time: str,
    operation: str,
    pseudonym: str | None,
    outcome: str,
    templates: int | None = None,
) -> dict[str, Any]:
    """Return the next row of the log; words that are not on the lists: InputError."""
    if operation not in OPERATIONS:
        raise InputError(f"no operation is called {operation!r}", hint=", ".join(OPERATIONS))
    if outcome not in OUTCOMES:
        raise InputError(f"no outcome is called {outcome!r}", hint=", ".join(OUTCOMES))
    if pseudonym is not None and not is_pseudonym(pseudonym):
        raise InputError("the log takes pseudonyms only", hint="never a name or a subject id")
    seq, previous = manifest.log_entries + 1, manifest.log_head
    more = [] if templates is None else [templates]
    text = json.dumps([time, operation, pseudonym, outcome, *more])
    sealed = seal(manifest.key("log"), text.encode(), associated(vault_id, "log", seq, previous))
    return {"id": seq, "sealed": sealed, "hash": _chain(previous, seq, sealed)}


def is_pseudonym(text: str) -> bool:
    return len(text) == _PSEUDONYM and set(text) <= set("0123456789abcdef")


def check_chain(rows: Iterable[Any]) -> LogReport:
    """Check the chain without a key: what was changed, removed or moved within it."""
    previous, seq = NO_LOG, 0
    for row in rows:
        seq += 1
        if row.id != seq or not isinstance(row.sealed, bytes):
            return LogReport((f"entry {seq} is missing or was moved",), seq - 1, previous)
        if row.hash != _chain(previous, seq, row.sealed):
            return LogReport((f"entry {seq} was changed",), seq - 1, previous)
        previous = row.hash
    return LogReport((), seq, previous)


def open_entries(rows: Iterable[Any], manifest: Manifest, vault_id: str) -> tuple[LogEntry, ...]:
    """Return all entries; a log that is not the manifest's: SealError naming the entry."""
    rows = list(rows)
    report = check_chain(rows)
    if report.findings:
        raise SealError(f"the operation log does not hold: {report.findings[0]}")
    if (report.entries, report.head) != (manifest.log_entries, manifest.log_head):
        raise SealError("the operation log does not end where the manifest says")
    previous, entries = NO_LOG, []
    for row in rows:
        bound = associated(vault_id, "log", row.id, previous)
        time, operation, pseudonym, outcome, *more = json.loads(
            open_sealed(manifest.key("log"), row.sealed, bound)
        )
        templates = more[0] if more else None
        entries.append(LogEntry(row.id, time, operation, pseudonym, outcome, row.hash, templates))
        previous = row.hash
    return tuple(entries)


def _chain(previous: str, seq: int, sealed: bytes) -> str:
    body = bytes.fromhex(previous) + seq.to_bytes(8, "big") + sealed
    return hashlib.sha256(body).hexdigest()
