"""The options by which a command says what finds the faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from common.errors import InputError


def detector_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --detector and --yunet, as arguments `detector` and `yunet`."""
    for option in (
        click.option(
            "--yunet",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="YuNet's ONNX file, for --detector yunet.",
        ),
        click.option(
            "--detector", type=click.Choice(["dlib", "yunet"]), default="dlib", show_default=True
        ),
    ):
        command = option(command)
    return command


def yunet_file(detector: str, yunet: Path | None) -> Path | None:
    """YuNet's file, None for dlib's detector; InputError unless both options say the same."""
    if (detector == "yunet") != (yunet is not None):
        raise InputError("--detector yunet and --yunet FILE go together")
    return yunet
