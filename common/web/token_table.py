"""What may be shown of tokens, on screen and as JSON."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from rich.table import Table

from common.web.tokens import Token


def table_of(tokens: Iterable[Token]) -> Table:
    """Return a table of tokens: id, scopes, and the days on which things happen to them."""
    table = Table()
    for column in ("id", "scopes", "created", "expires", "revoked"):
        table.add_column(column)
    for one in tokens:
        table.add_row(one.id, one.scopes, *map(_day, (one.created, one.expires, one.revoked)))
    return table


def public(one: Token) -> dict[str, str | float | None]:
    """Return what may be shown of a token."""
    shown = dataclasses.asdict(one)
    del shown["digest"]
    return shown


def _day(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d", time.gmtime(moment))
