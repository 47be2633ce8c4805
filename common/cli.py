"""`veilface`: one command; each room registers its own sub-commands through entry points.

Results go to stdout, logs and progress to stderr. An error is one line that says what was wrong
and what to do; wrong input exits with 2, a refusal for privacy or security with 3.
"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points
from typing import NoReturn

import click

from common.errors import VeilfaceError


class RoomCommands(click.Group):
    """Finds commands by entry point, and imports a room only when its command is used."""

    points = "veilface.commands"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({point.name for point in entry_points(group=self.points)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for point in entry_points(group=self.points, name=cmd_name):
            command: click.Command = point.load()
            return command
        return None


class AuditCommands(RoomCommands):
    """The same for `veilface audit`: a site's statement needs nothing of the server's."""

    points = "veilface.audit"


@click.command(cls=RoomCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="veilface")
@click.option("--verbose", is_flag=True, help="Log what happens to stderr.")
def veilface(verbose: bool) -> None:
    """Face recognition trained across sites that never show their faces."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("matplotlib").setLevel(logging.INFO if verbose else logging.ERROR)
    logging.getLogger("flwr").setLevel(logging.INFO if verbose else logging.ERROR)


@click.command(cls=AuditCommands)
def audit() -> None:
    """Report what was promised and spent, check such a report, and attack the promise."""


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"veilface: {' '.join(text.split())}", err=True)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; every expected failure is one line on stderr."""
    try:
        code = veilface.main(arguments, prog_name="veilface", standalone_mode=False)
    except VeilfaceError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)  # a page of help, not an error's one line
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "veilface"
        _fail(f"{error.format_message()} (see '{command} --help')", 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped by the user; what was finished is kept", 130)
    except MemoryError:
        _fail("there is not enough memory for this (ask for less at once)", 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
