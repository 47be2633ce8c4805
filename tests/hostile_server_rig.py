"""A server with all the right keys that answers a site's calls as an attacker likes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common.app_bundle import app_hash
from common.bundle import SERVER_CERTIFICATE, SERVER_KEY, Bundle
from common.storage import make_private_directory, write_private
from tests.process_rig import QUICK, until
from tests.serving_rig import served

NODE: Final = 77
RUN: Final = 5
Spoilt = tuple[message_pb2.ObjectTree, dict[str, bytes]]
Answer = bytes | Callable[[Any, Any], Any]


@dataclass
class HostileServer:
    """Speaks Flower's Fleet API; `instead` replaces the answer to a call, `calls` is what came."""

    fab_hash: str = field(default_factory=app_hash)
    instead: dict[str, Answer] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    port: int = 0
    waiting: list[tuple[message_pb2.Message, message_pb2.ObjectTree]] = field(default_factory=list)
    _objects: dict[str, bytes] = field(default_factory=dict)
    _announced: list[message_pb2.ObjectTree] = field(default_factory=list)
    _came: dict[str, bytes] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def message(self, content: RecordDict, kind: str, node: int = NODE) -> Message:
        metadata = Metadata(RUN, "", 1, node, "", "1", time.time(), 3600.0, kind)
        message = make_message(metadata, content=content)
        message.metadata.__dict__["_message_id"] = message.object_id
        return message

    def queue(
        self,
        message: Message,
        spoil: Callable[[Message], Spoilt] | None = None,
        announced_to: int | None = None,
    ) -> None:
        """Offer a message, perhaps as one to another node than it says itself.

        `spoil` says what tree and objects it has instead of its own.
        """
        own = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
        tree, objects = (get_object_tree(message), own) if spoil is None else spoil(message)
        self._objects.update(objects)
        head = message_to_proto(remove_content_from_message(message))
        head.metadata.dst_node_id = announced_to or message.metadata.dst_node_id
        self.waiting.append((head, tree))

    def ask(
        self, content: RecordDict, kind: str, spoil: Callable[[Message], Spoilt] | None = None
    ) -> Message:
        """Offer a message and return the site's answer."""
        had = len(self.replies)
        self.queue(self.message(content, kind), spoil)
        until(lambda: len(self.replies) > had, "the site answers", every=QUICK)
        return self.replies[had]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            came = await receive()
            more = came.get("more_body", False)
            body += came.get("body", b"")
        call = scope["path"].rpartition("/")[2]
        self.calls.append(call)
        instead = self.instead.get(call)
        if callable(instead):
            await instead(scope, send)
            return
        answer = getattr(self, f"_{call.replace('-', '_')}")(body) if instead is None else instead
        length = str(len(answer)).encode()
        head = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", length)],
        }
        await send(head)
        await send({"type": "http.response.body", "body": answer})

    def _activate_node(self, body: bytes) -> bytes:
        return _bytes(fleet_pb2.ActivateNodeResponse(node_id=NODE))

    def _deactivate_node(self, body: bytes) -> bytes:
        return b""

    def _send_node_heartbeat(self, body: bytes) -> bytes:
        return _bytes(heartbeat_pb2.SendNodeHeartbeatResponse(success=True))

    def _get_run(self, body: bytes) -> bytes:
        run = run_pb2.Run(run_id=RUN, fab_hash=self.fab_hash)
        return _bytes(run_pb2.GetRunResponse(run=run))

    def _pull_messages(self, body: bytes) -> bytes:
        if not self.waiting:
            return b""
        head, tree = self.waiting.pop(0)
        found = fleet_pb2.PullMessagesResponse(messages_list=[head], message_object_trees=[tree])
        return _bytes(found)

    def _pull_object(self, body: bytes) -> bytes:
        content = self._objects.get(message_pb2.PullObjectRequest.FromString(body).object_id)
        found = message_pb2.PullObjectResponse(
            object_found=content is not None,
            object_available=content is not None,
            object_content=content or b"",
        )
        return _bytes(found)

    def _confirm_message_received(self, body: bytes) -> bytes:
        return b""

    def _push_messages(self, body: bytes) -> bytes:
        tree = fleet_pb2.PushMessagesRequest.FromString(body).message_object_trees[0]
        self._announced.append(tree)
        names = [one.object_id for one in iterate_object_tree(tree)]
        wanted = fleet_pb2.PushMessagesResponse(objects_to_push=names, session_id="s")
        return _bytes(wanted)

    def _push_object(self, body: bytes) -> bytes:
        pushed = message_pb2.PushObjectRequest.FromString(body)
        self._came[pushed.object_id] = pushed.object_content
        for tree in tuple(self._announced):
            if all(one.object_id in self._came for one in iterate_object_tree(tree)):
                # Answered once: what equal answers share is known before it is pushed again.
                self._announced.remove(tree)
                reply = inflate_object_from_contents(tree.object_id, dict(self._came))
                assert isinstance(reply, Message)
                self.replies.append(reply)
        return _bytes(message_pb2.PushObjectResponse(stored=True))

    @contextmanager
    def up(self, bundle: Bundle, where: Path) -> Iterator[None]:
        """Listen with the certificate and key of a server's bundle."""
        make_private_directory(where)
        for name in (SERVER_CERTIFICATE, SERVER_KEY):
            write_private(where / name, bundle.file(name))
        with served(
            self, lifespan="off",
            ssl_certfile=where / SERVER_CERTIFICATE, ssl_keyfile=where / SERVER_KEY,
        ) as self.port:  # fmt: skip
            yield


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def empty() -> RecordDict:
    return RecordDict({"request": ConfigRecord({"x": 1})})
