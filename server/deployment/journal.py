"""What the coordinator tells of a run: written after each round, counted from its checkpoint."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final, get_args

from common.config import digest
from common.contract import Contract
from common.plan import epsilon_after
from common.update import Refusal
from server.checkpoint import RoundRecord, load
from server.deployment.folder import Progress, RunFolder, ServerFolder, SiteRounds, State
from server.exchange import APP_FAILED, FOREIGN_CODE, SILENT

log = logging.getLogger("veilface.server")

_LOST: Final = "the round gave no sum"
_KINDS: Final = {SILENT: "silent", FOREIGN_CODE: "code", APP_FAILED: "failed", _LOST: "lost"}


class Journal:
    """An observer of the rounds of one run."""

    def __init__(self, folder: ServerFolder, run: RunFolder) -> None:
        self._folder, self._run = folder, run
        self._contract: Contract | None = None
        self._records: tuple[RoundRecord, ...] = ()
        self._names: dict[int, str] = {}
        self._why = ""

    def begin(self, contract: Contract) -> None:
        """Take up the rounds that the checkpoint holds."""
        self._contract = contract
        if self._run.checkpoint.exists():
            self._records = load(self._run.checkpoint, digest(contract)).history
        self._tell("running", "")

    def counted(self, here: Collection[str]) -> None:
        """Note which sites live before a round: while there are too few, the run waits."""
        needed = self._run.request().terms.training.minimum_sites
        names = f" ({', '.join(sorted(here))})" if here else ""
        why = f"{len(here)} of at least {needed} sites are here{names}"
        why = why if len(here) < needed else ""
        if why != self._why:
            self._tell("waiting" if why else "running", why)

    def round_started(self, round_: int, sites: int) -> None:
        log.info("run %s: round %d asks %d sites", self._run.name, round_, sites)

    def round_finished(self, record: RoundRecord) -> None:
        self._records = (*self._records, record)
        self._tell("running", "")
        names = self._named()
        for node, reason in record.rejected:
            name = names.get(node, f"node {node}")
            log.warning("run %s: round %d: %s: %s", self._run.name, record.round, name, reason)

    def end(self, state: State, why: str) -> None:
        """Note how the run ended, or for what it waits."""
        log.log(
            logging.INFO if state == "finished" else logging.WARNING,
            "run %s: %s%s", self._run.name, state, f": {why}" if why else "",
        )  # fmt: skip
        self._tell(state, why)

    def _named(self) -> dict[int, str]:
        """The sites by node id; one that was revoked meanwhile keeps its name."""
        if (contacts := self._folder.contacts()) is not None:
            self._names |= {c.node: c.site for c in contacts.sites if c.node}
        return self._names

    def _tell(self, state: State, why: str) -> None:
        self._why = why
        done = len(self._records)
        terms = self._run.request().terms
        under_way = (
            state not in ("finished", "failed", "cancelled") and done < terms.training.rounds
        )
        extra = 1 if under_way else 0
        self._run.report(
            Progress(
                state=state,
                round=done,
                rounds=terms.training.rounds,
                epsilon=self._spent(done + extra),
                delta=terms.training.delta,
                seconds=sum(record.seconds for record in self._records),
                sites=self._sites(extra),
                scores=self._records[-1].scores if self._records else {},
                why=why,
                changed=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
        )

    def _sites(self, extra: int) -> tuple[SiteRounds, ...]:
        names = self._named()
        nodes = {node for record in self._records for node in record.asked}
        nodes |= {node for record in self._records for node, _ in record.rejected}
        found = [self._site(node, names.get(node, f"node {node}"), extra) for node in nodes]
        return tuple(sorted(found, key=lambda site: site.site))

    def _site(self, node: int, name: str, extra: int) -> SiteRounds:
        asked = [node in record.asked for record in self._records]
        refused = [_refused(record, node) for record in self._records]
        return SiteRounds(
            name,
            sum(asked),
            sum(was and not why for was, why in zip(asked, refused, strict=True)),
            dict(self._records[-1].rejected).get(node, ""),
            self._spent(sum(asked) + extra),
            dict(Counter(kind_of(why) for why in refused if why)),
        )

    def _spent(self, rounds: int) -> float:
        return 0.0 if self._contract is None else epsilon_after(self._contract, rounds)


def kind_of(reason: str) -> str:
    """Name the kind of a reason why an answer was not used.

    What a site said in one word, `silent`, `code` (its policy does not list the server's), `failed`
    (its app), `lost` (a masked round without a sum), or `malformed`.
    """
    said = reason.removeprefix("refused: ")
    return said if said in get_args(Refusal) else _KINDS.get(reason.partition(" (")[0], "malformed")


def _refused(record: RoundRecord, node: int) -> str:
    """Why a round did without a node; empty if it did not, or the node was not in it."""
    lost = _LOST if record.accepted == 0 and node in record.asked else ""
    return dict(record.rejected).get(node, lost)
