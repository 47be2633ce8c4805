"""An answer that a site has announced: read piece by piece, trusted in nothing, waited for by none.

Its head is there a little before its arrays, which a hostile site may never send.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flwr.app import Message
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_and_inflate_object_from_tree,
)

_FIRST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 2.0
_UPLOAD_WITHIN: Final = 20.0
# An answer is a question's parameters again, at most twice as wide, in few objects.
_WIDER: Final = 2
_ROOM: Final = 1 << 20
_MOST_OBJECTS: Final = 2048


def room_for(question: Message) -> int:
    """Return how many bytes the answer to a question may have."""
    arrays = question.content.array_records.values()
    return _ROOM + _WIDER * sum(record.count_bytes() for record in arrays)


class Announced:
    """The head of an answer, as the SuperLink checked it, and the tree of what is to come."""

    def __init__(self, head: Metadata, tree: ObjectTree) -> None:
        self._head, self._tree = head, tree
        self._since, self._again_at, self._wait = time.monotonic(), 0.0, _FIRST_WAIT

    @property
    def question(self) -> str:
        """The id of the message that this answers."""
        return str(self._head.reply_to_message_id)

    @property
    def node(self) -> int:
        return int(self._head.src_node_id)

    @property
    def late(self) -> bool:
        """Whether it should be there by now."""
        return time.monotonic() - self._since > _UPLOAD_WITHIN

    def read(
        self, pull: Callable[[str], bytes], confirm: Callable[[str], None], room: int
    ) -> Message | None:
        """Return the answer, or None at once while some of it is missing.

        Whatever a site made wrong raises, whatever it is: too many objects, more than `room` bytes,
        what cannot be read, or another sender in the letter than on the envelope.
        """
        if time.monotonic() < self._again_at:
            return None
        if sum(1 for _ in iterate_object_tree(self._tree)) > _MOST_OBJECTS:
            raise ValueError("too many objects")
        left = room

        def bounded(name: str) -> bytes:
            nonlocal left
            content = pull(name)
            left -= len(content)
            if left < 0:
                raise ValueError("too large")
            return content

        try:
            answer = pull_and_inflate_object_from_tree(
                self._tree, bounded, confirm, return_type=Message, max_tries_per_object=1
            )
        except ObjectPullError:
            self._again_at = time.monotonic() + self._wait
            self._wait = min(2.0 * self._wait, _LONGEST_WAIT)
            return None
        own = answer.metadata
        if (own.src_node_id, own.reply_to_message_id) != (self.node, self.question):
            raise ValueError("in the name of another site")
        own.__dict__["_message_id"] = self._tree.object_id
        return answer
