"""The options by which `simulate` and `sweep` say whose faces are seen through which cameras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from common.detector_options import detector_options
from common.vocabulary import BANK_SHIFTS, SHIFTS, Shift

_FOLDER: Final = click.Path(path_type=Path)
_SHARED: Final = ("public", "test", "bank_shift", "yunet")  # given on as they were given


def _shifts(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[Shift, ...]:
    """Parse a list of cameras; one that is unknown is a usage error."""
    found: list[Shift] = []
    for name in (part.strip() for part in text.split(",")):
        known = [shift for shift in SHIFTS if shift == name]
        if not known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(SHIFTS)}", ctx, parameter)
        found += known
    return tuple(found)


def scenario_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --shift, --public, --test, --bank-shift, --detector and --yunet."""
    command = detector_options(command)
    for option in (
        click.option(
            "--bank-shift",
            type=click.Choice(BANK_SHIFTS),
            help="What the public bank is seen through: nothing, the sites' cameras, or unknown "
            "ones.  [default: same; none with --public]",
        ),
        click.option("--test", type=_FOLDER, help="Persons to test with [default: of --data]."),
        click.option("--public", type=_FOLDER, help="The public bank [default: of --data]."),
        click.option(
            "--shift",
            default="none",
            show_default=True,
            callback=_shifts,
            help=f"Cameras, dealt to the sites in turn: {', '.join(SHIFTS)}.",
        ),
    ):
        command = option(command)
    return command


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return the options but --shift as a command line has them, for a run of a sweep."""
    found = ["--detector", str(options["detector"])]
    for name in _SHARED:
        if options[name] is not None:
            found += [f"--{name.replace('_', '-')}", str(options[name])]
    return found
