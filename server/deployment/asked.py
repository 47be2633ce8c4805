"""Which sites a run may have asked in which rounds: on disk before anyone is asked.

The checkpoint records finished rounds only, by node id. A round may be broken off and played again
without a site that has spent on it already, and the SuperLink gives a site another id when its
database is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import read_json, to_json
from common.errors import InputError
from common.storage import write_private
from server.checkpoint import RoundRecord


@dataclass(frozen=True)
class Unrecorded:
    """What a run knows besides its checkpoint.

    Attributes:
        names: site by node id, of every node that the run has met.
        rounds: by site, in which it may have been asked although no record of a round says so.
    """

    names: dict[str, str]
    rounds: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if not all(node.removeprefix("-").isdecimal() for node in self.names):
            raise InputError("asked.json: a node id is a whole number")


class AskedSites:
    """The sites of one run; `path` keeps what `records` of its finished rounds cannot tell.

    Where records are there but the file is not, every site that they name is taken to have been
    asked in the round after them, up to `rounds`. A damaged file is an InputError.
    """

    def __init__(
        self, path: Path, records: Sequence[RoundRecord], names: Mapping[int, str], rounds: int
    ) -> None:
        self._path, self._names = path, dict(names)
        self._other: dict[str, set[int]] = {}
        self._fresh: set[str] = set()
        kept = read_json(Unrecorded, path)
        if kept is not None:
            self._names |= {int(node): site for node, site in kept.names.items()}
            self._other = {site: set(found) for site, found in kept.rounds.items()}
        elif 0 < len(records) < rounds:
            nodes = {node for record in records for node in record.asked}
            self._other = {self.name(node): {len(records) + 1} for node in nodes}

    def meet(self, names: Mapping[int, str]) -> None:
        """Learn the sites' names by node id; one that is known stays."""
        self._names = {**names, **self._names}

    def name(self, node: int) -> str:
        """Return a node's site."""
        return self._names.get(node, f"node {node}")

    def asks(self, round_: int, nodes: Collection[int]) -> None:
        """Write that these nodes may be asked in a round."""
        sites = {self.name(node) for node in nodes}
        self._fresh = {site for site in sites if round_ not in self._other.get(site, ())}
        for site in sites:
            self._other.setdefault(site, set()).add(round_)
        rounds = {site: tuple(sorted(found)) for site, found in self._other.items() if found}
        names = {str(node): site for node, site in self._names.items()}
        write_private(self._path, to_json(Unrecorded(names, rounds)).encode())

    def finished(self, record: RoundRecord) -> None:
        """Take a round's record: a site that it does not name was asked in no attempt at it but an
        earlier one."""
        for site in self._fresh | {self.name(node) for node in record.asked}:
            self._other.get(site, set()).discard(record.round)
        self._fresh = set()

    def rounds(self, records: Iterable[RoundRecord]) -> dict[str, set[int]]:
        """Return by site every round in which it may have been asked, those of `records` too."""
        found = {site: set(rounds) for site, rounds in self._other.items() if rounds}
        for record in records:
            for node in record.asked:
                found.setdefault(self.name(node), set()).add(record.round)
        return found
