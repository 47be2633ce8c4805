"""A site in runs with secure aggregation: its identity, its key of the run, and its three answers.

One directory a run (0700) holds `run.key` and what was promised in each round. The key is destroyed
with its run: when the server says that it has ended, or asks the site to prepare another.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from numpy.typing import NDArray

from client.gradients import choose_engine
from client.preparation import Unprepared
from client.site import Prepared, Site
from client.trainer import RoundKeys, sum_of_round
from common.bundle import SIGNING_KEY, Bundle
from common.config import digest
from common.contract import Contract, Masking
from common.errors import Refused
from common.masking import (
    Advertisement,
    MaskingSite,
    Participants,
    RoundRequest,
    SurvivorsRequest,
    UnmaskRequest,
    advertise,
)
from common.parameters import layout_of
from common.randomness import KEY_BYTES, KeyStream, derive_key, fresh_key
from common.roster import Roster, RosterStore
from common.storage import make_private_directory, write_private
from common.update import model_id_of

_KEY = "run.key"


@dataclass(frozen=True)
class Identity:
    """Who a site is: its name on the roster, what it signs with, and the rosters it has seen."""

    site: str
    signing_key: Ed25519PrivateKey
    rosters: RosterStore

    @classmethod
    def of(cls, bundle: Bundle, state: Path) -> Identity:
        """Return the identity that a bundle gives, with the newest roster kept in `state`."""
        key = load_ssh_private_key(bundle.file(SIGNING_KEY), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise Refused("the bundle's signing key is not an Ed25519 key")
        return cls(bundle.manifest.party, key, RosterStore(state / "roster", bundle.roster_key))


@dataclass(frozen=True)
class Question:
    """What each stage of a round brings: the round, and the keys that its sites advertised."""

    request: RoundRequest
    advertisements: tuple[bytes, ...]


class MaskedSite:
    """A site's part in secure aggregation: advertise once a run, then mask, confirm and unmask."""

    def __init__(self, identity: Identity, site: Site) -> None:
        self._identity, self._site = identity, site
        self._known: tuple[object, MaskingSite, Participants] | None = None

    def advertise(self, contract: Contract, roster: bytes) -> Advertisement:
        """Accept the server's roster and return this site's key for a run; other runs' keys go.

        An older or forked roster, or one without this site, is Refused.
        """
        _masking(contract)
        book = self._identity.rosters.accept(roster)
        if self._identity.site not in {site.name for site in book.sites}:
            raise Refused(f"{self._identity.site} is not on the roster")
        run = self._run(contract)
        for other in run.parent.glob("*"):
            if other != run:
                _destroy(other)
        if not (run / _KEY).exists():
            write_private(make_private_directory(run) / _KEY, fresh_key())
        return advertise(
            book, contract.run_id, self._identity.site, _key(run), self._identity.signing_key
        )

    def mask(
        self,
        prepare: Callable[[], Prepared],
        contract: Contract,
        vector: NDArray[np.float32],
        public_id: str,
        question: Question,
    ) -> bytes:
        """Return this site's one masked update of a round; a retry gives the same bytes.

        `vector` float32 [d] are the parameters that the update starts from, `public_id` as in
        `Site.train`. Whatever is not as
        agreed is Refused before the budget is touched, and nothing private is read before it is.
        """
        masking, request = _masking(contract), question.request
        own, participants = self._member(contract, question)
        model_id = model_id_of(contract.run_id, vector)
        wanted = (digest(contract), model_id, masking.dimension, masking.terms)
        asked = (request.contract_id, request.model_id, request.dimension, request.terms)
        if asked != wanted or len(vector) != masking.dimension:
            raise Refused("the round is not one of the agreed run, or of another model")
        if self._identity.site not in request.sites or len(request.sites) > masking.most_sites:
            raise Refused("the round is without this site, or has more sites than noise was for")

        def compute(key: bytes) -> bytes:
            value = _clipped_sum(prepare(), contract, vector, key)
            encoding = masking.encoding(contract.privacy.max_grad_norm)
            noise = KeyStream(
                derive_key(key, "discrete noise"), private=self._site.round_key.private
            )
            noised = encoding.add_noise(encoding.encode(value), noise)
            return own.mask(request, noised, derive_key(key, "masks")).to_bytes()

        bound = f"{model_id} {public_id} {participants.digest(request).hex()}"
        return self._site.release(contract, request.round, bound, compute)

    def confirm(self, contract: Contract, question: Question, asked: bytes) -> bytes:
        """Return this site's signature on the survivors, and its seeds with the missing."""
        own, _ = self._member(contract, question)
        return own.confirm(question.request, SurvivorsRequest.from_bytes(asked)).to_bytes()

    def unmask(self, contract: Contract, question: Question, asked: bytes) -> bytes:
        """Return this site's shares of the survivors' seeds."""
        own, _ = self._member(contract, question)
        return own.unmask(question.request, UnmaskRequest.from_bytes(asked)).to_bytes()

    def end(self, contract: Contract) -> None:
        """Destroy the key of a run and its promises: no round of it can be answered any more."""
        self._known = None
        _destroy(self._run(contract))

    def _member(self, contract: Contract, question: Question) -> tuple[MaskingSite, Participants]:
        """Return this site among the verified others; kept, since a run's rounds are alike."""
        store, run = self._identity.rosters, self._run(contract)
        if not store.path.exists() or not (run / _KEY).exists():
            raise Unprepared(f"{self._identity.site} has advertised no key for this run")
        document = store.path.read_bytes()
        known = (document, contract.run_id, question.advertisements, _masking(contract).terms)
        if self._known is None or self._known[0] != known:
            participants = Participants.verified(
                Roster.read(document, store.key),
                contract.run_id,
                [Advertisement.from_bytes(one) for one in question.advertisements],
            )
            own = MaskingSite(
                participants,
                self._identity.site,
                _key(run),
                self._identity.signing_key,
                _masking(contract).terms,
                run,
            )
            self._known = (known, own, participants)
        return self._known[1:]

    def _run(self, contract: Contract) -> Path:
        # A run's name is the server's choice, so it names no path.
        name = hashlib.sha256(contract.run_id.encode()).hexdigest()[:32]
        return self._site.directory / "masking" / name


def _masking(contract: Contract) -> Masking:
    if contract.masking is None:
        raise Refused("the run was agreed without secure aggregation")
    return contract.masking


def _clipped_sum(
    ready: Prepared, contract: Contract, vector: NDArray[np.float32], key: bytes
) -> NDArray[np.float64]:
    """Return the sum of all persons' clipped gradients, float64 [d]: not private yet."""
    if layout_of(ready.model).dimension != len(vector):
        raise Refused("the parameters do not fit the agreed model")
    clipped = sum_of_round(
        ready.model,
        vector,
        ready.persons,
        ready.public_inputs,
        contract,
        RoundKeys.derive(key, private=True),
        choose_engine(ready.model, contract.train_set),
    )
    value: NDArray[np.float64] = clipped.value.numpy()
    return value


def _key(run: Path) -> bytes:
    key = (run / _KEY).read_bytes()
    if len(key) != KEY_BYTES:
        raise Refused(f"{run / _KEY} is damaged", hint="delete it: the run goes on with a new key")
    return key


def _destroy(run: Path) -> None:
    (run / _KEY).unlink(missing_ok=True)  # first: without it, the rest is of no use to anyone
    shutil.rmtree(run, ignore_errors=True)
