"""Everything a server runs, from its bundle: made ready, started in order, kept alive."""

from __future__ import annotations

import socket
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from common.bundle import CONTRACT, ROSTER, ROSTER_KEY
from common.bundle_options import OpenedBundle
from common.errors import InputError, Refused
from common.roster import Roster, RosterStore
from common.signing import fingerprint, public_key
from common.storage import make_private_directory, write_private
from common.supervision import Part, Supervision, become_supervisor, only_one, python
from server.deployment.folder import ServerFolder
from server.deployment.superlink import Inside


@dataclass(frozen=True)
class Address:
    """Where a part listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address of HOST:PORT; anything else is an InputError."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise InputError(f"{text!r} is no address", hint="HOST:PORT, or [IPV6]:PORT")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def check_free(self) -> None:
        """Raise InputError if something else listens there."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with closing(socket.socket(family)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise InputError(f"cannot listen on {self}: {error.strerror}") from error


def install(opened: OpenedBundle, path: Path) -> ServerFolder:
    """Bring a bundle's public files into the server's folder; another federation's is Refused."""
    bundle = opened.bundle
    folder = ServerFolder(make_private_directory(path))
    pinned = folder.path / "roster.pub"
    own = bundle.file(ROSTER_KEY)
    if pinned.exists() and public_key(pinned.read_bytes()) != bundle.roster_key:
        kept = fingerprint(public_key(pinned.read_bytes()))
        raise Refused(
            f"{path} belongs to another federation, {kept}", hint="choose another --state"
        )
    write_private(pinned, own)
    RosterStore(folder.path / "roster", bundle.roster_key).newest(bundle.file(ROSTER))
    if any(file.name == CONTRACT for file in bundle.files):
        write_private(folder.path / "terms.json", bundle.file(CONTRACT))
    return folder


def accept_roster(folder: ServerFolder, document: bytes) -> Roster:
    """Take a newer roster; running parts follow it within seconds."""
    return folder.roster_store.accept(document)


def up(
    opened: OpenedBundle, path: Path, listen: Address, page: Address, *, verbose: bool
) -> NoReturn:
    """Become the supervisor of everything that the server of a bundle runs."""
    with only_one(path) as lock:
        folder = install(opened, path)
        listen.check_free()
        page.check_free()
        inside = Inside.make(Path(tempfile.mkdtemp(prefix="veilface-")))
        parts = (
            inside.part(folder.superlink),
            _front(opened, folder, inside, listen),
            _page(opened, folder, page),
            _coordinator(folder, inside, verbose),
        )
        become_supervisor(Supervision(parts, lock, str(inside.directory), verbose))


def _front(opened: OpenedBundle, folder: ServerFolder, inside: Inside, listen: Address) -> Part:
    command = [
        *python("server.deployment.front"),
        *("--folder", str(folder.path), "--listen", str(listen)),
        *("--upstream", inside.address, "--upstream-ca", str(inside.certificate)),
        *("--bundle", str(opened.path)),
    ]
    return Part("front", tuple(command), listens=str(listen), secret=opened.secret)


def _page(opened: OpenedBundle, folder: ServerFolder, page: Address) -> Part:
    command = [
        *python("server.deployment.page"),
        *("--folder", str(folder.path), "--listen", str(page)),
        *("--bundle", str(opened.path)),
    ]
    return Part("page", tuple(command), listens=str(page), secret=opened.secret)


def _coordinator(folder: ServerFolder, inside: Inside, verbose: bool) -> Part:
    command = [
        *python("server.deployment.coordinator"),
        *("--folder", str(folder.path)),
        *("--inside", str(inside.directory), "--port", str(inside.port)),
        *(["--verbose"] if verbose else []),
    ]
    return Part("coordinator", tuple(command))
