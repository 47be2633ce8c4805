"""The files of an operator's folder: the offline authority, and the current version.

FED/ca/                  ca.crt; ca.key and roster.key, or keys.sealed under a passphrase
FED/current/             federation.json, roster, server.crt, contract.json
FED/current/bundles/     one archive a party, until the operator hands it over and deletes it
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.x509 import load_pem_x509_certificate

from common.bundle import CA as CA_CERTIFICATE
from common.bundle import (
    CONTRACT,
    ROSTER,
    ROSTER_KEY,
    SEALED,
    SERVER_CERTIFICATE,
    BundleFile,
    Manifest,
    open_files,
    pack,
    seal_files,
)
from common.config import from_json, to_json
from common.errors import InputError
from common.roster import Roster
from common.storage import make_private_directory, write_private
from server.provisioning.keys import Authority, openssh, pem, pkcs8, ssh_line
from server.provisioning.request import CA, Passphrases, Settings
from server.provisioning.versions import CURRENT

_SETTINGS: Final = "federation.json"
_BUNDLES: Final = "bundles"
_CA_KEY: Final = "ca.key"
_SIGNER: Final = "roster.key"


@dataclass(frozen=True)
class State:
    """All that a version says, apart from the bundles."""

    settings: Settings
    authority: Authority
    roster: Roster
    certificate: bytes
    contract: bytes | None

    @property
    def validity(self) -> tuple[datetime, datetime]:
        """From when to when the server's certificate is valid."""
        found = load_pem_x509_certificate(self.certificate)
        return found.not_valid_before_utc, found.not_valid_after_utc


def roster_path(out: Path) -> Path:
    """Where the signed roster of the current version is."""
    return out / CURRENT / ROSTER


def bundle_path(out: Path, settings: Settings, party: str) -> Path:
    """Where a party's bundle of the current version is."""
    return out / CURRENT / _BUNDLES / _archive(settings, party)


def write_authority(
    folder: Path, name: str, authority: Authority, passphrases: Passphrases
) -> None:
    """Write the offline folder; with a passphrase for `ca`, both keys are sealed."""
    offline = make_private_directory(folder / CA)
    write_private(offline / CA_CERTIFICATE, pem(authority.certificate))
    keys = (
        BundleFile(_CA_KEY, pkcs8(authority.ca_key)),
        BundleFile(_SIGNER, openssh(authority.roster_key)),
    )
    for file in _guarded(keys, passphrases.of(CA), f"{name}/{CA}"):
        write_private(offline / file.name, file.data)


def read_state(out: Path, passphrases: Passphrases) -> State:
    """Return the current version with the authority's keys; whatever is missing is named."""
    current, offline = out / CURRENT, out / CA
    settings = from_json(
        Settings, _read(current / _SETTINGS).decode(errors="replace"), where=_SETTINGS
    )
    sealed = offline / SEALED
    if sealed.exists():
        passphrase = passphrases.of(CA)
        if passphrase is None:
            raise InputError("the CA's keys are sealed", hint="--passphrase-file ca=FILE")
        opened = open_files(_read(sealed), passphrase, f"{settings.name}/{CA}")
        keys = {file.name: file.data for file in opened}
    else:
        keys = {name: _read(offline / name) for name in (_CA_KEY, _SIGNER)}
    authority = Authority.load(_read(offline / CA_CERTIFICATE), keys[_CA_KEY], keys[_SIGNER])
    roster = Roster.read(_read(current / ROSTER), authority.roster_key.public_key())
    contract = current / CONTRACT
    return State(
        settings,
        authority,
        roster,
        _read(current / SERVER_CERTIFICATE),
        _read(contract) if contract.exists() else None,
    )


@dataclass(frozen=True)
class Writer:
    """Writes a new version; `issued` is the time that its manifests state."""

    version: Path
    state: State
    passphrases: Passphrases
    issued: str

    def __post_init__(self) -> None:
        state, key = self.state, self.state.authority.roster_key
        make_private_directory(self.version / _BUNDLES)
        head = [
            BundleFile(_SETTINGS, f"{to_json(state.settings)}\n".encode()),
            BundleFile(ROSTER, state.roster.signed(key)),
            BundleFile(SERVER_CERTIFICATE, state.certificate),
        ]
        if state.contract is not None:
            head.append(BundleFile(CONTRACT, state.contract))
        for file in head:
            write_private(self.version / file.name, file.data)

    def bundle(self, party: str, own: Iterable[BundleFile]) -> None:
        """Write a party's bundle: what is for all, and what is its own; keys sealed if asked."""
        state, key = self.state, self.state.authority.roster_key
        settings, passphrase = state.settings, self.passphrases.of(party)
        if settings.sealed and passphrase is None:
            raise InputError(
                f"the bundles of {settings.name} are sealed, and {party} has no passphrase",
                hint=f"--passphrase-file {party}=FILE",
            )
        own = list(own)
        shared = [
            BundleFile(CA_CERTIFICATE, pem(state.authority.certificate)),
            BundleFile(ROSTER, state.roster.signed(key)),
            BundleFile(ROSTER_KEY, f"{ssh_line(key.public_key())}\n".encode()),
            *(file for file in own if file.name == SERVER_CERTIFICATE),
        ]
        if state.contract is not None:
            shared.append(BundleFile(CONTRACT, state.contract))
        keys = [file for file in own if file.name != SERVER_CERTIFICATE]
        guarded = _guarded(keys, passphrase, f"{settings.name}/{party}")
        head = Manifest(settings.name, party, str(settings.server), self.issued, ())
        archive = pack(head, [*shared, *guarded], key)
        write_private(self.version / _BUNDLES / _archive(settings, party), archive)

    def carry_over(self, out: Path, without: tuple[str, ...] = ()) -> None:
        """Link the current version's bundles that are still there, but for some parties."""
        dropped = {_archive(self.state.settings, party) for party in without}
        for archive in (out / CURRENT / _BUNDLES).iterdir():
            if archive.name not in dropped:
                os.link(archive, self.version / _BUNDLES / archive.name)


def _guarded(
    keys: Iterable[BundleFile], passphrase: str | None, context: str
) -> Iterable[BundleFile]:
    if passphrase is None:
        return keys
    return [BundleFile(SEALED, seal_files(keys, passphrase, context))]


def _archive(settings: Settings, party: str) -> str:
    return f"{settings.name}-{party}.tar.gz"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "bring the ca folder back from where it is kept" if path.parent.name == CA else ""
        raise InputError(f"cannot read {path}: {error.strerror}", hint=hint) from error
