"""The federation that a folder belongs to: its key is kept at the first start, and no other."""

from __future__ import annotations

from pathlib import Path

from common.bundle import ROSTER, ROSTER_KEY, Bundle
from common.errors import Refused
from common.roster import Roster, RosterStore
from common.signing import fingerprint, public_key
from common.storage import make_private_directory, write_private


def pin(bundle: Bundle, state: Path) -> Roster:
    """Keep a bundle's federation key and newest roster; another federation's bundle is Refused."""
    pinned = make_private_directory(state) / "roster.pub"
    if pinned.exists() and public_key(pinned.read_bytes()) != bundle.roster_key:
        kept = fingerprint(public_key(pinned.read_bytes()))
        raise Refused(
            f"{state} belongs to another federation, {kept}", hint="choose another --state"
        )
    write_private(pinned, bundle.file(ROSTER_KEY))
    return RosterStore(state / "roster", bundle.roster_key).newest(bundle.file(ROSTER))
