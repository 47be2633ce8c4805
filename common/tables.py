"""Tables on the screen, in a file or in a pipe: nothing in them is ever cut off."""

from __future__ import annotations

import os
from typing import Final

from rich.console import Console
from rich.table import Table

_WIDE: Final = 2000  # columns: as many as any table needs


def console() -> Console:
    """Return the console for results; in a file or a pipe it is as wide as they are."""
    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDE)


def print_table(table: Table) -> None:
    """Print a table; where it is wider than the terminal, cells go on in the next line."""
    for column in table.columns:
        column.overflow = "fold"
    console().print(table)
