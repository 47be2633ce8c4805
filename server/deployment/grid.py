"""A Grid over real sites that waits for those who live, and no longer than it must.

Flower's own looks for answers every 3 s and waits a minute for a site that died. This one looks ten
times a second, gives a site up when its heartbeat stops, and asks a site again that was killed with
the question in its hands: the answer is the same, because a site releases once a round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.superlink.grid.http_grid import HttpGrid

from common.errors import VeilfaceError
from common.liveness import STRUCK_OFF_AFTER
from server.deployment.answers import Announced, room_for

log = logging.getLogger("veilface.server")

_LOOK_EVERY: Final = 0.1
_COUNT_EVERY: Final = 1.0
LONGEST_ROUND: Final = 900.0
_UNREACHED: Final = (
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
)
Push = Callable[[Iterable[Message]], Iterable[str]]


class RunLost(VeilfaceError):  # noqa: N818 - names a state
    """Flower has given this run up, or it was cancelled: its checkpoint stays."""


class RosterGrid(HttpGrid):
    """The sites of a roster that are online.

    `sites` returns the name by public key (PEM) of each site on the newest roster, `drop_after` is
    in seconds, `check` raises when the run has to stop, and `here` is told who lives, by
    node id, before each round.
    """

    def __init__(
        self,
        address: str,
        certificates: bytes,
        token: str,
        *,
        sites: Callable[[], Mapping[bytes, str]],
        drop_after: float,
        check: Callable[[], None],
        here: Callable[[Mapping[int, str]], None],
    ) -> None:
        super().__init__(address, False, certificates, token=token)
        self._sites, self._drop_after, self._check, self._here = sites, drop_after, check, here
        self._names: dict[int, str] = {}

    def name_of(self, node: int) -> str:
        """Return the site's name of a node that was listed before."""
        return self._names.get(node, f"node {node}")

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that live and are on the roster."""
        living = self._living()
        self._here({node: self._names[node] for node in living})
        return list(living)

    def _living(self) -> dict[int, str]:
        """Return by node id when each living site was last activated."""
        self._check()
        sites, now = self._sites(), time.time()
        living = {}
        for node in self.get_nodes():
            name = sites.get(node.public_key)
            if name is None or now - last_beat(node) > self._drop_after:
                continue
            self._names[node.node_id] = name
            living[node.node_id] = node.last_activated_at
        return living

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return the answers of all sites that live until they have answered.

        A site that falls silent, or is struck off the roster, has no answer among them; one that
        lives but does not answer is waited for until `timeout`, or `LONGEST_ROUND` without one.
        """
        asked = Asked(self._living(), self.push_messages)
        asked.ask(list(messages))
        deadline = time.monotonic() + (LONGEST_ROUND if timeout is None else timeout)
        answers: list[Message] = []
        counted = time.monotonic()
        while asked.open and time.monotonic() < deadline:
            answers.extend(self._pull(asked))
            if time.monotonic() - counted > _COUNT_EVERY:
                counted = time.monotonic()
                for node in asked.recount(self._living()):
                    log.warning("%s does not live any more; not waiting", self.name_of(node))
            if asked.open:
                time.sleep(_LOOK_EVERY)
        return answers

    def _pull(self, asked: Asked) -> Iterator[Message]:
        """Yield the answers that are there; one whose upload breaks off is asked for again.

        One that cannot be read, is too large, or names another sender than whose it is, is none.
        """
        client, run_id = self._runtime_client, self.run.run_id
        found = PullAppMessagesResponse()
        if asked.unanswered:
            found = client.PullMessages(PullAppMessagesRequest(message_ids=asked.unanswered))
        pull = make_pull_object_fn_protobuf(client.PullObject, self.node, run_id)
        confirm = make_confirm_message_received_fn_protobuf(
            client.ConfirmMessageReceived, self.node, run_id
        )
        for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            asked.announced.append(Announced(head.metadata, tree))
        waiting, asked.announced = asked.announced, []
        for one in waiting:
            if one.question not in asked.out:
                continue
            try:
                answer = one.read(pull, confirm, asked.room_of(one.question))
            except httpx.HTTPError:  # the SuperLink's own
                raise
            except Exception as error:  # noqa: BLE001 - no answer of one site may stop the run
                log.warning("the answer of %s is none: %r", self.name_of(one.node), error)
                asked.give_up(one.question)
                continue
            if answer is not None and asked.closed_by(answer):
                yield answer
            elif answer is None and one.late:
                asked.broken_off(one.question)
            elif answer is None:
                asked.announced.append(one)


class Asked:
    """Which questions are out, to whom, and since which of a site's lives."""

    def __init__(self, living: Mapping[int, str], push: Push) -> None:
        self._lives, self._push = dict(living), push
        self._out: dict[str, Message] = {}
        self._undelivered: list[Message] = []
        self._missed: set[int] = set()
        self._broken: set[int] = set()
        self.announced: list[Announced] = []

    @property
    def open(self) -> bool:
        """Whether any question waits for its answer."""
        return bool(self._out or self._undelivered)

    @property
    def out(self) -> list[str]:
        """The ids of the questions that sites hold."""
        return list(self._out)

    def ask(self, questions: list[Message]) -> None:
        """Send questions."""
        if questions:
            names = list(self._push(questions))
            self._out.update(zip(names, questions, strict=True))
            self._out.pop("", None)  # what the SuperLink did not take

    def closed_by(self, answer: Message) -> bool:
        """Say whether this is a site's answer to one of the questions, and take that off the list.

        A note of the SuperLink that a site cannot be reached closes nothing yet.
        """
        question = self._out.pop(answer.metadata.reply_to_message_id, None)
        if question is None:
            return False
        if answer.has_error() and answer.error.code in _UNREACHED:
            self._undelivered.append(question)
            return False
        return True

    @property
    def unanswered(self) -> list[str]:
        """The ids of the questions whose answers are not even announced.

        The SuperLink forgets a question once it has handed out the head of its answer, and would
        say of it that it cannot be found.
        """
        announced = {one.question for one in self.announced}
        return [name for name in self._out if name not in announced]

    def room_of(self, name: str) -> int:
        """Return how many bytes the answer to a question may have."""
        return room_for(self._out[name])

    def give_up(self, name: str) -> None:
        """Wait no longer for the answer to a question."""
        self._out.pop(name, None)

    def broken_off(self, name: str) -> None:
        """Ask a question once more whose answer was announced and did not come; not for ever."""
        question = self._out.pop(name, None)
        if question is not None and question.metadata.dst_node_id not in self._broken:
            self._broken.add(question.metadata.dst_node_id)
            self._undelivered.append(question)

    def recount(self, living: Mapping[int, str]) -> list[int]:
        """Ask again whoever has begun a new life; give up and return who is missing twice running.

        Once is not enough: a heartbeat is late on a slow line, and a site that restarts leaves and
        joins within a moment. Who was only late still holds the question, and is not asked again.
        """
        gone = {node for node in self._missed if node not in living}
        self._missed = {q.metadata.dst_node_id for q in self._waiting()} - living.keys() - gone
        again = []
        for name, question in list(self._out.items()):
            node = question.metadata.dst_node_id
            if node in gone:
                del self._out[name]
            elif node in living and self._lives.get(node) != living[node]:
                del self._out[name]
                again.append(question)
        undelivered, self._undelivered = self._undelivered, []
        for question in undelivered:
            if question.metadata.dst_node_id in living:
                again.append(question)
            elif question.metadata.dst_node_id in self._missed:
                self._undelivered.append(question)
        self._lives.update(living)
        self.ask([_copy(question) for question in again])
        return sorted(gone)

    def _waiting(self) -> list[Message]:
        return [*self._out.values(), *self._undelivered]


def _copy(question: Message) -> Message:
    """A new message of the same content: Flower delivers each one once."""
    meta = question.metadata
    return Message(question.content, meta.dst_node_id, meta.message_type, group_id=meta.group_id)


def last_beat(node: NodeInfo) -> float:
    """Return when a site's last heartbeat came, in seconds since the epoch."""
    return float(node.online_until) - STRUCK_OFF_AFTER
