"""Everything a server runs, from its bundle: made ready, started in order, kept alive."""

from __future__ import annotations

import logging
import socket
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from common.bundle import CONTRACT, ROSTER, ROSTER_KEY
from common.bundle_options import OpenedBundle
from common.errors import InputError, Refused
from common.roster import Roster, RosterStore
from common.signing import fingerprint, public_key
from common.storage import make_private_directory, write_private
from common.supervision import Part, only_one, python, stop_on_signals, supervise
from server.deployment.folder import ServerFolder
from server.deployment.superlink import Inside

log = logging.getLogger("veilface.server")


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

    def answers(self) -> bool:
        """Say whether something takes connections there."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        try:
            socket.create_connection((host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


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


def up(opened: OpenedBundle, path: Path, listen: Address, page: Address, *, verbose: bool) -> int:
    """Run the server of a bundle until it is told to stop; return the exit code."""
    stop = stop_on_signals()
    with only_one(path) as lock, tempfile.TemporaryDirectory(prefix="veilface-") as private:
        folder = install(opened, path)
        listen.check_free()
        page.check_free()
        inside = Inside.make(Path(private))
        parts = [
            inside.part(folder.superlink),
            _front(opened, folder, inside, listen),
            _page(opened, folder, page),
            _coordinator(folder, inside, verbose),
        ]
        log.info("sites reach this server at %s; its page is at %s", listen, page)
        return supervise(parts, lock, stop)


def _front(opened: OpenedBundle, folder: ServerFolder, inside: Inside, listen: Address) -> Part:
    command = [
        *python("server.deployment.front"),
        *("--folder", str(folder.path), "--listen", str(listen)),
        *("--upstream", inside.address, "--upstream-ca", str(inside.certificate)),
        *("--bundle", str(opened.path)),
    ]
    return Part("front", command, ready=listen.answers, secret=opened.secret)


def _page(opened: OpenedBundle, folder: ServerFolder, page: Address) -> Part:
    command = [
        *python("server.deployment.page"),
        *("--folder", str(folder.path), "--listen", str(page)),
        *("--bundle", str(opened.path)),
    ]
    return Part("page", command, ready=page.answers, secret=opened.secret)


def _coordinator(folder: ServerFolder, inside: Inside, verbose: bool) -> Part:
    command = [
        *python("server.deployment.coordinator"),
        *("--folder", str(folder.path)),
        *("--inside", str(inside.directory), "--port", str(inside.port)),
        *(["--verbose"] if verbose else []),
    ]
    return Part("coordinator", command)
