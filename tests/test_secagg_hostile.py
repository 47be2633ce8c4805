"""What a hostile server asks of a site in a masked round, and what a hostile site answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client.app import make_app
from common.config import digest, to_json
from common.contract import Contract
from common.errors import Refused
from common.ledger import verify
from common.masking import MaskedUpdate, RoundRequest
from common.npy import to_npy
from common.roster import Roster
from common.update import model_id_of
from simulations.inprocess import InProcessGrid
from tests.masking_rig import names_of, roster
from tests.secagg_rig import OPERATOR, RUN, Rig, check_sums, contract, public_inputs, start

NAMES = names_of(4)


@dataclass
class Server:
    """A server that says what it likes to the first site."""

    rig: Rig

    def __post_init__(self) -> None:
        self.grid = InProcessGrid(make_app(self.rig.open_site()), self.rig.count)
        self.advertisements: list[bytes] = []

    def say(self, kind: str, content: RecordDict, node: int = 1) -> RecordDict:
        (reply,) = self.grid.send_and_receive([Message(content, node, kind)])
        return reply.content

    def prepare(self, node: int = 1, document: bytes = b"") -> RecordDict:
        inputs = ArrayRecord({"inputs": Array(*to_npy(public_inputs().numpy()))})
        content = RecordDict(
            {
                "request": ConfigRecord({"contract": to_json(self.rig.agreed)}),
                "state": ArrayRecord({}),
                "public": inputs,
                "masking": ConfigRecord({"roster": document or self.rig.document}),
            }
        )
        return self.say("query.prepare", content, node)

    def prepare_all(self) -> None:
        for node in range(1, self.rig.count + 1):
            answer = self.prepare(node).config_records["masking"]["message"]
            assert isinstance(answer, bytes)
            self.advertisements.append(answer)

    def request(self, **changes: object) -> RoundRequest:
        masking = self.rig.agreed.masking
        assert masking is not None
        asked = RoundRequest(
            federation="fed",
            run_id=RUN,
            round=1,
            contract_id=digest(self.rig.agreed),
            model_id=model_id_of(RUN, start()),
            dimension=masking.dimension,
            minimum=masking.minimum,
            colluders=masking.colluders,
            sites=NAMES,
        )
        return dataclasses.replace(asked, **changes)  # type: ignore[arg-type]

    def mask(self, request: RoundRequest, **changes: object) -> RecordDict:
        masking: dict[str, object] = {
            "request": request.to_bytes(),
            "asked": b"",
            "advertisements": self.advertisements,
            **changes,
        }
        content = RecordDict(
            {
                "request": ConfigRecord({"contract_digest": digest(self.rig.agreed)}),
                "masking": ConfigRecord(masking),  # type: ignore[arg-type]
                "parameters": ArrayRecord({"vector": Array(*to_npy(start()))}),
            }
        )
        return self.say("train.mask", content)


def refusal(content: RecordDict) -> object:
    assert set(content) == {"header"}
    return content.config_records["header"]["refusal"]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(Rig(tmp_path, 4, contract(3)))
    server.prepare_all()
    return server


def update_of(content: RecordDict) -> MaskedUpdate:
    message = content.config_records["masking"]["message"]
    assert isinstance(message, bytes)
    return MaskedUpdate.from_bytes(message)


def test_a_round_is_masked_once_whatever_is_asked_afterwards(server: Server) -> None:
    first = update_of(server.mask(server.request()))
    assert update_of(server.mask(server.request())) == first, "the same question, the same bytes"
    for other in (
        server.request(sites=NAMES[:3]),
        server.request(sites=(NAMES[0], *NAMES[2:])),
    ):
        assert refusal(server.mask(other)) == "contract"
    report = verify(server.rig.folder / NAMES[0])
    assert len(report.reservations) == len(report.commits) == 1


def test_a_round_that_is_not_as_agreed_is_refused_and_spends_nothing(server: Server) -> None:
    cases: list[tuple[str, RoundRequest]] = [
        ("fewer survivors", server.request(minimum=2)),
        ("other colluders", server.request(minimum=4, colluders=1)),
        ("another federation", server.request(federation="other")),
        ("another run", server.request(run_id="other")),
        ("another contract", server.request(contract_id="0" * 64)),
        ("another model", server.request(model_id="0" * 64)),
        ("another dimension", server.request(dimension=5)),
        ("without this site", server.request(sites=NAMES[1:])),
        ("a stranger", server.request(sites=(*NAMES, "zz"))),
        ("no such round", server.request(round=3)),
        ("round zero", server.request(round=0)),
    ]
    for what, asked in cases:
        assert refusal(server.mask(asked)) == "contract", what
    keys = server.advertisements
    swapped = [keys[0], keys[1], keys[2], keys[3].replace(b"s003", b"s002")]
    for what, advertised in (
        ("a key that its owner did not sign", swapped),
        ("a key twice", [*keys, keys[1]]),
        ("no keys", [b""]),
    ):
        assert refusal(server.mask(server.request(), advertisements=advertised)) == "contract", what
    assert verify(server.rig.folder / NAMES[0]).reservations == ()


def test_no_bare_update_leaves_in_a_run_with_secure_aggregation(server: Server) -> None:
    content = RecordDict(
        {
            "request": ConfigRecord({"contract_digest": digest(server.rig.agreed), "round": 1}),
            "parameters": ArrayRecord({"vector": Array(*to_npy(start()))}),
        }
    )
    assert refusal(server.say("train", content)) == "contract"
    assert verify(server.rig.folder / NAMES[0]).reservations == ()


def test_an_older_or_forked_roster_is_refused_and_a_newer_one_is_taken(tmp_path: Path) -> None:
    server = Server(Rig(tmp_path, 4, contract(3)))
    first = roster(NAMES)
    newer = dataclasses.replace(first, serial=3, issued="2026-11-25T12:00:00Z")
    forked = dataclasses.replace(newer, issued="2026-11-25T12:00:01Z")
    gone = dataclasses.replace(newer, serial=4, sites=first.sites[1:], revoked=first.sites[:1])

    def prepared(book: Roster) -> bool:
        return "masking" in server.prepare(document=book.signed(OPERATOR))

    assert prepared(first)
    assert prepared(newer)
    assert not prepared(first), "older"
    assert not prepared(forked)
    assert prepared(newer)
    assert "masking" not in server.prepare(document=newer.signed(OPERATOR) + b" ")
    assert not prepared(gone), "this site was revoked"


def test_the_key_of_a_run_goes_when_it_ends_or_another_run_begins(server: Server) -> None:
    site = server.rig.folder / NAMES[0]
    assert len(list(site.glob("masking/*/run.key"))) == 1
    first = server.rig.agreed
    server.rig.agreed = dataclasses.replace(first, run_id="second")
    server.prepare()
    (left,) = site.glob("masking/*/run.key")
    assert left.stat().st_mode & 0o777 == 0o600
    name = digest(server.rig.agreed)
    ended = server.say(
        "query.end", RecordDict({"request": ConfigRecord({"contract_digest": name})})
    )
    assert dict(ended.config_records["header"]) == {"format": 1, "ended": name}
    assert not list(site.glob("masking/*"))
    server.rig.agreed = first
    assert refusal(server.mask(server.request())) == "unprepared"


Tamper = Callable[[Message], None]


def spoil(message: Message) -> None:
    record = message.content.config_records["masking"]
    raw = bytearray(record["message"])  # type: ignore[arg-type]
    raw[len(raw) // 2] ^= 1
    record["message"] = bytes(raw)


def swell(message: Message) -> None:
    message.content.config_records["masking"]["message"] = bytes(1 << 20)


def chatter(message: Message) -> None:
    message.content.config_records["masking"]["count"] = 17


def another_stage(message: Message) -> None:
    message.content.config_records["header"]["stage"] = "query.prepare"


def more(message: Message) -> None:
    message.content["metrics"] = ConfigRecord({"loss": 0.5})


@pytest.mark.parametrize("tamper", [spoil, swell, chatter, another_stage, more])
@pytest.mark.parametrize("kind", ["train.mask", "query.unmask"])
def test_a_malformed_answer_counts_as_missing_and_its_site_is_named(
    tmp_path: Path, kind: str, tamper: Tamper
) -> None:
    rig = Rig(tmp_path, 4, contract(3, rounds=1))

    def hostile(reply: Message) -> None:
        if reply.metadata.message_type == kind and reply.metadata.src_node_id == 2:
            tamper(reply)

    rig.on_reply = hostile
    done = rig.run()
    assert check_sums(done, rig) == (3 if kind == "train.mask" else 4,)
    assert [node for node, _ in done.history[0].rejected] == [2]
    assert (2 in done.history[0].used) == (kind == "query.unmask"), "its update was in the sum"


def test_a_site_that_refuses_leaves_a_named_reason(tmp_path: Path) -> None:
    def no(agreed: Contract) -> None:
        raise Refused("the policy allows no run of trust 'secagg'")

    with pytest.raises(Refused, match="refused: contract"):
        Rig(tmp_path, 4, contract(3), consent=no).run()


def test_more_sites_than_can_be_covered_take_turns(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 6, contract(3, rounds=2))  # five at most, so that fewer than half miss
    done = rig.run()
    assert check_sums(done, rig) == (5, 5)
    assert len({record.asked for record in done.history}) == 2
    assert np.isfinite(done.state.parameters).all()
