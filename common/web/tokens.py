"""API tokens: `vf_<id>_<secret>` with 256 random bits, of which only the SHA-256 is kept.

A hash without salt or stretching is enough, since nobody guesses 256 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from threading import Lock
from typing import Final, Protocol

from common.config import from_json, to_json
from common.errors import InputError

_SETTING: Final = "tokens"
_FORM: Final = re.compile(r"vf_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", re.ASCII)
_FRESH: Final = 0.5  # seconds
_NOBODY: Final = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
_DAY: Final = 86_400.0


class Store(Protocol):
    """What keeps the list: a small value under a name."""

    def remember(self, name: str, value: bytes) -> None: ...
    def recall(self, name: str) -> bytes | None: ...


@dataclass(frozen=True)
class Token:
    """What is kept of a token; times are seconds since 1970, `scopes` a list with spaces."""

    id: str
    digest: str
    scopes: str
    created: float
    expires: float | None = None
    revoked: float | None = None

    def allows(self, scope: str) -> bool:
        """Whether it has this scope."""
        return scope in self.scopes.split()


class Tokens:
    """The tokens of a service. What another process changes is seen within a second.

    `scopes` is every scope there is; `command` is what people call to see the list.
    """

    def __init__(
        self,
        store: Store,
        scopes: tuple[str, ...],
        command: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._scopes, self._command, self._clock = store, scopes, command, clock
        self._by_id: dict[str, Token] = {}
        self._read_at: float | None = None
        self._lock = Lock()

    def create(self, scopes: Collection[str], days: float | None = None) -> tuple[str, Token]:
        """Make a token; its text is returned this once and cannot be had again."""
        if not scopes or not set(scopes) <= set(self._scopes):
            raise InputError(f"a token has one or more of the scopes {', '.join(self._scopes)}")
        if days is not None and not 0 < days <= 36_500:
            raise InputError("a token expires after 1 to 36,500 days, or never")
        text = f"vf_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"
        now = self._clock()
        ordered = " ".join(scope for scope in self._scopes if scope in scopes)
        expires = None if days is None else now + days * _DAY
        token = Token(text.split("_")[1], _digest(text), ordered, now, expires)
        with self._lock:
            self._write([*self._read(), token])
        return text, token

    def known(self) -> tuple[Token, ...]:
        """Return all tokens, the oldest first, with those that no longer work."""
        return tuple(self._read())

    def revoke(self, token_id: str) -> Token:
        """Make a token useless for good."""
        with self._lock:
            tokens = self._read()
            for row, token in enumerate(tokens):
                if token.id == token_id:
                    tokens[row] = replace(token, revoked=token.revoked or self._clock())
                    self._write(tokens)
                    return tokens[row]
        raise InputError(f"no token {token_id!r}", hint=f"see '{self._command} list'")

    def find(self, text: str) -> Token | None:
        """The token whose text this is, if it works now; unknown ids take as long as wrong secrets.

        Reads the list at most twice a second.
        """
        now = self._clock()
        with self._lock:
            if self._read_at is None or not 0 <= now - self._read_at < _FRESH:
                self._by_id = {token.id: token for token in self._read()}
                self._read_at = now
            form = _FORM.fullmatch(text)
            token = self._by_id.get(form[1]) if form else None
        same = hmac.compare_digest(_digest(text), token.digest if token else _NOBODY)
        if token is None or not same or token.revoked is not None:
            return None
        return token if token.expires is None or now < token.expires else None

    def _read(self) -> list[Token]:
        stored = self._store.recall(_SETTING) or b""
        return [from_json(Token, line, where="tokens") for line in stored.decode().splitlines()]

    def _write(self, tokens: Collection[Token]) -> None:
        self._store.remember(_SETTING, "\n".join(map(to_json, tokens)).encode())
        self._read_at = None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
