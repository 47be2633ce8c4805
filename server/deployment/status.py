"""What the status page shows: sites, runs, budgets and models, as the server knows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from common.errors import InputError
from server.checkpoint import history
from server.deployment.folder import RunFolder, ServerFolder, SiteRounds, State
from server.report.utility import public_scores, read_utility

REPORT = "report.html"
Presence = Literal["online", "offline", "never"]


@dataclass(frozen=True)
class SiteStatus:
    """A site of the roster.

    Attributes:
        heard: when it was last heard of, UTC, or empty.
        epsilon, delta: what it may have spent at most on all runs of this server together, by
            adding both up (Dwork and Roth 2014, theorem 3.16). Its own ledger composes better, and
            knows of other servers.
    """

    site: str
    state: Presence
    heard: str
    epsilon: float
    delta: float


@dataclass(frozen=True)
class SiteShare:
    """A site's part in a run; `left` is what the run may still ask of it, never below 0.

    `refused` is why its last answer was not used; `rejections` are rounds of the whole run that
    used nothing of it, by the kind of the reason.
    """

    site: str
    asked: int
    accepted: int
    refused: str
    spent: float
    left: float
    rejections: dict[str, int]


@dataclass(frozen=True)
class RunStatus:
    """A run.

    Attributes:
        budget, delta: epsilon of each site for the whole run, for adding or removing one person.
        round: the last finished one; the model and `scores` (public test faces) are of that round.
        seconds: in all rounds together.
        start: those of the model with which private training began, once a run has ended.
        model, report: whether they can be downloaded.
    """

    run_id: str
    state: State
    why: str
    asked: str
    changed: str
    backbone: str
    trained: str
    budget: float | None
    delta: float
    round: int
    rounds: int
    seconds: float
    sites: tuple[SiteShare, ...]
    scores: dict[str, float]
    start: dict[str, float]
    model: bool
    report: bool


@dataclass(frozen=True)
class ModelVersion:
    """The model after a finished round.

    Attributes:
        model: its id, SHA-256 over its tensors; of the last round, that of `model.safetensors`.
            Empty for rounds that an earlier version of Veilface finished.
        accepted: updates that it was made of; 0 is a masked round that gave no sum.
        seconds: that the round took.
        scores: FNMR at fixed FMR on the public test faces, empty without any.
    """

    round: int
    model: str
    accepted: int
    seconds: float
    scores: dict[str, float]


@dataclass(frozen=True)
class RunDetails(RunStatus):
    """A run with its model versions, the newest first."""

    versions: tuple[ModelVersion, ...]


@dataclass(frozen=True)
class Status:
    """Everything; `looked` is when the sites were last counted, UTC, or empty."""

    federation: str
    now: str
    looked: str
    sites: tuple[SiteStatus, ...]
    runs: tuple[RunStatus, ...]


def status(folder: ServerFolder) -> Status:
    """Return what a server's folder says at the moment, the newest run first."""
    roster, contacts = folder.roster(), folder.contacts()
    runs = tuple(run_status(run) for run in folder.runs())[::-1]
    known = {} if contacts is None else {contact.site: contact for contact in contacts.sites}
    sites = []
    for name in (site.name for site in roster.sites):
        contact = known.get(name)
        shares = [(s.spent, run.delta) for run in runs for s in run.sites if s.site == name]
        spending = [(epsilon, delta) for epsilon, delta in shares if epsilon > 0]
        sites.append(
            SiteStatus(
                name,
                contact.state if contact else "never",
                contact.heard if contact else "",
                sum(epsilon for epsilon, _ in spending),
                sum(delta for _, delta in spending),
            )
        )
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    looked = contacts.looked if contacts else ""
    return Status(roster.federation, now, looked, tuple(sites), runs)


def run_status(run: RunFolder) -> RunStatus:
    """Return how a run is; one that nobody has begun waits."""
    request, progress = run.request(), run.progress()
    training = request.terms.training
    return RunStatus(
        run_id=run.name,
        state=run.state(progress),
        why=progress.why if progress else "",
        asked=request.asked,
        changed=progress.changed if progress else request.asked,
        backbone=request.terms.backbone,
        trained=training.train_set,
        budget=training.epsilon,
        delta=training.delta,
        round=progress.round if progress else 0,
        rounds=training.rounds,
        seconds=progress.seconds if progress else 0.0,
        sites=tuple(_shares(progress.sites if progress else (), training.epsilon)),
        scores=progress.scores if progress else {},
        start=_start(run),
        model=run.model.is_file(),
        report=(run.path / REPORT).is_file(),
    )


def _start(run: RunFolder) -> dict[str, float]:
    try:
        utility = read_utility(run.path)
    except InputError:  # the audit report names it; here it must not hide the runs
        return {}
    return {} if utility is None else public_scores(utility.start)


def run_details(run: RunFolder) -> RunDetails:
    """Return how a run is, with all that its rounds have made."""
    return RunDetails(**vars(run_status(run)), versions=versions(run))


def versions(run: RunFolder) -> tuple[ModelVersion, ...]:
    """Return the models of a run's finished rounds, the newest first."""
    records = history(run.checkpoint) if run.checkpoint.exists() else ()
    return tuple(
        ModelVersion(one.round, one.model, one.accepted, one.seconds, one.scores)
        for one in reversed(records)
    )


def _shares(sites: Iterable[SiteRounds], budget: float | None) -> Iterable[SiteShare]:
    for site in sites:
        left = max(0.0, (budget or 0.0) - site.epsilon)
        yield SiteShare(
            site.site, site.asked, site.accepted, site.refused, site.epsilon, left, site.rejections
        )
