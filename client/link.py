"""A site's line to its server: the calls of Flower's Fleet API that a site needs, and no other.

Every connection goes out from the site, over TLS 1.3, to the one server whose certificate the
federation's own CA signed; every request carries the signature of the site's node key. The app
bundle that Flower offers is never fetched.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.bundle import CA, NODE_KEY, Bundle
from common.errors import InputError, Refused, VeilfaceError
from common.liveness import HEARTBEAT_SECONDS
from common.proxy import host_of, proxy_to

# A public bank and a model are tens of megabytes; a hostile server could send without end.
MESSAGE_LIMIT: Final = 1 << 30
# Flower cuts arrays into objects of 5 MiB, and the tree of a message's objects is shorter than one.
ANSWER_LIMIT: Final = 16 << 20
_ARRIVES_WITHIN: Final = 120.0
_SHOWN: Final = 200
_FIRST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 1.0
Answer = TypeVar("Answer")


class Unreachable(VeilfaceError):  # noqa: N818 - names a state
    """The server cannot be reached, or answers that it is not ready: try again."""


@dataclass(frozen=True)
class Delivery:
    """A message without its content, and the tree of the objects that hold it."""

    message: Message
    tree: ObjectTree

    @property
    def run_id(self) -> int:
        return self.message.metadata.run_id


class ServerLink:
    """An open line; for one thread. Errors are Unreachable (try again) or Refused (do not)."""

    def __init__(self, bundle: Bundle, address: str | None = None) -> None:
        """Take server address, CA and node key from a bundle; `address` replaces the first."""
        key = load_ssh_private_key(bundle.file(NODE_KEY), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError("node.key is not an ECDSA key")
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.minimum_version = ssl.TLSVersion.TLSv1_3
        trust.load_verify_locations(cadata=bundle.file(CA).decode())
        self._public_key = public_key_to_bytes(key.public_key())
        where = address or bundle.manifest.server
        proxy = proxy_to(host_of(where))
        self._where = f"{where} (by the proxy {proxy} of the environment)" if proxy else where
        self._client = FleetHttpClient(
            f"https://{where}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
            verify=trust,
        )
        # Flower's client follows redirects and reads whatever comes; nobody else asks it for this.
        http = self._client._client
        http.follow_redirects = False
        http.event_hooks = {"response": [_must_be_plain]}
        self._node = Node()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    @property
    def node_id(self) -> int:
        """The id by which the server knows this site since `join`."""
        return self._node.node_id

    def join(self, before: int | None) -> int:
        """Report for work, and return this site's node id; `before` is the id of a former time.

        A site that was killed is still on the server's list for a while, so it leaves first.
        """
        if before is not None:
            self._node = Node(node_id=before)
            self.leave()
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_SECONDS
        )
        self._node = Node(node_id=self._ask(lambda: self._client.ActivateNode(request)).node_id)
        return self.node_id

    def resume(self, node_id: int) -> None:
        """Use an id that another line of this site joined with."""
        self._node = Node(node_id=node_id)

    def leave(self) -> None:
        """Tell the server that this site is going; it is not asked again."""
        try:
            self._ask(
                lambda: self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
            )
        except (Unreachable, Refused):
            return  # it is not on the list, or will be struck off it when its heartbeat stops

    def heartbeat(self) -> bool:
        """Tell the server that this site lives; False if the server has forgotten it."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
        return bool(self._ask(lambda: self._client.SendNodeHeartbeat(request)).success)

    def pull(self) -> Delivery | None:
        """Return the next message for this site, without its content, or None."""
        answer = self._ask(lambda: self._client.PullMessages(PullMessagesRequest(node=self._node)))
        if not answer.messages_list or not answer.message_object_trees:
            return None
        try:
            message = message_from_proto(answer.messages_list[0])
        except Exception as error:  # whatever a server sent, a site goes on
            raise Refused(f"a message cannot be read: {type(error).__name__}") from error
        return Delivery(message, answer.message_object_trees[0])

    def app_of(self, run_id: int) -> str:
        """Return the hash of the app bundle that a run states."""
        request = GetRunRequest(node=self._node, run_id=run_id)
        return str(self._ask(lambda: self._client.GetRun(request)).run.fab_hash)

    def fetch(self, delivery: Delivery) -> Message:
        """Return the message with its content.

        One of more than `MESSAGE_LIMIT` bytes, or that cannot be read, is Refused.
        """
        received = 0
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, delivery.run_id)

        def limited(object_id: str) -> bytes:
            nonlocal received
            content = self._ask(lambda: pull(object_id))
            received += len(content)
            if received > MESSAGE_LIMIT:
                raise Refused(f"the server sent a message of more than {MESSAGE_LIMIT} bytes")
            return content

        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self._node, delivery.run_id
        )
        try:
            message = pull_and_inflate_object_from_tree(
                delivery.tree,
                limited,
                lambda name: self._ask(lambda: confirm(name)),
                return_type=Message,
                max_time=_ARRIVES_WITHIN,
                initial_backoff=_FIRST_WAIT,
                backoff_cap=_LONGEST_WAIT,
            )
        except ObjectPullError as error:
            raise Unreachable(f"a message could not be fetched: {error}") from error
        except VeilfaceError:
            raise
        except Exception as error:  # whatever a server sent, a site goes on
            raise Refused(f"a message cannot be read: {type(error).__name__}") from error
        inner = message.metadata
        if (inner.dst_node_id, inner.run_id) != (self.node_id, delivery.run_id):
            raise Refused("a message is not what it was announced as")
        inner.__dict__["_message_id"] = delivery.tree.object_id
        return message

    def answer(self, reply: Message) -> None:
        """Send a reply."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            head = message_to_proto(
                remove_content_from_message(reply) if reply.has_content() else reply
            )
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[head],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],  # how long it took is nobody's business
            )
            wanted = self._ask(lambda: self._client.PushMessages(request))
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, reply.metadata.run_id, wanted.session_id
            )
            try:
                push_objects(
                    get_all_nested_objects(reply),
                    lambda name, content: self._ask(lambda: push(name, content)),
                    object_ids_to_push=set(wanted.objects_to_push),
                )
            except ObjectPushError as error:
                raise Unreachable(f"an answer was not taken: {error}") from error

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """Make a call; what can pass by itself is Unreachable, anything else is Refused."""
        try:
            return call()
        except httpx.HTTPStatusError as error:
            raise _said(error.response) from error
        except ssl.SSLError as error:
            raise Unreachable(f"no trusted connection to {self._where}: {error}") from error
        except httpx.TransportError as error:
            raise Unreachable(f"{self._where} cannot be reached: {error}") from error
        except ValueError as error:
            raise Unreachable(f"the server's answer is malformed: {error}") from error


def _must_be_plain(response: httpx.Response) -> None:
    """Raise Refused on an answer that leads elsewhere, or does not say how long it is."""
    length = response.headers.get("content-length", "")
    odd = {"location", "transfer-encoding", "content-encoding"} & set(response.headers)
    if odd or not length.isdigit() or int(length) > ANSWER_LIMIT:
        raise Refused(f"the server's answer ({response.status_code}) is not one of a SuperLink")


def _said(response: httpx.Response) -> VeilfaceError:
    """What an answer that is none means."""
    code = response.status_code
    told = FlowerError.from_json(response.text)
    said = f"the server answers {code}" + (f": {told.message[:_SHOWN]!r}" if told else "")
    if code >= 500 or code == httpx.codes.TOO_MANY_REQUESTS:
        return Unreachable(said)
    strange = code == httpx.codes.UNAUTHORIZED and not told
    return Refused(said, hint="is this site on the server's roster?" if strange else "")
