"""The options by which a command takes a bundle."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from common.bundle import Bundle
from common.errors import InputError, Refused, SealError
from common.passphrases import passphrase_in

PASSPHRASE_VARIABLE: Final = "VEILFACE_BUNDLE_PASSPHRASE"


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle with its keys, and the passphrase that another process needs to open it again."""

    bundle: Bundle
    path: Path
    passphrase: str | None

    @property
    def secret(self) -> str:
        """The passphrase as a line for another process' standard input; empty if there is none."""
        return "" if self.passphrase is None else f"{self.passphrase}\n"


def bundle_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a bundle, as one argument `opened`."""
    return _with_options(command, required=True)


def optional_bundle_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same where a command also works without a bundle: `opened` is None then."""
    return _with_options(command, required=False)


def _with_options(command: Callable[..., Any], *, required: bool) -> Callable[..., Any]:
    @click.option(
        "--bundle",
        required=required,
        type=click.Path(exists=True, path_type=Path, resolve_path=True),
        help="The archive or folder from the federation's operator.",
    )
    @click.option("--fingerprint", help="What the operator said on the phone: SHA256:...")
    @click.option("--passphrase-file", type=click.Path(path_type=Path), help="Of a sealed bundle.")
    @functools.wraps(command)
    def with_options(
        *arguments: Any,
        bundle: Path | None,
        fingerprint: str | None,
        passphrase_file: Path | None,
        **others: Any,
    ) -> Any:
        opened = None
        if bundle is not None:
            opened = open_bundle(bundle, fingerprint, lambda: _passphrase(passphrase_file))
        elif fingerprint or passphrase_file:
            raise InputError("of which bundle?", hint="--bundle belongs to that option")
        return command(*arguments, opened=opened, **others)

    return with_options


def open_bundle(path: Path, fingerprint: str | None, passphrase: Callable[[], str]) -> OpenedBundle:
    """Return a bundle with its keys; `passphrase` is asked for only if they are sealed.

    A wrong one is an InputError: what was sealed is as it was, since the bundle's sums were right.
    """
    bundle = Bundle.read(path, expected=fingerprint)
    if not bundle.sealed:
        return OpenedBundle(bundle, path, None)
    told = passphrase()
    try:
        return OpenedBundle(bundle.unlocked(told), path, told)
    except SealError as error:
        party = bundle.manifest.party
        raise InputError(
            f"this passphrase does not open the keys of {party}",
            hint=f"give the one of {party}'s bundle, or ask the operator to issue it again",
        ) from error


def open_from_stdin(path: Path) -> Bundle:
    """Return a bundle whose passphrase, if it needs one, is a line on standard input."""
    return open_bundle(path, None, lambda: sys.stdin.readline().rstrip("\n")).bundle


def must_be_of(bundle: Bundle, *, server: bool) -> None:
    """Raise Refused where a server is given a site's bundle, or a site the server's."""
    party = bundle.manifest.party
    if (party == "server") != server:
        raise Refused(
            f"this is the bundle of {party}", hint="each party starts from its own bundle"
        )


def _passphrase(file: Path | None) -> str:
    if file is not None:
        return passphrase_in(file)
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environ.pop(PASSPHRASE_VARIABLE)  # no process that is started later has it
    if sys.stdin.isatty():
        entered: str = click.prompt("Passphrase of the bundle", hide_input=True, err=True)
        return entered
    raise InputError(
        "the keys of this bundle are sealed", hint=f"--passphrase-file, or {PASSPHRASE_VARIABLE}"
    )
