"""What one body of data has spent in all its federations: kept on the machine, beside no ledger.

A budget protects people, so it belongs to their images and not to a folder of state. Each body of
data has a folder here with a ledger of its own, in which the rounds of all sites on it stand. A
body is known by the folder's path and by its inode: the same place with other people, the same
folder under another name, and a folder within a known one all count as one body. A copy elsewhere
does not, and neither does another machine. Nothing of this is told to a server but yes or no.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.config import read_json, to_json
from common.errors import LedgerError, Refused, StorageError
from common.ledger import Genesis, Ledger, Reservation, verify
from common.storage import home_folder, make_private_directory, storage_error, write_private

VARIABLE: Final = "VEILFACE_ODOMETER"
_BODY: Final = "body.json"
_LOCK: Final = "lock"


@dataclass(frozen=True)
class BodyOfData:
    """The names of one body: paths as they were, and device and inode of the folders there."""

    paths: tuple[str, ...]
    folders: tuple[str, ...]

    @classmethod
    def of(cls, data: Path) -> BodyOfData:
        """Return the body that a folder is."""
        path = data.resolve()
        found = path.stat()
        return cls((str(path),), (f"{found.st_dev}:{found.st_ino}",))

    def meets(self, other: BodyOfData) -> bool:
        """Whether two bodies have a folder in common, or one lies within the other."""
        if set(self.folders) & set(other.folders):
            return True
        own, others = map(Path, self.paths), [Path(path) for path in other.paths]
        return any(a == b or a in b.parents or b in a.parents for a in own for b in others)

    def joined(self, other: BodyOfData) -> BodyOfData:
        """Return the body with the names of both."""
        return BodyOfData(
            tuple(sorted({*self.paths, *other.paths})),
            tuple(sorted({*self.folders, *other.folders})),
        )


def default_odometers() -> Path:
    """Return where this machine keeps them: VEILFACE_ODOMETER, or the user's data folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    base = home_folder(
        "XDG_DATA_HOME", ".local/share", hint="name a folder that lasts by --odometer"
    )
    return base / "veilface" / "odometer"


@dataclass(frozen=True)
class Odometer:
    """The odometers of the bodies of data that one site's folder belongs to, mostly one.

    They are more than one where a folder brings together what was apart before.
    """

    directories: tuple[Path, ...]

    @classmethod
    def open(cls, root: Path, data: Path) -> Odometer:
        """Return the odometer of a folder of data, made if it is new.

        Where it cannot be kept it is a StorageError.
        """
        try:
            body = BodyOfData.of(data)
        except OSError as error:
            raise storage_error(f"cannot look at {data}", error) from error
        make_private_directory(root)
        with _locked(root):
            found = []
            for path in sorted(root.glob(f"*/{_BODY}")):
                known = read_json(BodyOfData, path)
                if known is not None and known.meets(body):
                    write_private(path, to_json(known.joined(body)).encode())
                    found.append(path.parent)
            if not found:
                new = make_private_directory(root / secrets.token_hex(8))
                # The budget is each site's own; here it is only counted.
                Ledger.create(new, Genesis(delta=0.5, epsilon=0.0))
                write_private(new / _BODY, to_json(body).encode())
                found = [new]
        return cls(tuple(found))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the sites on these data, of whatever federation, from reserving at once."""
        if not self.directories:
            yield
            return
        with _locked(self.directories[0]), Odometer(self.directories[1:]).locked():
            yield

    def of_others(self, ledger: Ledger) -> tuple[Reservation, ...]:
        """Return what other ledgers reserved on these data; call it within `locked`.

        What only this ledger knows is written down. What only the odometer knows of this ledger
        was forgotten by it: the state was put back, which is a LedgerError.
        """
        others: dict[tuple[str, int], Reservation] = {}
        own = ledger.genesis.ledger_id
        known = {(r.run_id, r.round): r.request_digest for r in ledger.reservations}
        for directory in self.directories:
            kept = {(r.run_id, r.round): r for r in _reservations(directory)}
            for (name, round_), reservation in kept.items():
                owner, _, run_id = name.partition(":")
                if owner != own:
                    others[(name, round_)] = reservation
                elif known.get((run_id, round_)) != reservation.request_digest:
                    raise LedgerError(
                        f"round {round_} of run {run_id} was spent, and the site's ledger does not "
                        "know of it: the state was put back to an older one",
                        hint="put back the newest state, whole",
                    )
            for reservation in ledger.reservations:
                if (f"{own}:{reservation.run_id}", reservation.round) not in kept:
                    self._write(directory, own, reservation)
        return tuple(others.values())

    def add(self, ledger: Ledger, reservation: Reservation) -> None:
        """Write down what the ledger has reserved; call it within `locked`, before it is spent."""
        for directory in self.directories:
            self._write(directory, ledger.genesis.ledger_id, reservation)

    @staticmethod
    def _write(directory: Path, owner: str, reservation: Reservation) -> None:
        with Ledger.open(directory) as kept:
            kept.reserve(
                run_id=f"{owner}:{reservation.run_id}",
                round=reservation.round,
                noise_multiplier=reservation.noise_multiplier,
                sample_rate=reservation.sample_rate,
                steps=reservation.steps,
                max_grad_norm=reservation.max_grad_norm,
                request_digest=reservation.request_digest,
                private=reservation.private,
                mechanism=reservation.mechanism,
                shares=reservation.shares,
                check=lambda reservations: None,
            )


NOT_COUNTED: Final = Odometer(())


def elsewhere_of(root: Path, state: Path) -> tuple[Reservation, ...]:
    """Return what others reserved on the data of a site's state, by reading alone."""
    genesis = verify(state).genesis
    others: dict[tuple[str, int], Reservation] = {}
    for path in sorted(root.glob(f"*/{_BODY}")) if genesis else []:
        kept = verify(path.parent)
        if kept.findings:
            raise LedgerError(f"{path.parent}: {kept.findings[0]}")
        owner = f"{genesis.ledger_id}:" if genesis else ""
        if any(r.run_id.startswith(owner) for r in kept.reservations):
            others |= {
                (r.run_id, r.round): r for r in kept.reservations if not r.run_id.startswith(owner)
            }
    return tuple(others.values())


def kept_or_stated(root: Path | None, data: Path, stated: float | None) -> Odometer:
    """Return the odometer of a site's data; where none can be kept, one that counts nothing.

    That takes a policy that states what the data spend elsewhere; else it is Refused.
    """
    try:
        return Odometer.open(root or default_odometers(), data)
    except StorageError as error:
        if stated is not None:
            return NOT_COUNTED
        raise Refused(
            f"this machine cannot keep what {data} has spent in all federations: {error.message}",
            hint="name a folder that lasts by --odometer, or state spent_elsewhere in the policy",
        ) from error


def _reservations(directory: Path) -> tuple[Reservation, ...]:
    with Ledger.open(directory) as kept:
        return kept.reservations


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Wait for the lock of a folder: it is held for moments only."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise storage_error(f"cannot lock {directory}", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
