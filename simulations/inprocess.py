"""A Flower Grid that hands each message straight to the ClientApp, in this process.

The apps are the real ones and see real Flower messages; only the network, the task queue and the
worker processes are gone. Each message is deep-copied, since apps may change their input.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN_ID = 1


class InProcessGrid(Grid):
    """N sites, node ids 1..N, each with its own context and partition id 0..N-1.

    `on_reply` sees every reply as it is made, before the server does: the wire of this engine.
    """

    def __init__(
        self,
        client_app: ClientApp,
        sites: int,
        on_reply: Callable[[Message], None] = lambda reply: None,
    ) -> None:
        self._app = client_app
        self._on_reply = on_reply
        self._run = Run.create_empty(_RUN_ID)
        self._replies: dict[str, Message] = {}
        self._contexts = {
            index + 1: Context(
                run_id=_RUN_ID,
                node_id=index + 1,
                node_config={PARTITION_ID_KEY: index, NUM_PARTITIONS_KEY: sites},
                state=RecordDict(),
                run_config={},
            )
            for index in range(sites)
        }
        self._act_as(SUPERLINK_NODE_ID)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message, self._replies) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver each message and yield its reply before the next one is made."""
        return self._exchange(messages)

    def _exchange(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            replies: dict[str, Message] = {}
            yield replies[self._deliver(message, replies)]

    def _deliver(self, message: Message, replies: dict[str, Message]) -> str:
        name = uuid.uuid4().hex
        request = copy.deepcopy(message)
        _name(request, name)
        node = request.metadata.dst_node_id
        self._act_as(node)
        try:
            reply = self._app(request, self._contexts[node])
        finally:
            self._act_as(SUPERLINK_NODE_ID)
        _name(reply, uuid.uuid4().hex)
        self._on_reply(reply)
        replies[name] = reply
        return name

    @staticmethod
    def _act_as(node: int) -> None:
        TaskIdentity.run_id = _RUN_ID
        TaskIdentity.task_id = _RUN_ID
        TaskIdentity.node_id = node


def _name(message: Message, name: str) -> None:
    # Flower has no public way to set an id: its links do the same on receipt of a message.
    message.metadata.__dict__["_message_id"] = name


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    sites: int,
    on_reply: Callable[[Message], None] = lambda reply: None,
) -> None:
    """Run a ServerApp against a ClientApp at `sites` sites, all in this thread."""
    grid = InProcessGrid(client_app, sites, on_reply)
    context = Context(
        run_id=_RUN_ID,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    server_app(grid, context)
