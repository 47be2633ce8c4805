"""Rounds with secure aggregation over a Grid: mask, confirm if sites are missing, unmask.

What a round asks is on the disk before it is asked, and its survivors before they are told, so that
a server that was killed asks the same again and gets the same sum, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.config import digest, from_json, to_json
from common.contract import Contract, Masking
from common.errors import InputError, Refused, UpdateRejected
from common.masking import (
    Advertisement,
    MaskedRound,
    Participants,
    RoundRequest,
    SiteFault,
    SumOverSites,
)
from common.npy import to_npy
from common.roster import Roster
from common.storage import write_private
from common.update import check_ready, model_id_of
from server.exchange import exchange, header_of, message_of

_ATTEMPTS: Final = 2
_ADVERTISEMENT_BYTES: Final = 1024


@dataclass(frozen=True)
class Parties:
    """Who the nodes of a grid are.

    Attributes:
        name_of: the site's name of a node; None where only what it signs can tell.
        roster: returns the newest signed roster.
        key: that signs it.
    """

    name_of: Callable[[int], str | None]
    roster: Callable[[], bytes]
    key: Ed25519PublicKey


@dataclass(frozen=True)
class Collected:
    """What the answers of a round gave.

    Attributes:
        delta: mean delta, float32 [d]; None where too few answers were usable.
        accepted: whose updates are in it, how many.
        rejected: whose answers were not used, and why.
        asked: the nodes that may have spent budget.
        used: the nodes whose updates are in it.
        why: what the round came to grief on.
        lost: this round will never give a sum; the next one may.
    """

    delta: NDArray[np.float32] | None
    accepted: int
    rejected: list[tuple[int, str]]
    asked: tuple[int, ...]
    used: tuple[int, ...] = ()
    why: str = ""
    lost: bool = False


@dataclass(frozen=True)
class UnderWay:
    """The round under way, as it is kept: request and advertisements in hex.

    `survivors` are empty until they were told to anyone.
    """

    request: str
    advertisements: tuple[str, ...]
    survivors: tuple[str, ...] = ()
    asked: tuple[int, ...] = ()
    attempts: int = 0

    @property
    def question(self) -> RoundRequest:
        return RoundRequest.from_bytes(bytes.fromhex(self.request))

    @property
    def keys(self) -> list[bytes]:
        return [bytes.fromhex(one) for one in self.advertisements]


class MaskedRounds:
    """The masked rounds of one run; `path` is where the round under way is kept."""

    def __init__(
        self, grid: Grid, contract: Contract, parties: Parties, timeout: float | None, path: Path
    ) -> None:
        if contract.masking is None:
            raise InputError("the run was agreed without secure aggregation")
        self._grid, self._contract, self._parties = grid, contract, parties
        self._masking: Masking = contract.masking
        self._timeout, self._path = timeout, path
        self._document = b""
        self._sites: dict[int, Advertisement] = {}

    def renew(self) -> bool:
        """Take the newest roster; return whether it is new, so that all sites must prepare anew."""
        newest = self._parties.roster()
        if newest == self._document:
            return False
        self._roster = Roster.read(newest, self._parties.key)
        self._document = newest
        self._sites.clear()
        return True

    def invitation(self) -> ConfigRecord:
        """Return what the preparation of a site brings besides the public part: the roster."""
        return ConfigRecord({"roster": self._document})

    def admit(self, node: int, reply: Message) -> None:
        """Take a prepared site's key; a name or signature that is not its own is UpdateRejected."""
        check_ready(header_of(reply), digest(self._contract))
        message = message_of(reply, _ADVERTISEMENT_BYTES)
        try:
            found = Advertisement.from_bytes(message)
            Participants.verified(self._roster, self._contract.run_id, [found])
        except Refused as error:
            raise UpdateRejected(error.message) from error
        name = self._parties.name_of(node)
        if name is not None and name != found.site:
            raise UpdateRejected(f"{name} advertises as {found.site}")
        self._sites[node] = found

    def under_way(self, round_: int, parameters: NDArray[np.float32]) -> bool:
        """Return whether this round was asked before, at the same parameters float32 [d]."""
        return self._kept(round_, model_id_of(self._contract.run_id, parameters)) is not None

    def collect(
        self, round_: int, parameters: NDArray[np.float32], nodes: Iterable[int]
    ) -> Collected:
        """Return the mean delta of one round at `parameters` float32 [d] over those who survive.

        A round without a sum is asked once more when it is collected again, and then is lost.
        """
        names = {self._sites[node].site: node for node in nodes if node in self._sites}
        model_id = model_id_of(self._contract.run_id, parameters)
        kept = self._kept(round_, model_id) or self._begin(round_, model_id, names)
        if kept is None:
            return Collected(None, len(names), [], (), why="too few sites are ready")
        asked = {*kept.asked, *(names[site] for site in kept.question.sites if site in names)}
        kept = replace(kept, attempts=kept.attempts + 1, asked=tuple(sorted(asked)))
        self._keep(kept)
        rejected: list[tuple[int, str]] = []
        try:
            found = self._play(kept, names, parameters, rejected)
        except (Refused, SiteFault) as error:
            lost = kept.attempts >= _ATTEMPTS
            return Collected(None, 0, rejected, kept.asked, why=error.message, lost=lost)
        rejected += [
            (names[holder], f"it says that its share of {dealer} does not open")
            for holder, dealer in found.complaints
        ]
        used = tuple(sorted(names[site] for site in found.survivors if site in names))
        return Collected(self._delta(found), len(found.survivors), rejected, kept.asked, used)

    def end(self, nodes: Iterable[int]) -> None:
        """Tell the sites that the run has ended, so that they destroy their keys of it."""
        question = RecordDict({"request": self._request()})
        exchange(
            self._grid, "query.end", dict.fromkeys(nodes, question), lambda node, reply: None,
            timeout=self._timeout,
        )  # fmt: skip
        self._path.unlink(missing_ok=True)

    def _begin(self, round_: int, model_id: str, names: Mapping[str, int]) -> UnderWay | None:
        masking, ready = self._masking, sorted(names)
        if len(ready) < masking.minimum:
            return None
        # With more sites than can be covered at once, they take turns.
        turn = round_ % len(ready) if len(ready) > masking.most_sites else 0
        sites = tuple(sorted([*ready[turn:], *ready[:turn]][: masking.most_sites]))
        request = RoundRequest(
            federation=self._roster.federation,
            run_id=self._contract.run_id,
            round=round_,
            contract_id=digest(self._contract),
            model_id=model_id,
            dimension=masking.dimension,
            minimum=masking.minimum,
            colluders=masking.colluders,
            sites=sites,
        )
        advertised = tuple(self._sites[names[site]].to_bytes().hex() for site in sites)
        return UnderWay(request.to_bytes().hex(), advertised)

    def _play(
        self,
        kept: UnderWay,
        names: Mapping[str, int],
        parameters: NDArray[np.float32],
        rejected: list[tuple[int, str]],
    ) -> SumOverSites:
        """Return the sum of a round, or raise Refused or SiteFault; `rejected` grows either way."""
        request, keys = kept.question, kept.keys
        participants = Participants.verified(
            self._roster, request.run_id, [Advertisement.from_bytes(key) for key in keys]
        )
        masked = MaskedRound(participants, request)
        limit = 4 * request.dimension + 256 * len(request.sites) + 4096
        model = ArrayRecord({"vector": Array(*to_npy(parameters))})

        def ask(kind: str, asked: Mapping[str, bytes], take: Callable[[str, bytes], None]) -> None:
            sites = {names[site]: site for site in asked if site in names}
            questions = {}
            for node, site in sites.items():
                masking = ConfigRecord({"request": request.to_bytes(), "asked": asked[site]})
                masking["advertisements"] = keys
                questions[node] = RecordDict({"request": self._request(), "masking": masking})
                if kind == "train.mask":
                    questions[node]["parameters"] = model

            def read(node: int, reply: Message) -> None:
                take(sites[node], message_of(reply, limit, kind))

            rejected.extend(
                exchange(
                    self._grid, kind, questions, read,
                    timeout=self._timeout, group=str(request.round),
                )
            )  # fmt: skip

        ask("train.mask", dict.fromkeys(kept.survivors or request.sites, b""), masked.add_update)
        while masked.needs_confirmation:
            survivors = masked.survivors_request()
            self._keep(replace(kept, survivors=survivors.survivors))
            asked = dict.fromkeys(survivors.survivors, survivors.to_bytes())
            ask("query.confirm", asked, masked.add_confirmation)
            masked.settle()
        self._keep(replace(kept, survivors=masked.survivors_request().survivors))
        asked = {site: masked.unmask_request(site).to_bytes() for site in masked.survivors}
        ask("query.unmask", asked, masked.add_shares)
        return masked.total()

    def _delta(self, found: SumOverSites) -> NDArray[np.float32]:
        """Return the mean delta of the survivors, as their own step would give it."""
        privacy = self._contract.privacy
        total = self._masking.encoding(privacy.max_grad_norm).decode(found.total)
        mean = total / (privacy.public_denominator * len(found.survivors))
        return (-self._contract.local_learning_rate * mean).astype(np.float32)

    def _request(self) -> ConfigRecord:
        return ConfigRecord({"contract_digest": digest(self._contract)})

    def _kept(self, round_: int, model_id: str) -> UnderWay | None:
        """Return the round that was under way when this server was killed, if it is this one."""
        if not self._path.exists():
            return None
        text = self._path.read_text(encoding="utf-8")
        kept = from_json(UnderWay, text, where=self._path.name)
        request = kept.question
        wanted = (round_, model_id, digest(self._contract))
        return kept if (request.round, request.model_id, request.contract_id) == wanted else None

    def _keep(self, kept: UnderWay) -> None:
        write_private(self._path, to_json(kept).encode())
