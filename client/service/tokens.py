"""The tokens of a vault's service; their list lies sealed in the vault's settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from common.web import tokens

COMMAND: Final = "veilface template token"
SCOPES: Final = ("enrol", "extend", "verify", "identify", "erase", "admin")


class Tokens(tokens.Tokens):
    """The tokens of a vault."""

    def __init__(self, vault: tokens.Store, clock: Callable[[], float] = time.time) -> None:
        super().__init__(vault, SCOPES, COMMAND, clock)
