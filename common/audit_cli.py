"""`veilface audit`: each room registers its own sub-commands under the entry point group."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final

import click

GROUP: Final = "veilface.audit"


class AuditCommands(click.Group):
    """Finds sub-commands by entry point; a site's statement needs nothing of the server's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({point.name for point in entry_points(group=GROUP)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for point in entry_points(group=GROUP, name=cmd_name):
            command: click.Command = point.load()
            return command
        return None


@click.command(cls=AuditCommands)
def audit() -> None:
    """Report what was spent and promised, and check such a report."""
