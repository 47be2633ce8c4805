"""A server with the right keys and bad intent, against a real node: nothing runs, nothing leaks."""

from __future__ import annotations

import dataclasses
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree as Tree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from client.app import make_app
from client.consent import SitePolicy
from client.folder import open_folder
from client.folder_config import FolderConfig
from client.link import ServerLink, Unreachable
from client.node import Node
from common.app_bundle import app_hash
from common.bundle import Bundle
from common.config import digest, to_json
from common.contract import Contract
from common.errors import Refused
from common.ledger import verify
from common.npy import from_npy, to_npy
from server.provisioning.federation import create as create_federation
from server.provisioning.request import Endpoint, Settings
from server.rounds import Federation
from simulations.experiment import Experiment
from simulations.federation import build
from simulations.material import gather
from tests.hostile_server_rig import NODE, HostileServer, Spoilt, empty
from tests.process_rig import until
from tests.provisioning_rig import DAY, OPEN, archive


@dataclass(frozen=True)
class Attack:
    """A hostile server, the real site it has before it, and what it may rightly ask."""

    server: HostileServer
    thread: threading.Thread
    state: Path
    federation: Federation

    def prepare(self, contract: Contract) -> Message:
        made = self.federation
        state = {name: Array(*to_npy(value.numpy())) for name, value in made.state.items()}
        public = {"inputs": Array(*to_npy(made.public_inputs.numpy()))}
        return self.server.ask(
            RecordDict(
                {
                    "request": ConfigRecord({"contract": to_json(contract)}),
                    "state": ArrayRecord(state),
                    "public": ArrayRecord(public),
                }
            ),
            "query.prepare",
        )

    def train(self, contract: Contract, round_: int, shift: float = 0.0) -> Message:
        vector = self.federation.initial + np.float32(shift)
        return self.server.ask(
            RecordDict(
                {
                    "request": ConfigRecord({"contract_digest": digest(contract), "round": round_}),
                    "parameters": ArrayRecord({"vector": Array(*to_npy(vector))}),
                }
            ),
            "train",
        )

    def spent(self) -> list[tuple[str, int]]:
        report = verify(self.state)
        assert report.ok
        return [(one.run_id, one.round) for one in report.reservations]


def refusal(reply: Message) -> object:
    return reply.content.config_records["header"].get("refusal")


def delta(reply: Message) -> bytes:
    record = reply.content.array_records["update"]
    return b"".join(from_npy(record[name].data).tobytes() for name in sorted(record))


@pytest.fixture
def attack(people_folder: Path, experiment: Experiment, tmp_path: Path) -> Iterator[Attack]:
    fed = tmp_path / "fed"
    create_federation(
        fed, Settings("fed", Endpoint("127.0.0.1", 1)), ("a",), OPEN, now=datetime.now(UTC)
    )
    made = build(experiment, "r", tmp_path / "unused", gather(experiment)).federation
    policy = SitePolicy(("lenet",), 4.0, 1e-4, 4.0, 3, ("local",), 0, 0, (app_hash(),))
    state, stop, server = tmp_path / "state", threading.Event(), HostileServer()
    opened = open_folder(
        FolderConfig(people_folder, state, aligned=True, odometer=tmp_path / "odometer"), policy
    )
    with server.up(Bundle.read(archive(fed, "server")), tmp_path / "server"):
        link = partial(ServerLink, Bundle.read(archive(fed, "a")), server.address)
        node = Node(link, make_app(lambda context: opened), lambda: policy, state, stop)
        thread = threading.Thread(target=node.run)
        thread.start()
        yield Attack(server, thread, state, made)
        stop.set()
        thread.join(30)


def test_a_run_with_foreign_code_is_neither_fetched_nor_taken_part_in(attack: Attack) -> None:
    for foreign in ("0" * 64, "", app_hash().upper(), app_hash() + " "):
        attack.server.fab_hash = foreign
        reply = attack.server.ask(empty(), "train")
        assert reply.has_error() and reply.error.code == ErrorCode.INVALID_FAB
        assert "pull-object" not in attack.server.calls, "not even the message is read"
    assert "get-fab" not in attack.server.calls
    assert attack.spent() == []
    attack.server.fab_hash = app_hash()
    assert refusal(attack.prepare(attack.federation.contract)) is None


def test_a_contract_beyond_the_policy_is_refused_clause_by_clause(attack: Attack) -> None:
    fair = attack.federation.contract
    little = dataclasses.replace(fair.privacy, noise_multiplier=fair.privacy.noise_multiplier / 2)
    for asked in (
        dataclasses.replace(fair, backbone="dlib-resnet"),
        dataclasses.replace(fair, rounds=4),
        dataclasses.replace(fair, privacy=little),
        dataclasses.replace(fair, privacy=dataclasses.replace(fair.privacy, delta=1e-3)),
        dataclasses.replace(fair, local_steps=2),
    ):
        assert refusal(attack.prepare(asked)) == "contract"
        assert refusal(attack.train(asked, 1)) == "unprepared"
    assert refusal(attack.train(fair, 1)) == "unprepared"
    assert attack.spent() == []


def test_however_a_server_asks_a_site_releases_once_a_round_and_within_its_budget(
    attack: Attack,
) -> None:
    fair = attack.federation.contract
    assert refusal(attack.prepare(fair)) is None
    first = delta(attack.train(fair, 1))
    assert delta(attack.train(fair, 1)) == first, "asked again: the same bytes"
    second = delta(attack.train(fair, 2))
    assert first != second
    assert refusal(attack.train(fair, 1)) == "contract", "older rounds are gone"
    for round_ in (1, 2):
        assert refusal(attack.train(fair, round_, shift=0.1)) is not None, "for another model"
    changed = dataclasses.replace(fair, local_learning_rate=2.0 * fair.local_learning_rate)
    assert refusal(attack.prepare(changed)) is None
    assert refusal(attack.train(changed, 1)) is not None, "the contract changed mid-run"
    for round_ in (0, -1, 4, 10**9):
        assert refusal(attack.train(fair, round_)) is not None
    renamed = dataclasses.replace(fair, run_id="r2")
    assert refusal(attack.prepare(renamed)) == "budget", "another name brings no other budget"
    others = [refusal(attack.train(renamed, round_)) for round_ in (1, 2, 3)]
    assert others == ["unprepared"] * 3
    released = attack.spent()
    assert len(set(released)) == len(released) and released[:2] == [("r", 1), ("r", 2)]


def _deep(message: Message) -> Spoilt:
    top = tree = Tree(object_id=message.object_id)
    for _ in range(60):
        tree = tree.children.add(object_id=message.object_id)
    return top, {message.object_id: message.deflate()}


def _wide(message: Message) -> Spoilt:
    same = [Tree(object_id=message.object_id) for _ in range(500)]
    return Tree(object_id=message.object_id, children=same), {message.object_id: message.deflate()}


def _hollow(message: Message) -> Spoilt:
    return get_object_tree(message), {message.object_id: b"", message.content.object_id: b""}


def _garbled(message: Message) -> Spoilt:
    found = {message.object_id: b"\xff" * 999, message.content.object_id: b"RecordDict  0\0"}
    return get_object_tree(message), found


def _looped(message: Message) -> Spoilt:
    """Every object is its own child: content whose ids do not match it."""
    loop = f"Message {message.object_id} 0".encode() + b"\0"
    return Tree(object_id=message.object_id), {message.object_id: loop}


def _headless(message: Message) -> Spoilt:
    return get_object_tree(message.content), {
        name: one.deflate() for name, one in get_all_nested_objects(message.content).items()
    }


def test_messages_that_make_no_sense_cost_a_site_nothing(attack: Attack) -> None:
    server, fair = attack.server, attack.federation.contract
    longest = f"train.{'x' * 3000}"
    for kind in ("evaluate", "query", "train.other", "query.prepare2", "system", longest):
        assert server.ask(empty(), kind).has_error()
    for spoil in (_deep, _wide, _hollow, _garbled, _looped, _headless):
        assert server.ask(empty(), "train", spoil).has_error(), spoil
    # An object that is not there: the line is opened anew, as after a server that was killed.
    missing = Tree(object_id="../../etc/passwd")
    server.queue(server.message(empty(), "train"), lambda message: (missing, {}))
    assert attack.spent() == []
    assert refusal(attack.prepare(fair)) is None
    assert attack.thread.is_alive()


def test_a_thousand_messages_for_another_site_are_left(attack: Attack) -> None:
    server = attack.server
    for _ in range(1000):
        server.queue(server.message(empty(), "train", node=NODE + 1))
    server.queue(server.message(empty(), "train", node=NODE + 1), announced_to=NODE)
    server.queue(server.message(empty(), "train.last"))
    until(lambda: len(server.replies) >= 2, "the last two are answered")
    assert [(one.metadata.src_node_id, one.has_error()) for one in server.replies] == 2 * [
        (NODE, True)
    ]
    assert server.calls.count("pull-object") == 3 + 3, "of the last two alone"
    assert attack.spent() == []


def _answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes, times: int = 1) -> Any:
    async def instead(scope: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for _ in range(times):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if times > 1:
            await send({"type": "http.response.body", "body": b""})

    return instead


def test_an_answer_that_leads_elsewhere_or_has_no_end_is_not_followed(
    tmp_path: Path,
) -> None:
    settings = Settings("fed", Endpoint("127.0.0.1", 1))
    create_federation(tmp_path / "fed", settings, ("a",), OPEN, now=datetime.now(UTC))
    bundle = Bundle.read(archive(tmp_path / "fed", "a"))
    own = Bundle.read(archive(tmp_path / "fed", "server"))
    server, elsewhere = HostileServer(), HostileServer()
    piece = bytes(1 << 20)
    bomb = gzip.compress(bytes(64 << 20))
    with server.up(own, tmp_path / "server"), elsewhere.up(own, tmp_path / "elsewhere"):
        where = f"https://{elsewhere.address}/v1/fleet/pull-messages".encode()
        endless = _answer(200, [], piece, 512)
        for instead in (
            _answer(307, [(b"location", where), (b"content-length", b"0")], b""),
            _answer(308, [(b"location", where), (b"content-length", b"0")], b""),
            endless,
            _answer(200, [(b"content-length", str(1 << 40).encode())], piece),
            _answer(200, [(b"content-encoding", b"gzip"),
                          (b"content-length", str(len(bomb)).encode())], bomb),
        ):  # fmt: skip
            server.instead["pull-messages"] = instead
            with ServerLink(bundle, server.address) as link:
                link.resume(NODE)
                with pytest.raises(Refused, match="not one of a SuperLink"):
                    link.pull()
        assert elsewhere.calls == []
        for body in (b"\xff" * 100, b"\n\xff\xff\xff\xff\x0f"):
            server.instead["pull-messages"] = body
            with ServerLink(bundle, server.address) as link, pytest.raises(Unreachable):
                link.pull()
        told = b'{"code": 1, "detail": "' + b"\\n\\u001b[2J" * 99 + b'"}'
        length = [(b"content-length", str(len(told)).encode())]
        server.instead["pull-messages"] = _answer(403, length, told)
        with ServerLink(bundle, server.address) as link, pytest.raises(Refused) as error:
            link.pull()
        said = str(error.value)
        assert said.isprintable() and len(said) < 1000, "what a server says is no terminal command"


@pytest.mark.parametrize("made", ["expired", "of another federation"])
def test_a_site_says_nothing_to_a_server_whose_certificate_does_not_hold(
    tmp_path: Path, made: str
) -> None:
    now, settings = datetime.now(UTC), Settings("fed", Endpoint("127.0.0.1", 1))
    create_federation(tmp_path / "own", settings, ("a",), OPEN, now=now)
    other = now - 400 * DAY if made == "expired" else now
    create_federation(tmp_path / "other", settings, ("a",), OPEN, now=other)
    server = HostileServer()
    site = tmp_path / ("other" if made == "expired" else "own")
    with server.up(Bundle.read(archive(tmp_path / "other", "server")), tmp_path / "server"):
        link = ServerLink(Bundle.read(archive(site, "a")), server.address)
        with link, pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            link.join(None)
    assert server.calls == []
