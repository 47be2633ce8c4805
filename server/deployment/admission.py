"""Who may say what to the SuperLink: the few calls of a site, each signed by a key on the roster.

Whatever is not exactly one of these calls, byte for byte, does not exist.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from common.errors import VeilfaceError
from common.roster import Roster
from common.signing import public_key
from server.deployment.node_keys import node_key

Headers = Iterable[tuple[bytes, bytes]]
# Flower cuts arrays into objects of 5 MiB (FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE); everything else that
# a site sends is names and numbers, of which the tree of a message's objects is the longest. Its
# 70 bytes an object hold SuperLink's database for a millisecond: 9,000 objects would stop everyone.
_OBJECT: Final = 8 << 20
_TREE: Final = 128 << 10
_CALL: Final = 64 << 10
_SKEW: Final = 60.0
_SIGNED: Final = tuple(
    name.encode()
    for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
)
_LONGEST: Final = 2048
_PUSH: Final = "push-messages"
_PUSH_OBJECT: Final = "push-object"


@dataclass(frozen=True)
class Call:
    """A call that a site may make: `limit` is the largest body in bytes."""

    name: str
    limit: int

    @property
    def path(self) -> str:
        return f"/v1/fleet/{self.name}"

    @property
    def streamed(self) -> bool:
        """Whether its body is passed on as it comes, instead of being read first."""
        return self.name == _PUSH_OBJECT


CALLS: Final[Mapping[bytes, Call]] = {
    call.path.encode(): call
    for call in (
        Call("activate-node", _CALL),
        Call("deactivate-node", _CALL),
        Call("send-node-heartbeat", _CALL),
        Call("pull-messages", _CALL),
        Call(_PUSH, _TREE),
        Call("get-run", _CALL),
        Call("pull-object", _CALL),
        Call(_PUSH_OBJECT, _OBJECT),
        Call("confirm-message-received", _CALL),
    )
}


class Turned(VeilfaceError):  # noqa: N818 - named for what the front did
    """A request that goes no further; `said` is all that its sender learns."""

    def __init__(self, status: int, reason: str, said: bytes = b"") -> None:
        super().__init__(reason)
        self.status, self.reason, self.said = status, reason, said


def call_of(method: str, raw_path: bytes, query: bytes) -> Call:
    """Return the call of a request line; any other is turned away as if nothing were there."""
    call = CALLS.get(raw_path)
    if call is None or method != "POST" or query:
        raise Turned(404, "path")
    return call


def length_of(headers: Headers, call: Call) -> int:
    """Return the length that a request declares; without one, or too long, it is turned away.

    Only a declared length leaves no doubt, here and behind, where a request ends (RFC 9112, 6.3).
    """
    found = dict(headers)
    declared = found.get(b"content-length", b"")
    if b"transfer-encoding" in found or not declared.isdigit():
        raise Turned(411, "length")
    if int(declared) > call.limit:
        raise Turned(413, "size")
    return int(declared)


def check_own(body: bytes) -> None:
    """Turn away answers in another site's name: SuperLink checks who asks, not who answers."""
    request = PushMessagesRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise Turned(400, "malformed") from error
    if not request.messages_list:
        raise Turned(400, "malformed")
    if any(m.metadata.src_node_id != request.node.node_id for m in request.messages_list):
        raise Turned(403, "impostor")


def must_be_own(call: Call) -> bool:
    """Say whether the body names whose answer it is."""
    return call.name == _PUSH


@dataclass(frozen=True)
class Node:
    """A node key's site."""

    site: str
    key: ec.EllipticCurvePublicKey
    revoked: bool


class Door:
    """Knows the sites of the roster in a server's folder; a newer one counts from the next call."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._nodes: Mapping[bytes, Node] = {}
        self._seen: tuple[int, ...] = ()

    def admit(self, headers: Headers) -> str:
        """Return the name of the site that signed these headers; anyone else is turned away.

        The key must be on the roster and not revoked, and the signature be over a time within a
        minute of this clock. Only who signed well is told that a clock is wrong, or that it was
        revoked.
        """
        line, stamp, signature = _signed(headers)
        node = self._newest().get(_decoded(line))
        if node is None:
            raise Turned(401, "stranger")
        if not verify_signature(node.key, stamp, _decoded(signature)):
            raise Turned(401, "signature")
        if node.revoked:
            raise Turned(401, "revoked", _REVOKED)
        if not abs(self._clock() - _moment(stamp)) < _SKEW:
            raise Turned(401, "clock", _WRONG_CLOCK)
        return node.site

    def _newest(self) -> Mapping[bytes, Node]:
        """The roster's nodes by key; without a roster that holds, nobody is let in."""
        path = self._folder / "roster"
        try:
            found = path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                pinned = public_key((self._folder / "roster.pub").read_bytes())
                self._nodes = _nodes(Roster.read(path.read_bytes(), pinned))
                self._seen = seen
        except (OSError, VeilfaceError) as error:
            self._seen = ()
            raise Turned(503, "roster") from error
        return self._nodes


_REVOKED: Final = json.dumps(
    {"code": 401, "detail": "this site was revoked: ask the operator of the federation"}
).encode()
_WRONG_CLOCK: Final = json.dumps(
    {"code": 401, "detail": f"the clocks of site and server differ by more than {_SKEW:.0f} s"}
).encode()


def _nodes(roster: Roster) -> Mapping[bytes, Node]:
    found = {}
    for sites, revoked in ((roster.sites, False), (roster.revoked, True)):
        for site in sites:
            pem = node_key(site.node_key)
            found[pem] = Node(site.name, bytes_to_public_key(pem), revoked)
    return found


def _signed(headers: Headers) -> tuple[bytes, bytes, bytes]:
    """The three headers of a signature, each there once: two could be read in two ways."""
    given = [(name, value) for name, value in headers if name in _SIGNED]
    found = dict(given)
    if len(given) != len(_SIGNED) or set(found) != set(_SIGNED):
        raise Turned(401, "unsigned")
    if any(len(value) > _LONGEST for value in found.values()):
        raise Turned(401, "unsigned")
    key, stamp, signature = (found[name] for name in _SIGNED)
    return key, stamp, signature


def signed_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers that SuperLink needs to check the signature once more."""
    return [(name, value) for name, value in headers if name in _SIGNED]


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Turned(401, "unsigned") from error


def _moment(stamp: bytes) -> float:
    """The POSIX time of a stamp that was signed; one without a time zone has none."""
    try:
        moment = datetime.fromisoformat(stamp.decode("ascii"))
        if moment.tzinfo is None:
            raise Turned(401, "unsigned")
        return moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise Turned(401, "unsigned") from error
