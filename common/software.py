"""Which software ran: the digest of Veilface's own code, and the versions of what it stands on."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from common.app_bundle import installed_code
from common.config import to_json
from common.storage import write_private

SOFTWARE_FILE: Final = "software.json"
# What computes gradients, noise, epsilon and messages; a site or server need not have all.
_PACKAGES: Final = (
    "veilface", "flwr", "torch", "torchvision", "opacus", "dp-accounting", "cryptography",
    "numpy", "scipy",
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A package of Python's and its version."""

    name: str
    version: str


@dataclass(frozen=True)
class Software:
    """`code` is the SHA-256 of every installed source file, 64 hex digits."""

    code: str
    python: str
    packages: tuple[Package, ...]


def installed_software() -> Software:
    """Return what is installed here."""
    return Software(installed_code(), platform.python_version(), tuple(_installed()))


def _installed() -> list[Package]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(Package(name, version(name)))
        except PackageNotFoundError:  # an extra that this party does not have
            continue
    return found


def record_software(run: Path) -> None:
    """Write down in a run's folder which software ran it."""
    write_private(run / SOFTWARE_FILE, f"{to_json(installed_software())}\n".encode())
