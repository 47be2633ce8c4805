"""Structured logs: one JSON object a line on stderr, never with anything about a person."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from types import TracebackType
from typing import TextIO


class Journal:
    """Writes the events of a service; `to` is where, by default stderr as it is at the time."""

    def __init__(self, to: TextIO | None = None) -> None:
        self._to = to

    def write(self, event: str, **fields: str | float | None) -> None:
        """Write one event; fields without a value are left out."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        present = {name: value for name, value in fields.items() if value is not None}
        line = json.dumps({"time": stamp, "event": event, **present})
        print(line, file=self._to or sys.stderr, flush=True)

    def failure(self, request_id: str, error: BaseException) -> None:
        """Write where an unexpected error came from: its text could quote a name, so no text."""
        self.write(
            "failure", request=request_id, kind=type(error).__name__, at=_place(error.__traceback__)
        )

    def take_over(self, *loggers: str) -> None:
        """Write what these loggers of libraries warn of, without their details, as events."""
        for name in loggers:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [_Warnings(self)], False
            logger.setLevel(logging.WARNING)


class _Warnings(logging.Handler):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        # `msg` is the text in the library's source; arguments and traceback could quote a request.
        text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        self._journal.write("warning", source=record.name, text=text)


def _place(trace: TracebackType | None) -> str:
    """The innermost frames as file:line, without any value."""
    frames = traceback.extract_tb(trace)[-4:]
    return " < ".join(
        f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames)
    )
