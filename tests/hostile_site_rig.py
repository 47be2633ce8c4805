"""A site on the roster that answers every round in another bad way, through the real front."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity

from client.link import ServerLink
from common.bundle import Bundle
from common.config import digest, from_json
from common.contract import Contract
from common.errors import VeilfaceError
from common.npy import from_npy, to_npy
from common.update import FORMAT, model_id_of
from tests.closed_rig import PASSPHRASE, Federated


class HostileSite:
    """Site b: it has its key, says that it is ready, and answers each round in another bad way."""

    def __init__(self, fed: Federated, stop: threading.Event) -> None:
        self._fed, self._stop = fed, stop
        self._bundle = Bundle.read(fed.bundle("b")).unlocked(PASSPHRASE)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._node = 0
        self.played: list[int] = []

    def _beat(self) -> None:
        with ServerLink(self._bundle) as link:
            while not self._stop.wait(2.0):
                link.resume(self._node)
                with suppress(VeilfaceError):
                    link.heartbeat()

    def run(self) -> None:
        """Take part until it is told to stop; it lives, whatever it does."""
        threading.Thread(target=self._beat, daemon=True).start()
        while not self._stop.is_set():
            try:
                with ServerLink(self._bundle) as link:
                    node = link.join(None)
                    TaskIdentity.run_id = TaskIdentity.task_id = 1
                    TaskIdentity.node_id = node
                    self._node = node
                    self._serve(link)
            except VeilfaceError:
                self._stop.wait(0.5)

    def _serve(self, link: ServerLink) -> None:
        while not self._stop.is_set():
            delivery = link.pull()
            if delivery is None:
                self._stop.wait(0.1)
                continue
            message = link.fetch(delivery)
            if message.metadata.message_type == "query.prepare":
                link.answer(self._ready(message))
            else:
                self._attack(link, message)

    def _ready(self, message: Message) -> Message:
        text = message.content.config_records["request"]["contract"]
        name = digest(from_json(Contract, str(text)))
        state = message.content.array_records["state"]
        self._shapes = {key: from_npy(value.data).shape for key, value in state.items()}
        ready = ConfigRecord({"format": FORMAT, "ready": name})
        return Message(RecordDict({"header": ready}), reply_to=message)

    def _update(self, message: Message, round_: int, value: float) -> RecordDict:
        sent = from_npy(message.content.array_records["parameters"]["vector"].data)
        run = self._fed.folder.run("one").name
        header: dict[str, Any] = {"format": FORMAT, "run_id": run, "round": round_}
        header["model_id"] = model_id_of(run, sent.astype(np.float32))
        names = [name for name in self._shapes if "adapter" in name]
        arrays = {name: np.full(self._shapes[name], value, np.float32) for name in names}
        return RecordDict(
            {
                "header": ConfigRecord(header),
                "update": ArrayRecord({n: Array(*to_npy(a)) for n, a in arrays.items()}),
            }
        )

    def _attack(self, link: ServerLink, message: Message) -> None:
        round_ = int(str(message.content.config_records["request"]["round"]))
        self.played.append(round_)
        reply = Message(self._update(message, round_, float("nan")), reply_to=message)
        if round_ == 1:
            self._as_another(link, message)
        elif round_ == 2:
            link.answer(reply)  # NaN
        elif round_ == 3:
            big = {f"a{n}": Array(*to_npy(np.zeros(1 << 20, np.float32))) for n in range(4)}
            self._push(link, Message(RecordDict({"a": ArrayRecord(big)}), reply_to=message))
        elif round_ == 4:
            names = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(9000)]
            leaves = [ObjectTree(object_id=name) for name in names]
            tree = ObjectTree(object_id=reply.object_id, children=leaves)
            with pytest.raises(httpx.HTTPStatusError, match="413"):
                self._announce(link, reply, tree)
            link.answer(Message(RecordDict({}), reply_to=message))
        elif round_ == 5:
            self._announce(link, reply, get_object_tree(reply))
        elif round_ == 6:
            self._push(link, reply, tree=ObjectTree(object_id=reply.object_id))
        elif round_ == 7:
            link.answer(
                Message(
                    Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "\n\x1b[2J" * 20_000),
                    reply_to=message,
                )
            )
        else:
            link.answer(Message(self._update(message, 1, 0.0), reply_to=message))

    def _as_another(self, link: ServerLink, message: Message) -> None:
        """Sign the envelope as b, and the letter in it as a."""
        contacts = self._fed.folder.contacts()
        assert contacts is not None
        victim = next(site.node for site in contacts.sites if site.site == "a")
        own = TaskIdentity.node_id
        forged = Message(self._update(message, 1, 1e6), reply_to=message)
        forged.metadata.__dict__["_src_node_id"] = victim
        assert forged.metadata.src_node_id == victim != own
        head = message_to_proto(remove_content_from_message(forged))
        head.metadata.src_node_id = own
        self._push(link, forged, head=head)

    def _push(
        self,
        link: ServerLink,
        reply: Message,
        head: ProtoMessage | None = None,
        tree: ObjectTree | None = None,
    ) -> None:
        """Send a message, under another head or without what another tree does not name."""
        tree = tree or get_object_tree(reply)
        session = self._announce(link, reply, tree, head)
        named = {one.object_id for one in iterate_object_tree(tree)}
        for name, one in get_all_nested_objects(reply).items():
            if name in named:
                link._client.PushObject(
                    PushObjectRequest(
                        node=link._node,
                        run_id=reply.metadata.run_id,
                        object_id=name,
                        object_content=one.deflate(),
                        session_id=session,
                    )
                )

    def _announce(
        self,
        link: ServerLink,
        reply: Message,
        tree: ObjectTree,
        head: ProtoMessage | None = None,
    ) -> str:
        announced = head or message_to_proto(remove_content_from_message(reply))
        announced.metadata.message_id = tree.object_id
        asked = PushMessagesRequest(
            node=link._node, messages_list=[announced], message_object_trees=[tree]
        )
        return str(link._client.PushMessages(asked).session_id)
