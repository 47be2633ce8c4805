"""The ledger of a site: what was ever spent, append-only, hash-chained, written before it is spent.

One JSON object a line. Each line holds its sequence number, the hash of the line before and its own
hash. `reserve` returns only when its line is on the disk, so noise that was drawn is always on
record; a crash between `reserve` and `commit` counts as spent. `ledger.head` names the last line,
so that a ledger cut at a line boundary is found out. Whoever can rewrite both files and recompute
all hashes is not stopped by them: the rounds that the server has accepted are the witness then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from common.errors import InputError, LedgerError, Refused, StorageError
from common.ledger_format import (
    GENESIS_HASH,
    Commit,
    End,
    Genesis,
    Head,
    Line,
    Mechanism,
    Reservation,
    decode_head,
    decode_line,
    encode_head,
    encode_line,
)
from common.storage import make_private_directory, sync_directory, write_private

__all__ = ["Commit", "Genesis", "Ledger", "LedgerReport", "Reservation", "verify"]
_HEAD = "ledger.head"
_READS = 20


@dataclass(frozen=True)
class LedgerReport:
    """What `verify` found: `findings` is empty exactly when the ledger holds."""

    findings: tuple[str, ...]
    genesis: Genesis | None
    reservations: tuple[Reservation, ...]
    commits: tuple[Commit, ...]
    ended: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.findings


class Ledger:
    """An open ledger, locked against other writers until its `with` block ends."""

    FILE_NAME: ClassVar = "ledger.jsonl"

    def __init__(self, directory: Path, descriptor: int, lines: list[Line]) -> None:
        self._directory = directory
        self._descriptor = descriptor
        self._lines = lines
        self._head_seq = lines[-1].seq
        self._broken = False

    @classmethod
    def create(cls, directory: Path, genesis: Genesis) -> None:
        """Write a new ledger's first line; an existing or a removed ledger is never replaced."""
        make_private_directory(directory)
        path = directory / cls.FILE_NAME
        if path.exists():
            raise LedgerError(f"{path} exists already")
        if (directory / _HEAD).exists() and decode_head((directory / _HEAD).read_bytes()).seq > 0:
            raise LedgerError(
                f"{path} is gone, but {_HEAD} says that it had entries",
                hint="restore it: a new ledger would forget what was spent",
            )
        line = Line(0, GENESIS_HASH, genesis.named(secrets.token_hex(16), _now()))
        write_private(directory / _HEAD, encode_head(Head(0, line.hash)))
        write_private(path, encode_line(line))

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Ledger]:
        """Lock, check and repair a ledger: at most the tail of one interrupted append is mended."""
        path = directory / cls.FILE_NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise InputError(f"cannot open {path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LedgerError(
                    f"{path} is in use by another process", hint="only one may write at a time"
                ) from error
            yield cls(directory, descriptor, _recover(directory, descriptor))
        finally:
            os.close(descriptor)

    @property
    def genesis(self) -> Genesis:
        record = self._lines[0].record
        assert isinstance(record, Genesis)
        return record

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """All reservations, committed or not: all of them are spent."""
        return tuple(line.record for line in self._lines if isinstance(line.record, Reservation))

    def reserve(
        self,
        *,
        run_id: str,
        round: int,  # noqa: A002 - the federation's word
        noise_multiplier: float,
        sample_rate: float,
        steps: int,
        max_grad_norm: float,
        request_digest: str,
        private: bool,
        mechanism: Mechanism = "gaussian",
        shares: int = 1,
        check: Callable[[tuple[Reservation, ...]], None],
    ) -> Reservation:
        """Return a durable reservation; the same request again returns the first one, unspent.

        `check` sees all reservations with the new one and raises to refuse it; nothing is written
        then. Another request for the same run and round is Refused: one release a round. So is a
        round before one that was reserved, and any of a run that was ended: whoever sees the last
        round in a ledger has seen all of the run.
        """
        new = Reservation(
            seq=len(self._lines),
            run_id=run_id,
            round=round,
            noise_multiplier=noise_multiplier,
            sample_rate=sample_rate,
            steps=steps,
            max_grad_norm=max_grad_norm,
            request_digest=request_digest,
            private=private,
            mechanism=mechanism,
            shares=shares,
        )
        for old in self.reservations:
            if (old.run_id, old.round) == (run_id, round):
                if old.request_digest != request_digest:
                    raise Refused(f"round {round} of run {run_id} was reserved for another request")
                self._update_head()  # it may be behind: the first answer failed on a full disk
                return old
        if run_id in self.ended:
            raise Refused(f"run {run_id} was ended here: no more rounds of it are answered")
        if any(old.run_id == run_id and old.round > round for old in self.reservations):
            raise Refused(f"round {round} of run {run_id} comes after a later one")
        check((*self.reservations, new))
        self._append(new)
        return new

    def committed(self, reservation: Reservation) -> str | None:
        """Return the digest of what was released under a reservation, or None if nothing was."""
        for line in self._lines:
            if isinstance(line.record, Commit) and line.record.reservation == reservation.seq:
                return line.record.release_digest
        return None

    def end(self, run_id: str) -> None:
        """Record durably that no more rounds of a run are reserved; once is enough."""
        if run_id not in self.ended:
            self._append(End(run_id))

    @property
    def ended(self) -> tuple[str, ...]:
        """Return the runs that were ended here."""
        return tuple(line.record.run_id for line in self._lines if isinstance(line.record, End))

    def commit(self, reservation: Reservation, release_digest: str) -> None:
        """Record durably what was released under a reservation; once only."""
        if reservation not in self.reservations or self.committed(reservation) is not None:
            raise LedgerError(f"reservation {reservation.seq} is unknown or committed already")
        self._append(Commit(reservation.seq, release_digest))

    def _append(self, record: Reservation | Commit | End) -> None:
        """Write a line durably, then the head; after a failure that cannot be undone, no more."""
        if self._broken:
            raise LedgerError("an earlier write failed half-way", hint="open the ledger again")
        self._update_head()
        line = Line(len(self._lines), self._lines[-1].hash, record)
        size = os.fstat(self._descriptor).st_size
        data = encode_line(line)
        self._broken = True
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
                os.fsync(self._descriptor)
                self._broken = False
            raise StorageError(
                f"cannot write the ledger in {self._directory}: {error.strerror}",
                hint="free some space: nothing was spent or released",
            ) from error
        self._lines.append(line)
        self._broken = False
        self._update_head()

    def _update_head(self) -> None:
        """Bring the head up to the last line; a head left behind by a full disk is caught up."""
        last = self._lines[-1]
        if self._head_seq != last.seq:
            write_private(self._directory / _HEAD, encode_head(Head(last.seq, last.hash)))
            self._head_seq = last.seq


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _recover(directory: Path, descriptor: int) -> list[Line]:
    """Return the lines of a locked ledger, after mending what one interrupted append leaves."""
    data = (directory / Ledger.FILE_NAME).read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines, findings, head = _read(directory, whole)
    if findings:
        raise LedgerError(f"{directory / Ledger.FILE_NAME}: {findings[0]}")
    assert head is not None
    if len(whole) < len(data):
        os.ftruncate(descriptor, len(whole))  # a line that was never acknowledged
        os.fsync(descriptor)
    if head.seq < len(lines) - 1:
        write_private(directory / _HEAD, encode_head(Head(lines[-1].seq, lines[-1].hash)))
        sync_directory(directory)
    return lines


def _read(directory: Path, data: bytes) -> tuple[list[Line], list[str], Head | None]:
    """Decode whole lines and compare with the head; findings name the first line at fault."""
    lines: list[Line] = []
    findings: list[str] = []
    history = _History()
    for number, raw in enumerate(data.splitlines(keepends=True)):
        try:
            line = decode_line(raw, number, lines[-1].hash if lines else GENESIS_HASH)
            history.add(line)
        except LedgerError as error:
            findings.append(f"line {number + 1}: {error.message}")
            break
        lines.append(line)
    if not data:
        findings.append("the ledger is empty")
    try:
        head = decode_head((directory / _HEAD).read_bytes())
    except (OSError, LedgerError) as error:
        return lines, [*findings, f"{_HEAD} is missing or damaged: {error}"], None
    if not findings:
        ahead = len(lines) - 1 - head.seq
        if ahead < 0:
            findings.append(f"cut off: {_HEAD} names line {head.seq + 1}, found {len(lines)}")
        elif ahead > 1 or lines[head.seq].hash != head.hash:
            findings.append(f"{_HEAD} does not belong to this ledger")
    return lines, findings, head


class _History:
    """What may follow what: one genesis, one reservation a round, one commit a reservation.

    No round is reserved of a run that has ended.
    """

    def __init__(self) -> None:
        self._ended: set[str] = set()
        self._rounds: set[tuple[str, int]] = set()
        self._open: set[int] = set()

    def add(self, line: Line) -> None:
        record = line.record
        if (line.seq == 0) != isinstance(record, Genesis):
            raise LedgerError("the genesis is the first line and no other")
        if isinstance(record, Commit):
            if record.reservation not in self._open:
                raise LedgerError(f"commits reservation {record.reservation}, which is not open")
            self._open.remove(record.reservation)
        if isinstance(record, End):
            if record.run_id in self._ended:
                raise LedgerError(f"ends run {record.run_id} a second time")
            self._ended.add(record.run_id)
        if isinstance(record, Reservation):
            if record.run_id in self._ended:
                raise LedgerError(f"reserves a round of run {record.run_id}, which has ended")
            key = (record.run_id, record.round)
            if record.seq != line.seq or key in self._rounds:
                raise LedgerError("a reservation with another line's number or a second one")
            self._rounds.add(key)
            self._open.add(line.seq)


def verify(directory: Path) -> LedgerReport:
    """Check a ledger without writing or locking; one interrupted append is no finding."""
    path = directory / Ledger.FILE_NAME
    for _ in range(_READS):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        lines, findings, _head = _read(directory, data[: data.rfind(b"\n") + 1])
        # A writer may have moved on between the two reads: look again before calling it damage.
        if not findings or path.read_bytes() == data:
            break
    records = [line.record for line in lines]
    return LedgerReport(
        tuple(findings),
        next((r for r in records if isinstance(r, Genesis)), None),
        tuple(r for r in records if isinstance(r, Reservation)),
        tuple(r for r in records if isinstance(r, Commit)),
        tuple(r.run_id for r in records if isinstance(r, End)),
    )
