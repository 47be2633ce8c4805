"""A bundle: what one party of a federation needs, in one archive whose every byte is signed for.

`FED-PARTY.tar.gz` holds one folder of plain files: a manifest of SHA-256 sums signed by the
federation, the roster with the key that signs it, the CA's certificate, and the party's own private
keys, or `keys.sealed` in their place. It is read as the archive or as the unpacked folder; either
way, one file more, less or other than the manifest says is Refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from gzip import GzipFile
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509 import load_pem_x509_certificate

from common.config import parse, to_json
from common.errors import InputError, Refused, SealError
from common.randomness import fresh_key
from common.roster import Roster
from common.sealing import PassphraseLock, open_sealed, seal
from common.signing import fingerprint, public_key, sign, verified
from common.storage import make_private_directory, write_private

MANIFEST: Final = "manifest"
ROSTER: Final = "roster"
ROSTER_KEY: Final = "roster.pub"
CA: Final = "ca.crt"
SERVER_CERTIFICATE: Final = "server.crt"
SERVER_KEY: Final = "server.key"
NODE_KEY: Final = "node.key"
SIGNING_KEY: Final = "signing.key"
SEALED: Final = "keys.sealed"
CONTRACT: Final = "contract.json"
SERVER: Final = "server"
_PRIVATE: Final = (SERVER_KEY, NODE_KEY, SIGNING_KEY)
_LIMIT: Final = 16 << 20
_FILE: Final = re.compile(r"[a-z][a-z0-9.-]{0,40}", re.ASCII)


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class FileSum:
    """The SHA-256 of one file, 64 hex digits."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Whose bundle this is, where its server listens (HOST:PORT), and what belongs in it."""

    federation: str
    party: str
    server: str
    issued: str
    files: tuple[FileSum, ...]


@dataclass(frozen=True)
class _Head:
    federation: str
    party: str
    server: str
    issued: str


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; `keys` is empty while they are sealed."""

    manifest: Manifest
    roster: Roster
    roster_key: Ed25519PublicKey
    files: tuple[BundleFile, ...]
    keys: tuple[BundleFile, ...]

    @classmethod
    def read(cls, path: Path, *, expected: str | None = None) -> Bundle:
        """Return the bundle of an archive or folder; whatever does not belong is Refused.

        The bundle brings the key that it is checked against, so it proves that nothing was changed
        on the way only to who compares the `fingerprint`; `expected` does that.
        """
        files = _in_folder(path) if path.is_dir() else _in_archive(path)
        key = public_key(_of(files, ROSTER_KEY))
        if expected is not None and fingerprint(key) != expected:
            raise Refused(
                f"{path} is signed by {fingerprint(key)}, not by {expected}",
                hint="ask the federation's operator for the bundle and the fingerprint again",
            )
        manifest = _manifest(verified(MANIFEST, _of(files, MANIFEST), key))
        found = {f.name: hashlib.sha256(f.data).hexdigest() for f in files if f.name != MANIFEST}
        listed = {file.name: file.sha256 for file in manifest.files}
        odd = {name for name in {*found, *listed} if found.get(name) != listed.get(name)}
        odd |= {name for name, count in Counter(file.name for file in files).items() if count > 1}
        if odd or len(listed) != len(manifest.files):
            raise Refused(
                f"{path}: {', '.join(sorted(odd))} changed, missing, foreign or there twice",
                hint="unpack it again",
            )
        roster = Roster.read(_of(files, ROSTER), key)
        own = tuple(file for file in files if file.name in _PRIVATE)
        return cls(manifest, roster, key, files, own)._checked()

    @property
    def sealed(self) -> bool:
        """Whether the private keys wait for a passphrase."""
        return not self.keys

    def file(self, name: str) -> bytes:
        """Return a file's bytes; one that is not here is an InputError."""
        for file in (*self.files, *self.keys):
            if file.name == name:
                return file.data
        hint = "its keys are sealed: give the passphrase" if self.sealed else ""
        raise InputError(f"the bundle of {self.manifest.party} has no {name}", hint=hint)

    def unlocked(self, passphrase: str) -> Bundle:
        """Return the bundle with its keys; a wrong passphrase is a SealError."""
        context = f"{self.manifest.federation}/{self.manifest.party}"
        return replace(self, keys=open_files(self.file(SEALED), passphrase, context))._checked()

    def unpack(self, folder: Path) -> None:
        """Write the files as they were packed, mode 0600 in a folder of mode 0700."""
        _write(self.files, folder)

    def write_keys(self, folder: Path) -> None:
        """Write the private keys in the clear, for programs that read no others: 0600 in 0700."""
        if self.sealed:
            raise InputError("the keys are sealed", hint="unlock the bundle with its passphrase")
        _write(self.keys, folder)

    def _checked(self) -> Bundle:
        """Refuse keys that are not those which the roster or the certificate names."""
        party = self.manifest.party
        if self.manifest.federation != self.roster.federation:
            raise Refused("the bundle's roster is of another federation")
        if self.sealed:
            return self
        if party == SERVER:
            leaf = load_pem_x509_certificate(self.file(SERVER_CERTIFICATE)).public_key()
            own = load_pem_private_key(self.file(SERVER_KEY), None).public_key()
            fits = leaf == own
        else:
            lines = [_ssh_line(self.file(name)) for name in (NODE_KEY, SIGNING_KEY)]
            entries = [s for s in self.roster.sites if s.name == party]
            fits = [[site.node_key, site.signing_key] for site in entries] == [lines]
        if not fits:
            raise Refused(f"the private keys are not those of {party}", hint="ask for a new bundle")
        return self


def pack(head: Manifest, files: Iterable[BundleFile], key: Ed25519PrivateKey) -> bytes:
    """Return the .tar.gz of these files and their signed manifest; `head.files` is filled in."""
    listed = sorted(files, key=lambda file: file.name)
    sums = tuple(FileSum(f.name, hashlib.sha256(f.data).hexdigest()) for f in listed)
    document = sign(MANIFEST, to_json(replace(head, files=sums)), key)
    top, packed = f"{head.federation}-{head.party}", io.BytesIO()
    when = datetime.strptime(f"{head.issued}+0000", "%Y-%m-%dT%H:%M:%SZ%z").timestamp()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        folder = tarfile.TarInfo(top)
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o700, when
        tar.addfile(folder)
        for file in (BundleFile(MANIFEST, document), *listed):
            member = tarfile.TarInfo(f"{top}/{file.name}")
            member.mode, member.mtime, member.size = 0o600, when, len(file.data)
            tar.addfile(member, io.BytesIO(file.data))
    return packed.getvalue()


def seal_files(files: Iterable[BundleFile], passphrase: str, context: str) -> bytes:
    """Return the files under a fresh key that the passphrase wraps (Argon2id, AES-256-GCM)."""
    key, bound = fresh_key(), f"veilface keys 1\0{context}".encode()
    plain = json.dumps({file.name: file.data.decode() for file in files})
    wrapped = PassphraseLock(passphrase).wrap(key, bound)
    return len(wrapped).to_bytes(2, "big") + wrapped + seal(key, plain.encode(), bound)


def open_files(sealed: bytes, passphrase: str, context: str) -> tuple[BundleFile, ...]:
    """Return what was sealed for this context; a wrong passphrase or byte is a SealError."""
    bound, start = f"veilface keys 1\0{context}".encode(), 2 + int.from_bytes(sealed[:2], "big")
    key = PassphraseLock(passphrase).unwrap(sealed[2:start], bound)
    plain = json.loads(open_sealed(key, sealed[start:], bound))
    return tuple(BundleFile(name, text.encode()) for name, text in plain.items())


def _manifest(body: str) -> Manifest:
    try:
        values = json.loads(body)
        sums = tuple(parse(FileSum, entry, where="files") for entry in values.pop("files"))
        head = parse(_Head, values, where=MANIFEST)
    except (InputError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Refused(f"the manifest is malformed: {error}") from error
    return Manifest(head.federation, head.party, head.server, head.issued, sums)


def _in_archive(path: Path) -> tuple[BundleFile, ...]:
    """Read an archive in memory: nobody's path, link or size in it reaches the disk."""
    try:
        with path.open("rb") as raw, GzipFile(fileobj=raw) as unzipped:
            plain = unzipped.read(_LIMIT + 1)
        if len(plain) > _LIMIT:
            raise Refused(f"{path} is larger than a bundle ever is")
        files, tops = [], set()
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
            for member in tar:
                top, _, name = member.name.partition("/")
                tops.add(top)
                if member.isdir() and not name:
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or not _FILE.fullmatch(name):
                    raise Refused(f"{path}: {member.name!r} does not belong in a bundle")
                files.append(BundleFile(name, content.read()))
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise InputError(f"cannot read the bundle {path}: {error}") from error
    if len(tops) != 1:
        raise Refused(f"{path} is not one folder")
    return tuple(files)


def _in_folder(path: Path) -> tuple[BundleFile, ...]:
    files = []
    try:
        for entry in sorted(path.iterdir()):
            if entry.is_symlink() or not entry.is_file() or not _FILE.fullmatch(entry.name):
                raise Refused(f"{entry} does not belong in a bundle", hint="unpack it again")
            if entry.name in (*_PRIVATE, SEALED) and entry.stat().st_mode & 0o077:
                raise Refused(f"{entry} is open to others", hint=f"chmod 600 {entry}")
            with entry.open("rb") as file:
                files.append(BundleFile(entry.name, file.read(_LIMIT)))
    except OSError as error:
        raise InputError(f"cannot read the bundle {path}: {error.strerror}") from error
    return tuple(files)


def _of(files: tuple[BundleFile, ...], name: str) -> bytes:
    for file in files:
        if file.name == name:
            return file.data
    raise Refused(f"this is no bundle: it has no {name}")


def _ssh_line(private: bytes) -> str:
    try:
        own = load_ssh_private_key(private, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SealError(f"a private key cannot be read: {error}") from error
    return own.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _write(files: Iterable[BundleFile], folder: Path) -> None:
    make_private_directory(folder)
    for file in files:
        write_private(folder / file.name, file.data)
