"""The server room's commands, as the entry points name them."""

from __future__ import annotations

from server.evaluate_cli import evaluate
from server.export_cli import export

__all__ = ["evaluate", "export"]
