"""What the coordinator tells of a run: written after each round, counted from its checkpoint."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, get_args

from common.config import digest
from common.contract import Contract
from common.errors import InputError
from common.plan import epsilon_after
from common.terms import TrainingConfig
from common.update import Refusal
from server.checkpoint import RoundRecord, load
from server.deployment.asked import AskedSites
from server.deployment.folder import Progress, RunFolder, ServerFolder, SiteRounds, State
from server.exchange import APP_FAILED, FOREIGN_CODE, SILENT

log = logging.getLogger("veilface.server")

_LOST: Final = "the round gave no sum"
_KINDS: Final = {SILENT: "silent", FOREIGN_CODE: "code", APP_FAILED: "failed", _LOST: "lost"}


class Journal:
    """An observer of the rounds of one run."""

    def __init__(self, folder: ServerFolder, run: RunFolder) -> None:
        self._folder, self._run = folder, run
        self._told: Told | None = None
        self._why = ""

    def begin(self, contract: Contract) -> None:
        """Take up the rounds that the checkpoint holds."""
        records: tuple[RoundRecord, ...] = ()
        if self._run.checkpoint.exists():
            records = load(self._run.checkpoint, digest(contract)).history
        asked = AskedSites(self._run.asked, records, self._contacted(), contract.rounds)
        self._told = Told(contract, asked, records)
        self._tell("running", "")

    def waits(self, why: str) -> None:
        """Note for what the run waits, which is nothing to worry about."""
        self._tell("waiting", why)

    def counted(self, here: Mapping[int, str]) -> None:
        """Note which sites live, by node id: while there are too few, the run waits."""
        self._begun.asked.meet(here)
        needed = self._run.request().terms.training.minimum_sites
        names = f" ({', '.join(sorted(here.values()))})" if here else ""
        why = f"{len(here)} of at least {needed} sites are here{names}"
        why = why if len(here) < needed else ""
        if why != self._why:
            self._tell("waiting" if why else "running", why)

    def round_started(self, round_: int, nodes: Collection[int]) -> None:
        """Write down who may spend on a round before anyone does."""
        self._begun.asked.asks(round_, nodes)
        self._tell("running", "")
        log.info("run %s: round %d asks %d sites", self._run.name, round_, len(nodes))

    def round_finished(self, record: RoundRecord) -> None:
        told = self._begun
        told.asked.finished(record)
        self._told = replace(told, records=(*told.records, record))
        self._tell("running", "")
        for node, reason in record.rejected:
            name = told.asked.name(node)
            log.warning("run %s: round %d: %s: %s", self._run.name, record.round, name, reason)

    def end(self, state: State, why: str) -> None:
        """Note how the run ended, or for what it waits."""
        log.log(
            logging.INFO if state == "finished" else logging.WARNING,
            "run %s: %s%s", self._run.name, state, f": {why}" if why else "",
        )  # fmt: skip
        self._tell(state, why)

    @property
    def _begun(self) -> Told:
        if self._told is None:
            raise RuntimeError("the journal was not begun")
        return self._told

    def _contacted(self) -> dict[int, str]:
        """Return site by node id, as last seen: a power cut may have damaged that, until the next
        look, and fails no run."""
        try:
            contacts = self._folder.contacts()
        except InputError as error:
            log.warning("run %s: %s", self._run.name, error)
            return {}
        return {} if contacts is None else {c.node: c.site for c in contacts.sites if c.node}

    def _tell(self, state: State, why: str) -> None:
        """Write the progress; of a run that could not be taken up, what was told before stays."""
        self._why = why
        training = self._run.request().terms.training
        if self._told is None:
            told = self._run.progress() or Progress(
                state, 0, training.rounds, 0.0, training.delta, 0.0, (), {}, why, ""
            )
        else:
            self._told.asked.meet(self._contacted())
            told = self._told.progress(training)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._run.report(replace(told, state=state, why=why, changed=now))


@dataclass(frozen=True)
class Told:
    """What there is to tell of a run that was begun."""

    contract: Contract
    asked: AskedSites
    records: tuple[RoundRecord, ...]

    def progress(self, training: TrainingConfig) -> Progress:
        """Return how far the run is, without state, reason and date."""
        rounds = self.asked.rounds(self.records)
        begun = max([len(self.records), *(max(of_site) for of_site in rounds.values())])
        return Progress(
            state="running",
            round=len(self.records),
            rounds=training.rounds,
            epsilon=epsilon_after(self.contract, begun),
            delta=training.delta,
            seconds=sum(record.seconds for record in self.records),
            sites=self._sites(rounds),
            scores=self.records[-1].scores if self.records else {},
            why="",
            changed="",
        )

    def _sites(self, rounds: Mapping[str, set[int]]) -> tuple[SiteRounds, ...]:
        """Each site that was asked, or was not ready to be, by name."""
        used = Counter(site for record in self.records for site in self._used(record))
        refused = [self._refused(record) for record in self.records]
        last: dict[str, str] = {}
        for record, why in zip(self.records, refused, strict=True):
            last |= dict.fromkeys(self._used(record), "") | why
        names = sorted({*rounds, *last})
        return tuple(
            SiteRounds(
                site=site,
                asked=sum(round_ <= len(self.records) for round_ in rounds.get(site, ())),
                accepted=used[site],
                refused=last.get(site, ""),
                epsilon=epsilon_after(self.contract, len(rounds.get(site, ()))),
                rejections=dict(Counter(kind_of(why[site]) for why in refused if site in why)),
            )
            for site in names
        )

    def _used(self, record: RoundRecord) -> set[str]:
        """Return the sites whose updates are in a round's model."""
        nodes = set(record.used)
        if record.accepted and not nodes:  # of an earlier version
            nodes = set(record.asked) - {node for node, _ in record.rejected}
        return {self.asked.name(node) for node in nodes}

    def _refused(self, record: RoundRecord) -> dict[str, str]:
        """Return by site why a round did without it."""
        lost, used = record.asked if record.accepted == 0 else (), self._used(record)
        reasons = [*((node, _LOST) for node in lost), *record.rejected]
        found = {self.asked.name(node): why for node, why in reasons}
        return {site: why for site, why in found.items() if site not in used}


def kind_of(reason: str) -> str:
    """Name the kind of a reason why an answer was not used.

    What a site said in one word, `silent`, `code` (its policy does not list the server's), `failed`
    (its app), `lost` (a masked round without a sum), or `malformed`.
    """
    said = reason.removeprefix("refused: ")
    return said if said in get_args(Refusal) else _KINDS.get(reason.partition(" (")[0], "malformed")
