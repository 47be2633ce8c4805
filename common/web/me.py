"""The token of a request, as its endpoints see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import Request
from fastapi.security import HTTPBearer

from common.web.tokens import Token

BEARER: Final = HTTPBearer(auto_error=False, description="`vf_<id>_<secret>`")


@dataclass(frozen=True)
class Me:
    """What the token of this request may do."""

    id: str
    scopes: tuple[str, ...]


def token_of(request: Request) -> Token:
    """Return the token that the guard has found good."""
    token: Token = request.scope["veilface.token"]
    return token


def me(request: Request) -> Me:
    """Return what may be told of it."""
    mine = token_of(request)
    return Me(mine.id, tuple(mine.scopes.split()))
