"""The options that open a vault, the same for every command that needs one.

Most of these commands look at no face: torch is loaded where a network is.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from client.vault import Vault
from common.config import from_json, to_json
from common.detection import Detector, detector_of
from common.errors import InputError
from common.passphrases import passphrase_in
from common.sealing import KeyFileLock, KeyLock, PassphraseLock, TransitLock

if TYPE_CHECKING:
    from client.recognition import Recogniser
    from common.network import Network

PASSPHRASE_VARIABLE = "VEILFACE_PASSPHRASE"
TOKEN_VARIABLE = "VEILFACE_TRANSIT_TOKEN"
_NETWORK, _PREVIOUS = "network", "network before"


@dataclass(frozen=True)
class VaultOptions:
    """Where a vault lies and what opens it."""

    where: str
    passphrase_file: Path | None
    key_file: Path | None
    transit: str | None

    def lock(self, *, create: bool = False) -> KeyLock:
        """The lock they name: key file, transit service, or a passphrase from file, environment
        or, on a terminal, the keyboard. With `create` a missing key file is made."""
        if (
            sum(
                option is not None for option in (self.passphrase_file, self.key_file, self.transit)
            )
            > 1
        ):
            raise InputError("give one of --passphrase-file, --key-file and --transit")
        if self.key_file is not None:
            if create and not self.key_file.exists():
                return KeyFileLock.create(self.key_file)
            return KeyFileLock(self.key_file)
        if self.transit is not None:
            url, _, name = self.transit.rpartition("/")
            token = os.environ.get(TOKEN_VARIABLE, "")
            if not url or not name or not token:
                raise InputError("--transit is URL/KEY-NAME, with the token in " + TOKEN_VARIABLE)
            return TransitLock(url, token, name)
        return PassphraseLock(self._passphrase(confirm=create))

    def _passphrase(self, *, confirm: bool) -> str:
        if self.passphrase_file is not None:
            return passphrase_in(self.passphrase_file)
        if os.environ.get(PASSPHRASE_VARIABLE):
            return os.environ[PASSPHRASE_VARIABLE]
        if sys.stdin.isatty():
            entered: str = click.prompt(
                "Passphrase", hide_input=True, confirmation_prompt=confirm, err=True
            )
            return entered
        raise InputError(
            "the vault needs a key",
            hint=f"--passphrase-file, --key-file, --transit, or {PASSPHRASE_VARIABLE}",
        )

    def open(self) -> Vault:
        """Open the vault."""
        return Vault.open(self.where, self.lock())


def vault_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a vault, as one argument `options`."""

    @click.option(
        "--vault", "where", required=True, metavar="PATH|URL", help="SQLite or PostgreSQL."
    )
    @click.option("--passphrase-file", type=click.Path(path_type=Path))
    @click.option("--key-file", type=click.Path(path_type=Path))
    @click.option("--transit", metavar="URL/KEY", help=f"Key service; token in {TOKEN_VARIABLE}.")
    @functools.wraps(command)
    def with_options(
        where: str,
        passphrase_file: Path | None,
        key_file: Path | None,
        transit: str | None,
        **others: Any,
    ) -> Any:
        return command(VaultOptions(where, passphrase_file, key_file, transit), **others)

    return with_options


@dataclass(frozen=True)
class NetworkChoice:
    """What embeds the faces of a vault, kept sealed in it: paths are those of this machine."""

    backbone: str | None
    weights: Path | None
    model: Path | None
    yunet: Path | None

    def network(self) -> Network:
        """Load the network."""
        from common.network import open_network

        return open_network(self.backbone, self.weights, self.model)

    def detector(self) -> Detector:
        """The detector that goes with it."""
        return detector_of(self.yunet)

    def check_detector(self) -> None:
        """Raise InputError if the detector cannot be used: a vault that names it could not be."""
        self.detector().detect(np.zeros((64, 64, 3), np.uint8))

    @property
    def named(self) -> bool:
        """Whether any option was given."""
        return self != NetworkChoice(None, None, None, None)

    def settings(self, vault: Vault) -> dict[str, bytes]:
        """What a vault is to keep: the choice, and the one before for who has not moved yet."""
        before = vault.recall(_NETWORK)
        return self.relocated() | ({} if before is None else {_PREVIOUS: before})

    def relocated(self) -> dict[str, bytes]:
        """What a vault is to keep where its network stays and only paths are others."""
        return {_NETWORK: to_json(self).encode()}


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a network, as one argument `choice`."""

    @click.option("--backbone", help="A public backbone [default: dlib-resnet].")
    @click.option("--weights", type=click.Path(path_type=Path, resolve_path=True))
    @click.option("--model", type=click.Path(path_type=Path, resolve_path=True), help="Of a run.")
    @click.option("--yunet", type=click.Path(path_type=Path, resolve_path=True), help="Detector.")
    @functools.wraps(command)
    def with_options(
        *arguments: Any,
        backbone: str | None,
        weights: Path | None,
        model: Path | None,
        yunet: Path | None,
        **others: Any,
    ) -> Any:
        choice = NetworkChoice(backbone, weights, model, yunet)
        return command(*arguments, choice, **others)

    return with_options


def recogniser(vault: Vault) -> Recogniser:
    """The recogniser of a vault with the network that was chosen for it."""
    from client.recognition import Recogniser

    choice, before = network_now(vault), None
    if vault.info.stale:
        before = _chosen(vault, _PREVIOUS)
    return Recogniser(
        vault, choice.network(), choice.detector(), previous=before.network() if before else None
    )


def network_now(vault: Vault) -> NetworkChoice:
    """The network of a vault."""
    choice = _chosen(vault, _NETWORK)
    if choice is None:
        raise InputError("the vault names no network", hint="make it with 'veilface template init'")
    return choice


def network_before(vault: Vault) -> NetworkChoice:
    """The network that a vault had before its own."""
    choice = _chosen(vault, _PREVIOUS)
    if choice is None:
        raise InputError("the vault had no other network", hint="name one to move to")
    return choice


def _chosen(vault: Vault, name: str) -> NetworkChoice | None:
    stored = vault.recall(name)
    if stored is None:
        return None
    return from_json(NetworkChoice, stored.decode(), where=f"stored {name}")


def new_vault(
    options: VaultOptions, choice: NetworkChoice, *, eight_bit: bool, keep_chips: bool
) -> Vault:
    """Create a vault for a network."""
    from client.recognition import network_id

    if "://" not in options.where and Path(options.where).exists():
        raise InputError(f"{options.where} exists already", hint="name a new file")
    network = choice.network()
    choice.check_detector()
    new_key = options.key_file if options.key_file and not options.key_file.exists() else None
    lock = options.lock(create=True)
    try:
        vault = Vault.create(
            options.where,
            lock,
            model_id=network_id(network),
            dim=network.dim,
            eight_bit=eight_bit,
            keep_chips=keep_chips,
        )
    except BaseException:
        if new_key is not None:
            new_key.unlink(missing_ok=True)  # it opens nothing
        raise
    for name, value in choice.settings(vault).items():
        vault.remember(name, value)
    return vault
