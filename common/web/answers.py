"""Errors as answers: JSON with what was wrong and what to do, and nothing of the person."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from common.errors import (
    ImageError,
    InputError,
    LedgerError,
    Outdated,
    Refused,
    SealError,
    StorageError,
    VeilfaceError,
)

_STATUS: tuple[tuple[type[VeilfaceError], int], ...] = (
    (ImageError, 422),
    (InputError, 400),
    (Refused, 409),
)
# Their text tells of the server's disk and keys: it goes to the log as a kind, to nobody as words.
_PRIVATE: tuple[tuple[type[VeilfaceError], int, str], ...] = (
    (SealError, 500, "the vault does not open or does not hold"),
    (LedgerError, 500, "the operation log does not hold"),
    (StorageError, 503, "the storage does not answer"),
    (Outdated, 503, "the vault has another key, network or file by now: the service ends"),
)
_WORDS = {404: "no such address", 405: "this address does not take that method"}
UNEXPECTED = (SealError, LedgerError, StorageError)
MAPPED = (VeilfaceError, HTTPException, RequestValidationError)


class Declined(VeilfaceError):  # noqa: N818 - named for what the service did
    """A request that is not answered: `status` says why, `retry_after` (seconds) when to return."""

    def __init__(
        self, status: int, message: str, *, hint: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after = retry_after


def lacks_scope(scopes: Sequence[str], command: str) -> Declined:
    """What a token is told that has none of these scopes; `command` is what makes another."""
    hint = f"whoever runs the service makes one: {command} create --scope {scopes[0]}"
    return Declined(403, f"this token lacks the scope {scopes[0]!r}", hint=hint)


def answer(error: Exception, request_id: str) -> JSONResponse:
    """The answer to an error; one that nobody expected says its request id and nothing else."""
    if isinstance(error, Declined):
        return _json(error.status, error.message, error.hint, error.retry_after)
    for kind, status, words in _PRIVATE:
        if isinstance(error, kind):
            hint = f"whoever runs the service must look; request {request_id}"
            return _json(status, words, hint, 5.0 if status == 503 else None)
    for kind, status in _STATUS:
        if isinstance(error, kind) and isinstance(error, VeilfaceError):
            return _json(status, error.message, error.hint)
    if isinstance(error, HTTPException):
        return _json(error.status_code, _WORDS.get(error.status_code, "not possible"), "see /docs")
    if isinstance(error, RequestValidationError):
        # Its own text quotes what was sent.
        return _json(400, "the request is not as described", "see /docs")
    return _json(500, f"an unexpected error; request {request_id}", "")


def _json(status: int, error: str, hint: str, retry_after: float | None = None) -> JSONResponse:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error, "hint": hint}, status, headers)
