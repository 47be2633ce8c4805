"""What a server keeps on its disk: roster, runs, who is there; read by every part of it.

roster, roster.pub      the newest roster, and the key that signs it
terms.json              the terms of training from the server's bundle, if it has any
superlink.db            Flower's own state
inside/                 keys between the parts of one `server up`; the next start makes new ones
sites.json              which site was heard of when, rewritten every few seconds
front.json, tokens      what the front counted; hashes of the page's tokens
runs/RUN/request.json   what was asked for; a run is there from this file on
runs/RUN/progress.json  how far it is, rewritten before and after each round
runs/RUN/asked.json     which sites may have spent on it, rewritten before each round
runs/RUN/cancel         that it is to be left
runs/RUN/checkpoint.safetensors, model.safetensors, software.json
runs/RUN/masked-round.json   with secure aggregation, the round under way
runs/RUN/utility.json   what training changed on public test faces
runs/RUN/report.html    an audit report that someone wrote there
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from common.config import read_json, to_json
from common.errors import InputError, Refused
from common.roster import Roster, RosterStore
from common.signing import public_key
from common.storage import make_private_directory, write_private
from common.terms import Terms

_RUN: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?", re.ASCII)
State = Literal["waiting", "running", "finished", "failed", "cancelled"]
ENDED: Final = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class RunRequest:
    """What `veilface server run` asks for.

    Attributes:
        public: folder of public faces, one folder a person, that the server sends to the sites.
        test: folder of other public faces that every model is measured on, or None.
        drop_after: silent seconds after which a round no longer waits for a site.
        asked: when, UTC.
    """

    run_id: str
    terms: Terms
    public: Path
    test: Path | None
    aligned: bool
    weights: Path | None
    cache: Path | None
    drop_after: float
    asked: str

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run_id):
            raise InputError(
                f"{self.run_id!r} cannot name a run",
                hint="1 to 64 of a-z, 0-9, dots and hyphens, a letter or digit at both ends",
            )


@dataclass(frozen=True)
class SiteRounds:
    """What the server knows of a site in a run.

    Attributes:
        asked: rounds in which the site was asked, so that it may have spent budget.
        accepted: rounds in which its update was used.
        refused: why its last answer was not used; empty if it was.
        epsilon: what it may have spent on the run at most, at the delta of the run.
        rejections: rounds of the whole run that used nothing of it, by the kind of the reason (see
            `server.deployment.journal.kind_of`), those too in which it was not ready to be asked.
    """

    site: str
    asked: int
    accepted: int
    refused: str = ""
    epsilon: float = 0.0
    rejections: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a run is; all of it may be shown to anyone who may see the status page.

    Attributes:
        epsilon, delta: what a site has spent at most that was asked in every round so far,
            including the round that is under way.
        scores: of the newest model on the public test faces, empty without any.
        why: of a run that waits or has failed.
    """

    state: State
    round: int
    rounds: int
    epsilon: float
    delta: float
    seconds: float
    sites: tuple[SiteRounds, ...]
    scores: dict[str, float]
    why: str
    changed: str


@dataclass(frozen=True)
class SiteContact:
    """When a site was last heard of.

    Attributes:
        state: `online`, `offline`, or `never` heard of.
        heard: when, UTC, or empty.
        node: its id at the SuperLink, 0 before it has one.
    """

    site: str
    state: Literal["online", "offline", "never"]
    heard: str
    node: int = 0


@dataclass(frozen=True)
class Contacts:
    """All sites of the roster, as of `looked`, UTC."""

    looked: str
    sites: tuple[SiteContact, ...]


@dataclass(frozen=True)
class ServerFolder:
    """A server's directory (0700)."""

    path: Path

    @property
    def superlink(self) -> Path:
        return self.path / "superlink.db"

    @property
    def sites(self) -> Path:
        return self.path / "sites.json"

    @property
    def inside(self) -> Path:
        return self.path / "inside"

    @property
    def roster_store(self) -> RosterStore:
        """The kept roster, against the pinned key."""
        try:
            key = public_key((self.path / "roster.pub").read_bytes())
        except OSError as error:
            raise InputError(
                f"{self.path} is no server's folder", hint="veilface server up makes it"
            ) from error
        return RosterStore(self.path / "roster", key)

    def roster(self) -> Roster:
        """Return the newest roster that this server has accepted."""
        store = self.roster_store
        try:
            return Roster.read(store.path.read_bytes(), store.key)
        except OSError as error:
            raise Refused(f"{store.path} cannot be read: {error.strerror}") from error

    def terms(self) -> Terms | None:
        """Return the terms that the server's bundle brought."""
        path = self.path / "terms.json"
        return Terms.read(path.read_bytes()) if path.exists() else None

    def contacts(self) -> Contacts | None:
        """Return who was heard of when; None before the first look."""
        return read_json(Contacts, self.sites)

    def keep_contacts(self, contacts: Contacts) -> None:
        """Replace who was heard of; that is soon looked up anew, so need not be durable."""
        write_private(self.sites, to_json(contacts).encode(), durable=False)

    def run(self, run_id: str) -> RunFolder:
        """Return a run's folder; a name that is none is an InputError."""
        if not _RUN.fullmatch(run_id):
            raise InputError(f"{run_id!r} cannot name a run")
        return RunFolder(self.path / "runs" / run_id)

    def runs(self) -> Iterator[RunFolder]:
        """Yield the runs in the order in which they were asked for."""
        found = [RunFolder(path.parent) for path in self.path.glob("runs/*/request.json")]
        yield from sorted(found, key=lambda run: (run.request().asked, run.path.name))

    def waits_for(self, run: RunFolder) -> str:
        """Return what a run waits for that nobody has begun."""
        before = next((one for one in self.runs() if not one.ended), run)
        if before.name != run.name:
            return f"for run {before.name}, which was asked for first"
        return "for the server to take it up"

    def ask(self, request: RunRequest) -> RunFolder:
        """Put a request on the list; the same one again is the same run, another is refused."""
        run = self.run(request.run_id)
        make_private_directory(run.path)
        if run.exists:
            before = run.request()
            if to_json(before) != to_json(RunRequest(**{**vars(request), "asked": before.asked})):
                raise InputError(
                    f"run {request.run_id!r} was asked for with other settings",
                    hint="choose another --run-id",
                )
            return run
        write_private(run.path / "request.json", to_json(request).encode())
        return run


@dataclass(frozen=True)
class RunFolder:
    """One run's directory."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def exists(self) -> bool:
        return (self.path / "request.json").exists()

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def asked(self) -> Path:
        return self.path / "asked.json"

    def request(self) -> RunRequest:
        """Return what was asked for."""
        request = read_json(RunRequest, self.path / "request.json")
        if request is None:
            raise InputError(f"there is no run {self.name!r}", hint="veilface server status")
        return request

    def progress(self) -> Progress | None:
        """Return how far the run is; None before it was begun."""
        return read_json(Progress, self.path / "progress.json")

    def report(self, progress: Progress) -> None:
        """Replace the progress, for good: it says what sites may have spent."""
        write_private(self.path / "progress.json", to_json(progress).encode())

    def state(self, progress: Progress | None) -> State:
        """Where it is, by its progress: one that waits has ended once it is cancelled, because
        nobody is at work on it; one that is under way ends when the coordinator has left it."""
        found = progress.state if progress else "waiting"
        return "cancelled" if found == "waiting" and self.cancelled else found

    @property
    def ended(self) -> bool:
        """Whether nobody works on it any more."""
        return self.state(self.progress()) in ENDED

    @property
    def cancelled(self) -> bool:
        return (self.path / "cancel").exists()

    def cancel(self) -> None:
        """Ask that the run be left, in the middle of a round if need be."""
        self.request()
        write_private(self.path / "cancel", b"")


def to_dict(value: object) -> dict[str, object]:
    """Return a dataclass as plain JSON values, for `--json`."""
    plain: dict[str, object] = json.loads(to_json(value))
    return plain
