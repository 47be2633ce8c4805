"""What a site keeps of a round beside its ledger: the round's key, then the stored release.

`round-N.key` and `release-N.f32` (or `release-N.masked` with secure aggregation) belong to the
reservation in line N of the ledger. Where they lie there without that line, the ledger was cut,
removed or put back to an older state: it does not know what was spent, and nothing more leaves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.node_state import NodeState
from common.errors import LedgerError, Refused
from common.ledger import Ledger, Reservation
from common.plan import PrivacyPlan
from common.randomness import KEY_BYTES
from common.storage import write_private

_ROUND_FILE: Final = re.compile(r"(?:round|release)-(\d+)\.(?:key|f32|masked)")
_HINT: Final = "put back the newest state, whole; a ledger that forgets would spend twice"


@dataclass(frozen=True)
class Outbox:
    """The rounds' keys and releases in a site's state directory."""

    directory: Path

    def settle(self, plan: PrivacyPlan) -> None:
        """Make the site's ledger if it never had one; a lost or cut one is a LedgerError."""
        if not (self.directory / Ledger.FILE_NAME).exists():
            traces = [path.name for path in self.directory.glob("*") if self._is_trace(path)]
            if traces:
                raise LedgerError(
                    f"the ledger in {self.directory} is gone, but {min(traces)} is there",
                    hint=_HINT,
                )
        plan.settle_ledger(self.directory)
        with Ledger.open(self.directory) as ledger:
            self.check(ledger)

    def check(self, ledger: Ledger) -> None:
        """Raise LedgerError unless each file of a round belongs to a reservation of the ledger."""
        known = {reservation.seq for reservation in ledger.reservations}
        for path in self.directory.glob("r*-*"):
            found = _ROUND_FILE.fullmatch(path.name)
            if found and int(found[1]) not in known:
                raise LedgerError(
                    f"{path} belongs to no reservation of the ledger, which was cut or replaced",
                    hint=_HINT,
                )

    def release(self, reservation: Reservation) -> bytes | None:
        """Return the stored release of a reservation, if it got that far; it may be sent again."""
        path = self._release_path(reservation)
        return path.read_bytes() if path.exists() else None

    def keep_release(self, reservation: Reservation, released: bytes) -> None:
        """Store a release durably."""
        write_private(self._release_path(reservation), released)

    def key(self, reservation: Reservation) -> bytes | None:
        """Return the stored key of a reservation, or None; a damaged one is Refused."""
        path = self._key_path(reservation)
        if not path.exists():
            return None
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise Refused(f"{path} is damaged", hint="the round stays spent and is not released")
        return key

    def keep_key(self, reservation: Reservation, key: bytes) -> None:
        """Store a round's key durably."""
        write_private(self._key_path(reservation), key)

    def forget(self, reservation: Reservation) -> None:
        """Destroy all keys, since the last release is stored, and all releases but that one."""
        for path in self.directory.glob("round-*.key"):
            path.unlink()
        for path in self.directory.glob("release-*"):
            if path != self._release_path(reservation):
                path.unlink()

    def _release_path(self, reservation: Reservation) -> Path:
        kind = "f32" if reservation.mechanism == "gaussian" else "masked"
        return self.directory / f"release-{reservation.seq}.{kind}"

    def _key_path(self, reservation: Reservation) -> Path:
        return self.directory / f"round-{reservation.seq}.key"

    @staticmethod
    def _is_trace(path: Path) -> bool:
        """Whether a file says that there was a ledger: one is made before the server is called."""
        return bool(_ROUND_FILE.fullmatch(path.name)) or path.name in {NodeState.FILE, "masking"}
