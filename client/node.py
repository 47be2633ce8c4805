"""A site at work: one long-lived process that asks its server for messages and answers them.

It stands where Flower puts a SuperNode, a SuperExec and a new Python process a message. The code it
runs is what is installed here. A killed node comes back under its old id, and answers a round that
it had released before with the same bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from client.consent import SitePolicy
from client.link import Delivery, ServerLink, Unreachable
from client.node_state import NodeState
from common.errors import Refused, StorageError
from common.liveness import BEAT_EVERY
from common.supervision import tell

log = logging.getLogger("veilface.site")

_BUSY_POLL: Final = 0.2
_IDLE_POLL: Final = 1.0
_BUSY_FOR: Final = 120.0
_LONGEST_PAUSE: Final = 5.0
_NOTE_EVERY: Final = 15.0
_TROUBLE_AFTER: Final = 10.0
_TROUBLE_EVERY: Final = 60.0


class Node:
    """Serves one server until `stop` is set."""

    def __init__(
        self,
        link: Callable[[], ServerLink],
        app: ClientApp,
        policy: Callable[[], SitePolicy],
        state: Path,
        stop: threading.Event,
    ) -> None:
        """`link` opens a line to the server, `policy` returns the one that holds, and `state` is
        the site's own directory."""
        self._link, self._app, self._policy = link, app, policy
        self._state, self._stop = state, stop
        self._joined = 0
        self._noted_at = 0.0
        self._told_joined = False
        self._trouble: tuple[str, float, float] = ("", 0.0, 0.0)

    def run(self) -> None:
        """Join, answer messages, and leave; while the server is away, try again."""
        beats = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        beats.start()
        pause = _BUSY_POLL
        while not self._stop.is_set():
            try:
                with self._link() as link:
                    self._join(link)
                    pause = _BUSY_POLL
                    self._serve(link)
                    link.leave()
            except (Unreachable, Refused) as error:
                self._troubled(str(error))
            self._joined = 0
            self._stop.wait(pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE)
        beats.join()

    def _troubled(self, text: str) -> None:
        """Log a trouble that does not pass by itself: once it lasts, and then not every second.

        A server that has just been started, or restarts, is none.
        """
        known, since, told = self._trouble
        now = time.monotonic()
        if text != known:
            since, told = now, 0.0
        if now - since >= _TROUBLE_AFTER and (not told or now - told >= _TROUBLE_EVERY):
            log.warning("%s; trying again", text)
            told = now
        self._trouble = (text, since, told)

    def _join(self, link: ServerLink) -> None:
        before = NodeState.read(self._state)
        self._joined = link.join(before.node_id if before else None)
        self._noted_at = 0.0
        self._contact()
        if self._trouble[2] or not self._told_joined:
            tell("joined, and waits for what the server asks")
        self._told_joined, self._trouble = True, ("", 0.0, 0.0)
        log.info("joined as node %d", self._joined)

    def _contact(self) -> None:
        """Note that the server answered, not so often that it wears the disk."""
        if time.monotonic() - self._noted_at < _NOTE_EVERY:
            return
        self._noted_at = time.monotonic()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            NodeState(self._joined, now).keep(self._state)
        except StorageError as error:
            log.warning("%s", error)  # a full disk must not end the heartbeats

    def _serve(self, link: ServerLink) -> None:
        busy_until = 0.0
        while not self._stop.is_set() and self._joined:
            delivery = link.pull()
            if delivery is None:
                busy = time.monotonic() < busy_until
                self._stop.wait(_BUSY_POLL if busy else _IDLE_POLL)
                continue
            busy_until = time.monotonic() + _BUSY_FOR
            reply = self._answer(link, delivery)
            if reply is not None:
                try:
                    link.answer(reply)
                except Refused as error:  # the run has ended, or the next call says why
                    log.info("an answer was not taken: %s", error)

    def _answer(self, link: ServerLink, delivery: Delivery) -> Message | None:
        """Return the reply to a message; None to another site's, or of a run that has ended."""
        run_id = delivery.run_id
        if delivery.message.metadata.dst_node_id != self._joined:
            log.error("a message for another site was left")
            return None
        self._act(run_id)
        try:
            app = link.app_of(run_id)
        except Refused as error:
            log.info("a message of a run that has ended was left: %s", error)
            return None
        try:
            self._policy().check_code(app)
        except Refused as error:
            log.error("refused: %s", error)
            return Message(
                Error(ErrorCode.INVALID_FAB, "the site's policy does not list this app"),
                reply_to=delivery.message,
            )
        try:
            message = link.fetch(delivery)
        except Refused as error:
            log.error("a message was not taken: %s", error)
            return _failed(delivery.message)
        context = Context(run_id, self._joined, {}, RecordDict(), {})
        try:
            return self._app(message, context)
        except Exception:  # the boundary: whatever it is, its text must stay at the site
            log.exception("%s failed", message.metadata.message_type[:80])
            return _failed(message)

    def _act(self, run_id: int) -> None:
        # Flower's Message takes its sender from here.
        TaskIdentity.run_id, TaskIdentity.task_id = run_id, run_id
        TaskIdentity.node_id = self._joined

    def _beat(self) -> None:
        """Send heartbeats beside the work; where the server has forgotten the site, join again."""
        with self._link() as link:
            while not self._stop.wait(BEAT_EVERY):
                joined = self._joined
                if not joined:
                    continue
                link.resume(joined)
                with suppress(Unreachable):
                    try:
                        known = link.heartbeat()
                    except Refused:
                        known = False
                    if known:
                        self._contact()
                    elif joined == self._joined:
                        self._joined = 0


def _failed(message: Message) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "refused"), reply_to=message)
