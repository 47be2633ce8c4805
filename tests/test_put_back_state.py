"""A site's state is copied between a round's key and its release, put back, and asked again."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from client.app import OpenSite, make_app
from client.masked_site import Identity, MaskedSite
from client.node_state import NodeState
from client.outbox import Outbox
from client.preparation import PublicPart
from client.site import Prepared, Site
from common.config import digest, to_json
from common.contract import Contract, Masking
from common.errors import LedgerError, Refused
from common.ledger import Ledger, verify
from common.masking import (
    Advertisement,
    MaskedUpdate,
    Participants,
    RoundRequest,
    SurvivorsRequest,
    UnmaskRequest,
    advertise,
    calibrate,
)
from common.masking.keys import PairKeys, open_share
from common.masking.masks import add_mask
from common.masking.messages import SEALED_BYTES, cut
from common.masking.shamir import Recombiner
from common.npy import from_npy, to_npy
from common.parameters import layout_of
from common.persons import Persons
from common.roster import RosterStore
from common.update import model_id_of
from simulations.inprocess import InProcessGrid
from tests.masking_rig import Federation, key, names_of, roster, share_of, signing_key, vector_of
from tests.secagg_rig import OPERATOR, RUN, public_inputs, start
from tests.test_site import BANK, CONTRACT, PLAN, Head, train

NAMES = names_of(3)
ROSTER = roster(NAMES)
CLIP = CONTRACT.privacy.max_grad_norm
LOCAL = dataclasses.replace(
    CONTRACT,
    public_negatives=8,
    privacy=dataclasses.replace(CONTRACT.privacy, public_denominator=1.0),
)


def masked() -> Contract:
    dimension = layout_of(Head()).dimension
    noise = calibrate(
        epsilon=2.0, delta=1e-4, rounds=4, dimension=dimension, max_grad_norm=CLIP, honest=3
    )
    privacy = dataclasses.replace(LOCAL.privacy, noise_multiplier=noise.noise_multiplier(3))
    masking = Masking(3, 0, dimension, noise.sigma)
    return dataclasses.replace(LOCAL, privacy=privacy, masking=masking)


CONTRACTS = pytest.mark.parametrize("agreed", [LOCAL, masked()], ids=["local", "secagg"])


def everybody(without: int | None = None) -> Persons:
    """Five persons, or four of them."""
    torch.manual_seed(0)
    rows = torch.randn(15, 6).reshape(5, 3, 6)
    kept = [person for person in range(5) if person != without]
    subjects = [place for place in range(len(kept)) for _ in range(3)]
    return Persons.group(torch.cat([rows[p] for p in kept]), subjects, kept)


class Asked:
    """A server, and the first site as a fresh process on what its disk holds."""

    def __init__(
        self, state: Path, agreed: Contract, persons: Callable[[], Persons] = everybody
    ) -> None:
        identity = Identity(NAMES[0], signing_key(NAMES[0]), RosterStore(
            state / "roster", OPERATOR.public_key()
        ))  # fmt: skip
        site = Site.open(state, PLAN)
        opened = OpenSite(
            site, state / "public", lambda part: Head(), lambda part: persons(),
            lambda contract: None, MaskedSite(identity, site),
        )  # fmt: skip
        self.agreed, self._state = agreed, state
        self._grid = InProcessGrid(make_app(lambda context: opened), 1)

    def _say(self, kind: str, content: RecordDict) -> RecordDict:
        content["request"] = ConfigRecord(
            {"contract": to_json(self.agreed), "contract_digest": digest(self.agreed)}
        )
        (reply,) = self._grid.send_and_receive([Message(content, 1, kind)])
        return reply.content

    def prepare(self, bank: torch.Tensor) -> RecordDict:
        inputs = ArrayRecord({"inputs": Array(*to_npy(bank.numpy()))})
        return self._say("query.prepare", RecordDict({
            "state": ArrayRecord({}), "public": inputs,
            "masking": ConfigRecord({"roster": ROSTER.signed(OPERATOR)}),
        }))  # fmt: skip

    def run_key(self) -> bytes:
        (path,) = self._state.glob("masking/*/run.key")
        return path.read_bytes()

    def advertisements(self) -> list[bytes]:
        keys = [self.run_key(), *map(key, NAMES[1:])]
        return [
            advertise(ROSTER, RUN, name, own, signing_key(name)).to_bytes()
            for name, own in zip(NAMES, keys, strict=True)
        ]

    def request(self) -> RoundRequest:
        dimension = layout_of(Head()).dimension
        return RoundRequest(
            "fed", RUN, 1, digest(self.agreed), model_id_of(RUN, start()), dimension, 3, 0, NAMES
        )

    def round(self) -> RecordDict:
        content = RecordDict({"parameters": ArrayRecord({"vector": Array(*to_npy(start()))})})
        if self.agreed.masking is None:
            content["request"] = ConfigRecord({})
            return self._round(content)
        content["masking"] = ConfigRecord(
            {
                "request": self.request().to_bytes(),
                "asked": b"",
                "advertisements": self.advertisements(),
            }
        )
        return self._say("train.mask", content)

    def _round(self, content: RecordDict) -> RecordDict:
        content["request"] = ConfigRecord(
            {"contract_digest": digest(self.agreed), "round": 1, "contract": ""}
        )
        (reply,) = self._grid.send_and_receive([Message(content, 1, "train")])
        return reply.content

    def released(self, answer: RecordDict) -> NDArray[np.float64]:
        """The noised sum in an answer, by all keys that anyone has: the masks are no help here."""
        if self.agreed.masking is None:
            (delta,) = (from_npy(array.data) for array in answer.array_records["update"].values())
            return -delta.reshape(-1).astype(np.float64) / self.agreed.local_learning_rate
        update = update_in(answer)
        adverts = self.advertisements()
        seen = Participants.verified(ROSTER, RUN, [Advertisement.from_bytes(a) for a in adverts])
        round_digest = seen.digest(self.request())
        pairs = PairKeys(seen, NAMES[0], self.run_key())
        boxes = cut(update.sealed, SEALED_BYTES, len(NAMES), "shares")
        shares = [
            open_share(pairs.share_key(NAMES[0], holder, round_digest), box, round_digest)
            for holder, box in zip(NAMES, boxes, strict=True)
        ]
        vector = np.frombuffer(update.vector, "<u4").copy()
        seed = Recombiner(range(len(NAMES)))(shares)
        assert seed is not None
        add_mask(vector, seed, negative=True)
        for other in NAMES[1:]:
            add_mask(vector, pairs.mask_seed(other, round_digest), negative=NAMES[0] < other)
        return self.agreed.masking.encoding(CLIP).decode(vector)


def update_in(answer: RecordDict) -> MaskedUpdate:
    message = answer.config_records["masking"]["message"]
    assert isinstance(message, bytes)
    return MaskedUpdate.from_bytes(message)


def asked_twice(
    tmp_path: Path, agreed: Contract, second: Callable[[], Persons]
) -> tuple[NDArray[np.float64], NDArray[np.float64], Asked]:
    """Return the release, and that of a copy that was taken when the round had only its key."""
    copy = tmp_path / "copy"

    def copying() -> Persons:
        assert list((tmp_path / "site").glob("round-*.key"))
        shutil.copytree(tmp_path / "site", copy)
        return everybody()

    first = Asked(tmp_path / "site", agreed, copying)
    first.prepare(public_inputs())
    one = first.released(first.round())
    again = Asked(copy, agreed, second)
    return one, again.released(again.round()), again


@CONTRACTS
def test_a_person_removed_before_the_second_answer_is_hidden_by_fresh_noise(
    tmp_path: Path, agreed: Contract
) -> None:
    one, two, _ = asked_twice(tmp_path, agreed, lambda: everybody(without=2))
    scale = agreed.privacy.noise_multiplier * CLIP
    if agreed.masking is not None:
        scale = agreed.masking.sigma * agreed.masking.encoding(CLIP).scale
    # Two independent noises of this scale: in 24 coordinates, far from a person's C.
    expected = scale * np.sqrt(2 * len(one))
    assert 0.5 * expected < np.linalg.norm(one - two) < 2.0 * expected
    assert expected > 10 * CLIP


@CONTRACTS
def test_the_same_data_give_the_same_bytes_after_a_crash(tmp_path: Path, agreed: Contract) -> None:
    one, two, _ = asked_twice(tmp_path, agreed, everybody)
    assert np.array_equal(one, two)


@CONTRACTS
def test_another_public_bank_in_the_same_round_is_refused(tmp_path: Path, agreed: Contract) -> None:
    """A bank that makes every gradient a NaN would bare the sum of all persons."""
    copy = tmp_path / "copy"

    def copying() -> Persons:
        shutil.copytree(tmp_path / "site", copy, ignore=shutil.ignore_patterns("public"))
        return everybody()

    first = Asked(tmp_path / "site", agreed, copying)
    first.prepare(public_inputs())
    assert "refusal" not in first.round().config_records["header"]
    again = Asked(copy, agreed)
    assert "refusal" not in again.prepare(torch.full((8, 6), torch.nan)).config_records["header"]
    assert again.round().config_records["header"]["refusal"] == "contract"


def test_the_state_of_the_model_and_the_bank_have_a_digest() -> None:
    part = PublicPart(LOCAL, {"mean": torch.zeros(3)}, torch.zeros(2, 3))
    others = [
        dataclasses.replace(part, inputs=torch.zeros(3, 2)),
        dataclasses.replace(part, inputs=torch.full((2, 3), torch.nan)),
        dataclasses.replace(part, state={"mean": torch.ones(3)}),
        dataclasses.replace(part, state={"other": torch.zeros(3)}),
        dataclasses.replace(part, state={"mean": torch.zeros(3, dtype=torch.float64)}),
    ]
    assert len({part.id, *(other.id for other in others)}) == 1 + len(others)
    assert dataclasses.replace(part).id == part.id


def test_poisson_coins_do_not_come_back_with_other_data(tmp_path: Path) -> None:
    """With a huge clip's worth of images each, who was drawn shows through no common coins."""
    rate = dataclasses.replace(
        LOCAL, privacy=dataclasses.replace(LOCAL.privacy, sample_rate=0.5, epsilon=2.0)
    )
    drawn: list[tuple[int, ...]] = []

    class Watched(Persons):
        def batch(self, persons: NDArray[np.intp], *rest: object):  # type: ignore[no-untyped-def]
            drawn.append(tuple(persons.tolist()))
            return super().batch(persons, *rest)  # type: ignore[arg-type]

    def many(shift: float) -> Persons:
        torch.manual_seed(1)
        rows = torch.randn(64, 6)
        rows[-1] += shift
        made = Persons.group(rows, list(range(64)), [0] * 64)
        return Watched(made.inputs, made.offsets, made.codes)

    copy = tmp_path / "copy"

    def copying() -> Persons:
        shutil.copytree(tmp_path / "site", copy)
        return many(0.0)

    first = Asked(tmp_path / "site", rate, copying)
    first.prepare(public_inputs())
    first.round()
    shutil.copytree(copy, tmp_path / "second")
    for state, shift in ((copy, 0.0), (tmp_path / "second", 1.0)):
        Asked(state, rate, lambda shift=shift: many(shift)).round()  # type: ignore[misc]
    same, again, other = drawn
    assert same == again
    assert same != other


def test_a_holder_opens_one_set_of_shares_a_round(tmp_path: Path) -> None:
    """Both own masks of a dealer who was put back, and its vectors differ by its noise alone."""
    federation = Federation(tmp_path, NAMES, masked().masking.terms)  # type: ignore[union-attr]
    updates = {name: MaskedUpdate.from_bytes(federation.update(name)) for name in NAMES}
    shutil.rmtree(tmp_path / NAMES[0])
    other = share_of(vector_of(NAMES[0]) + np.uint32(1))
    second = federation.site(NAMES[0]).mask(federation.request, other, key(f"round {NAMES[0]}"))
    difference = np.frombuffer(second.vector, "<u4") - np.frombuffer(
        updates[NAMES[0]].vector, "<u4"
    )
    assert not np.array_equal(difference, np.ones_like(difference)), "its own mask came back"

    def boxes(first: MaskedUpdate) -> UnmaskRequest:
        dealt = [first, *(updates[name] for name in NAMES[1:])]
        sealed = [cut(one.sealed, SEALED_BYTES, len(NAMES), "shares")[1] for one in dealt]
        return UnmaskRequest(second.round_digest, NAMES, (), b"", b"".join(sealed))

    asked, changed = boxes(updates[NAMES[0]]), boxes(second)
    answer = federation.shares(NAMES[1], asked)
    assert federation.shares(NAMES[1], asked) == answer, "a retry gives the same bytes"
    with pytest.raises(Refused, match="opened before"):
        federation.shares(NAMES[1], changed)
    with pytest.raises(Refused):
        federation.confirmation(NAMES[1], SurvivorsRequest(second.round_digest, NAMES[:2]))


def lose(state: Path, *names: str) -> None:
    for name in names:
        (state / name).unlink()


LEDGER = (Ledger.FILE_NAME, "ledger.head")


def test_a_lost_ledger_is_never_begun_anew(tmp_path: Path) -> None:
    train(Site.open(tmp_path, PLAN), 1)
    lose(tmp_path, *LEDGER)
    with pytest.raises(LedgerError, match=r"is gone, but release-1\.f32 is there"):
        Site.open(tmp_path, PLAN)
    with pytest.raises(LedgerError):
        Outbox(tmp_path).settle(PLAN)
    assert not (tmp_path / Ledger.FILE_NAME).exists()


def test_a_ledger_that_was_lost_between_key_and_release_is_not_begun_anew(tmp_path: Path) -> None:
    def killed() -> Prepared:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Site.open(tmp_path, PLAN).train(killed, CONTRACT, 1, torch.from_numpy(start()), BANK)
    lose(tmp_path, *LEDGER)
    with pytest.raises(LedgerError, match=r"round-1\.key"):
        Site.open(tmp_path, PLAN)


def test_a_site_that_joined_before_has_a_ledger(tmp_path: Path) -> None:
    NodeState(5, "2026-11-30T12:00:00Z").keep(tmp_path)
    with pytest.raises(LedgerError, match=r"node\.json"):
        Site.open(tmp_path, PLAN)


def test_an_older_ledger_beside_newer_releases_is_refused_at_start_and_at_work(
    tmp_path: Path,
) -> None:
    site = Site.open(tmp_path, PLAN)
    train(site, 1)
    older = {name: (tmp_path / name).read_bytes() for name in LEDGER}
    train(site, 2)
    for name, data in older.items():
        (tmp_path / name).write_bytes(data)
    assert verify(tmp_path).ok, "the old ledger holds by itself"
    with pytest.raises(LedgerError, match="cut or replaced"):
        train(site, 3)
    with pytest.raises(LedgerError, match="cut or replaced"):
        Site.open(tmp_path, PLAN)
    assert len(verify(tmp_path).reservations) == 1
