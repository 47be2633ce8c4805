"""The client room's commands, as the entry points name them."""

from __future__ import annotations

from client.ledger_cli import ledger

__all__ = ["ledger"]
