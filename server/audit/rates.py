"""Error rates as they stand in a report: measured on public faces, stated by the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """FNMR after a round, at two fixed FMR, on the server's own public test faces."""

    round: int
    fnmr_at_fmr_1e2: float
    fnmr_at_fmr_1e3: float


@dataclass(frozen=True)
class GroupRate:
    """An error rate in [0, 1] with its 95% interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """False matches in one demographic group, and false non-matches where they were measured."""

    group: str
    pairs: int
    fmr: GroupRate
    fnmr: GroupRate | None


@dataclass(frozen=True)
class WorstGroup:
    """The group with the most errors, and how many times the rate of all groups it has."""

    group: str
    ratio: float


@dataclass(frozen=True)
class Groups:
    """All groups at one threshold; the worst ones are None where nobody erred."""

    threshold: float
    worst: WorstGroup | None
    worst_missed: WorstGroup | None
    groups: tuple[Group, ...]
