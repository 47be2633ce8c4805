"""Which code a federation runs: a Flower app bundle that names the installed code and holds none.

Flower offers a run's bundle (FAB) to every site, to be executed there. Ours is a manifest with the
digest of the installed Veilface and not one line of code. A site never even fetches it: it runs
what its own engineer installed, and takes part in a run only if the run's bundle hash is on the
list of its policy. Server and sites have the same hash exactly if they have the same code.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

# What runs in a deployment; simulations and tests may differ.
_ROOMS: Final = ("client", "common", "server")
_DATE: Final = (2020, 1, 1, 0, 0, 0)
_HASH: Final = re.compile("[0-9a-f]{64}")

_MANIFEST: Final = """[project]
name = "veilface"
version = "{version}"
description = "Runs the installed code; sha256 {digest}"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "veilface"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.deployment:app"

[tool.flwr.app.config]
"""


@cache
def installed_code() -> str:
    """Return the SHA-256 of every source file of the installed rooms, 64 hex digits."""
    root = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(root).as_posix().encode()
                content = hashlib.sha256(path.read_bytes()).digest()
                total.update(len(name).to_bytes(2, "big") + name + content)
    return total.hexdigest()


@cache
def app_bundle() -> bytes:
    """Return the FAB of the installed code: the same bytes wherever the same code is installed."""
    manifest = _MANIFEST.format(version=version("veilface"), digest=installed_code()).encode()
    listed = f"pyproject.toml,{hashlib.sha256(manifest).hexdigest()},{8 * len(manifest)}"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("pyproject.toml", manifest), (".info/CONTENT", listed.encode())):
            archive.writestr(zipfile.ZipInfo(name, _DATE), data)
    return packed.getvalue()


def app_hash() -> str:
    """Return the SHA-256 of `app_bundle`, by which Flower names it, 64 hex digits."""
    return hashlib.sha256(app_bundle()).hexdigest()


def is_app_hash(text: str) -> bool:
    """Say whether a text can be the hash of a bundle."""
    return _HASH.fullmatch(text) is not None
