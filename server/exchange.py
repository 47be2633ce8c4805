"""One question to each of several sites, and their answers: each once, malformed ones named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.errors import UpdateRejected
from common.update import check_masked, check_refusal

SILENT: Final = "no answer in time"
LOST: Final = "refused: unprepared"
FOREIGN_CODE: Final = "the site's policy does not list the code that this server runs"
APP_FAILED: Final = "the site's app failed"


def exchange(
    grid: Grid,
    kind: str,
    questions: Mapping[int, RecordDict],
    read: Callable[[int, Message], None],
    *,
    timeout: float | None,
    group: str = "",
) -> list[tuple[int, str]]:
    """Send each node its question, and return which answers were not used, and why.

    `read` takes one node's answer, or raises UpdateRejected.
    """
    messages = [Message(content, node, kind, group_id=group) for node, content in questions.items()]
    used: set[int] = set()
    rejected: list[tuple[int, str]] = []
    # Some grids go through the messages twice, so a generator would arrive empty.
    for reply in list(grid.send_and_receive(messages, timeout=timeout)):
        node = reply.metadata.src_node_id
        try:
            if node not in questions:
                raise UpdateRejected("an answer from a site that was not asked")
            if node in used:
                raise UpdateRejected("a second answer in the same round")
            read(node, reply)
        except UpdateRejected as error:
            rejected.append((node, error.message))
        else:
            used.add(node)
    silent = set(questions) - used - {node for node, _ in rejected}
    return rejected + [(node, SILENT) for node in sorted(silent)]


def header_of(reply: Message) -> Mapping[str, object]:
    """Return the header of an answer; an error or a refusal is UpdateRejected, which says so."""
    if reply.has_error():
        if reply.error.code == ErrorCode.INVALID_FAB:
            raise UpdateRejected(FOREIGN_CODE)
        raise UpdateRejected(f"{APP_FAILED} (code {reply.error.code})")
    header = reply.content.config_records.get("header")
    if header is None:
        raise UpdateRejected("no header")
    if set(reply.content) == {"header"} and "refusal" in header:
        raise UpdateRejected(f"refused: {check_refusal(header)}")
    return header


def records_of(reply: Message, *wanted: str) -> RecordDict:
    """Return the records of an answer that holds exactly these; another one is UpdateRejected."""
    if set(reply.content) != set(wanted):
        odd = [name[:80] for name in sorted(reply.content)[:3]]
        raise UpdateRejected(f"records {odd} are not on the whitelist")
    return reply.content


def message_of(reply: Message, limit: int, stage: str | None = None) -> bytes:
    """Return the one message of `common.masking` in an answer, at most `limit` bytes.

    `stage` is the question that it answers, which its header has to name; None leaves the header to
    the caller.
    """
    header = header_of(reply)
    if stage is not None:
        check_masked(header, stage)
    record = records_of(reply, "header", "masking").config_records.get("masking")
    message = None if record is None or set(record) != {"message"} else record["message"]
    if not isinstance(message, bytes) or len(message) > limit:
        raise UpdateRejected(f"its masking record is not one message of at most {limit} bytes")
    return message
