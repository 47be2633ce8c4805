"""What the rules look at: recorded settings, and Python sources that are parsed, never run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from server.lint.settings import Settings
from server.lint.source import Source

Kind = Literal["run", "project", "settings"]
Severity = Literal["error", "warning"]

# Calls that make a release private, or claim to; without one of them no rule about sources applies.
_MECHANISMS = frozenset(
    {
        *("PrivacyEngine", "DPOptimizer", "make_private", "make_private_with_epsilon"),
        *("LocalDpMod", "DifferentialPrivacyClientSideFixedClipping"),
        *("DifferentialPrivacyClientSideAdaptiveClipping", "add_gaussian_noise_inplace"),
        *("DifferentialPrivacyServerSideFixedClipping", "add_gaussian_noise_to_params"),
        *("DifferentialPrivacyServerSideAdaptiveClipping", "add_localdp_gaussian_noise_to_params"),
    }
)


@dataclass(frozen=True)
class Recorded:
    """Settings as they were recorded, and where: a file, or a site of a run."""

    where: str
    settings: Settings


@dataclass(frozen=True)
class Unread:
    """A file that could not be read or does not hold, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Project:
    """All that is known of what is linted.

    Attributes:
        kind: a run folder, a project's folder, or a file of recorded settings.
        recorded: settings, one entry a site in a run.
        sources: parsed Python files.
        unread: what could not be read.
        rounds: federated rounds that a project is configured for; None where it does not say.
    """

    kind: Kind
    recorded: tuple[Recorded, ...] = ()
    sources: tuple[Source, ...] = ()
    unread: tuple[Unread, ...] = ()
    rounds: int | None = None

    @property
    def federated(self) -> bool:
        """Whether a source imports Flower: then clients are asked once a round."""
        return any(source.imports("flwr") for source in self.sources)

    @property
    def private(self) -> tuple[Source, ...]:
        """The sources, if any of them calls a mechanism of privacy; else none."""
        used = any(source.called(_MECHANISMS) for source in self.sources)
        return self.sources if used else ()

    @property
    def at_sites(self) -> tuple[Source, ...]:
        """The private sources that run beside the data: all but those of the server alone."""
        return tuple(source for source in self.private if not source.server_only)


@dataclass(frozen=True)
class Hit:
    """One place where a rule is broken, and what was found there."""

    where: str
    what: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Rule:
    """One way to a false epsilon.

    Attributes:
        id, title: its name for machines and for people.
        why: what goes wrong, with the source.
        mend: what to do instead.
        check: where a project breaks it.
    """

    id: str
    title: str
    why: str
    mend: str
    check: Callable[[Project], Iterator[Hit]]


Check = Callable[[Project], Iterator[Hit]]


def rule(id_: str, title: str, *, why: str, mend: str) -> Callable[[Check], Rule]:
    """Make a rule of the function that checks it."""
    return lambda check: Rule(id_, title, why, mend, check)
