"""Everything a server runs, from its bundle: made ready, started in order, kept alive."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from common.bundle import CONTRACT, ROSTER_KEY
from common.bundle_options import OpenedBundle
from common.pinning import pin
from common.roster import Roster
from common.storage import own_directory, write_private
from common.supervision import Part, Supervision, become_supervisor, only_one, python
from common.web.server import bracketed
from server.deployment.folder import ServerFolder
from server.deployment.superlink import Inside

Address = tuple[str, int]


def at(address: Address) -> str:
    """Return HOST:PORT."""
    host, port = address
    return f"{bracketed(host)}:{port}"


def install(opened: OpenedBundle, path: Path) -> ServerFolder:
    """Bring a bundle's public files into the server's folder; another federation's is Refused."""
    bundle = opened.bundle
    pin(bundle, path)
    folder = ServerFolder(path)
    if any(file.name == CONTRACT for file in bundle.files):
        write_private(folder.path / "terms.json", bundle.file(CONTRACT))
    return folder


def accept_roster(folder: ServerFolder, document: bytes) -> Roster:
    """Take a newer roster; running parts follow it within seconds."""
    return folder.roster_store.accept(document)


def up(
    opened: OpenedBundle, path: Path, listen: Address, page: Address, *, verbose: bool
) -> NoReturn:
    """Become the supervisor of everything that the server of a bundle runs.

    `listen` and `page` are the hosts and ports of front and status page.
    """
    with only_one(own_directory(path, (ROSTER_KEY,))) as lock:
        folder = install(opened, path)
        inside = Inside.make(folder.inside)
        parts = (
            inside.part(folder.superlink),
            # It makes the sites known to SuperLink, which turns away all others.
            _coordinator(folder, inside, verbose),
            _front(opened, folder, inside, listen),
            _page(opened, folder, page),
        )
        become_supervisor(Supervision(parts, lock, str(inside.directory), verbose))


def _front(opened: OpenedBundle, folder: ServerFolder, inside: Inside, listen: Address) -> Part:
    command = [
        *python("server.deployment.front"),
        *("--folder", str(folder.path), "--listen", at(listen)),
        *("--upstream", inside.address, "--upstream-ca", str(inside.certificate)),
        *("--bundle", str(opened.path)),
    ]
    return Part("front", tuple(command), listens=at(listen), secret=opened.secret)


def _page(opened: OpenedBundle, folder: ServerFolder, page: Address) -> Part:
    command = [
        *python("server.deployment.page"),
        *("--folder", str(folder.path), "--listen", at(page)),
        *("--bundle", str(opened.path)),
    ]
    return Part("page", tuple(command), listens=at(page), secret=opened.secret)


def _coordinator(folder: ServerFolder, inside: Inside, verbose: bool) -> Part:
    command = [
        *python("server.deployment.coordinator"),
        *("--folder", str(folder.path)),
        *("--inside", str(inside.directory), "--port", str(inside.port)),
        *(["--verbose"] if verbose else []),
    ]
    return Part("coordinator", tuple(command), writes=str(folder.sites))
