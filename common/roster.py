"""The roster: who belongs to a federation, signed by its offline key; never an older one again.

Public keys are OpenSSH lines without comment.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.config import parse, to_json
from common.errors import InputError, Refused
from common.signing import sign, verified
from common.storage import make_private_directory, write_private

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_NODE: Final = re.compile(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/]{182}==", re.ASCII)
_SIGNING: Final = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}", re.ASCII)


def is_name(text: str) -> bool:
    """Say whether this names a site: 1 to 40 of a-z, 0-9 and inner hyphens."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class SiteKeys:
    """A site's public keys: of its SuperNode (ECDSA P-384), and of what it signs (Ed25519)."""

    name: str
    node_key: str
    signing_key: str

    def __post_init__(self) -> None:
        _require(is_name(self.name), f"the name {self.name!r}")
        shaped = _NODE.fullmatch(self.node_key) and _SIGNING.fullmatch(self.signing_key)
        _require(shaped is not None, f"a key of {self.name}")


@dataclass(frozen=True)
class Roster:
    """All sites of a federation, and all it once had: a name or a key never comes back."""

    federation: str
    serial: int
    issued: str
    sites: tuple[SiteKeys, ...]
    revoked: tuple[SiteKeys, ...] = ()

    def __post_init__(self) -> None:
        _require(is_name(self.federation) and self.serial >= 1, "the federation or serial")
        every = [*self.sites, *self.revoked]
        for what in ("name", "node_key", "signing_key"):
            _require(len({getattr(site, what) for site in every}) == len(every), f"a {what} twice")
        _require(_TIME.fullmatch(self.issued) is not None, f"the time {self.issued!r}")

    def signed(self, key: Ed25519PrivateKey) -> bytes:
        """Return the signed document."""
        return sign("roster", to_json(self), key)

    @classmethod
    def read(cls, document: bytes, key: Ed25519PublicKey) -> Roster:
        """Return a signed roster, strictly parsed; anything else is Refused."""
        body = verified("roster", document, key)
        try:
            values = json.loads(body)
            sites, revoked = (
                tuple(parse(SiteKeys, site, where=name) for site in values.pop(name))
                for name in ("sites", "revoked")
            )
            head = parse(_Head, values, where="roster")
        except (InputError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Refused(f"the roster is malformed: {error}") from error
        roster = cls(head.federation, head.serial, head.issued, sites, revoked)
        _require(to_json(roster) == body, "its JSON, which is not canonical")
        return roster

    def must_follow(self, seen: Roster) -> None:
        """Raise Refused unless this may replace `seen`: no older, no fork, nobody forgotten."""
        if self != seen and self.serial <= seen.serial:
            raise Refused(
                f"roster {self.serial} of {self.issued} is older than, or differs from, roster "
                f"{seen.serial} of {seen.issued}, which this machine has seen",
                hint="ask the federation's operator for the newest roster",
            )
        grown = set(seen.revoked) <= set(self.revoked)
        grown &= set(seen.sites) <= {*self.sites, *self.revoked}
        _require(self.federation == seen.federation and grown, "it forgets a site")


@dataclass(frozen=True)
class _Head:
    federation: str
    serial: int
    issued: str


@dataclass(frozen=True)
class RosterStore:
    """The newest roster that this machine has accepted, kept at `path` against rollback."""

    path: Path
    key: Ed25519PublicKey

    def newest(self, bundled: bytes) -> Roster:
        """Return the kept roster, or the one of the bundle if that is newer or none is kept."""
        with self._locked():
            kept, offered = self._kept(), Roster.read(bundled, self.key)
            if kept is not None and kept.serial > offered.serial:
                return kept
            return self._replace(kept, offered, bundled)

    def accept(self, document: bytes) -> Roster:
        """Keep and return a roster; one that is older, forked or not signed is Refused."""
        with self._locked():
            return self._replace(self._kept(), Roster.read(document, self.key), document)

    def _replace(self, kept: Roster | None, offered: Roster, document: bytes) -> Roster:
        if kept is not None:
            offered.must_follow(kept)
        write_private(self.path, document)
        return offered

    def _kept(self) -> Roster | None:
        return Roster.read(self.path.read_bytes(), self.key) if self.path.exists() else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(make_private_directory(self.path.parent), os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(f"the roster is malformed: {what}")
