"""The tokens of a server's status page; their list lies in the server's folder, 0600."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import InputError
from common.storage import write_private
from common.web.tokens import Token, Tokens

SCOPES: Final = ("view", "metrics")


@dataclass(frozen=True)
class _Files:
    """Keeps small values as files of a folder."""

    folder: Path

    def remember(self, name: str, value: bytes) -> None:
        write_private(self.folder / name, value)

    def recall(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None


def tokens_of(folder: Path) -> Tokens:
    """Return the tokens of a server's folder, to look them up in."""
    return Tokens(_Files(folder), SCOPES, "veilface server token")


def create_token(
    folder: Path, scopes: Collection[str], days: float | None = None
) -> tuple[str, Token]:
    """Make a token; its text is returned this once and cannot be had again."""
    with _locked(folder):
        return tokens_of(folder).create(scopes, days)


def list_tokens(folder: Path) -> tuple[Token, ...]:
    """Return all tokens, the oldest first, with those that no longer work."""
    return tokens_of(folder).known()


def revoke_token(folder: Path, token_id: str) -> Token:
    """Make a token useless for good; a running page follows within a second."""
    with _locked(folder):
        return tokens_of(folder).revoke(token_id)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder} is no server's folder", hint="veilface server up") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
