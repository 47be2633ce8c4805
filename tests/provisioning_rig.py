"""What the tests of provisioning share: a federation, what its folder shows, every private key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from common.bundle import Bundle
from common.roster import Roster
from server.provisioning.federation import Summary, create
from server.provisioning.request import Endpoint, Passphrases, Settings

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
OPEN = Passphrases()


def make(out: Path, *sites: str, now: datetime = NOW, passphrases: Passphrases = OPEN) -> Summary:
    """Make the federation `fed` at 127.0.0.1:8443."""
    settings = Settings("fed", Endpoint("127.0.0.1", 8443))
    return create(out, settings, sites or ("a", "b"), passphrases, now=now)


def archive(out: Path, party: str) -> Path:
    return out / "current" / "bundles" / f"fed-{party}.tar.gz"


def names(out: Path) -> list[str]:
    """The bundles that are there."""
    return sorted(p.name for p in (out / "current" / "bundles").iterdir())


def shown(out: Path) -> tuple[Roster, tuple[str, ...], bytes]:
    """Whatever a federation's folder shows: roster, bundles, server certificate; all verified."""
    found = []
    for path in sorted((out / "current" / "bundles").iterdir()):
        bundle = Bundle.read(path)
        assert bundle.roster.federation == "fed"
        found.append(bundle.manifest.party)
    key = load_ssh_private_key((out / "ca" / "roster.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    roster = Roster.read((out / "current" / "roster").read_bytes(), key.public_key())
    active = {site.name for site in roster.sites}
    assert set(found) <= {*active, "server"}
    return roster, tuple(found), (out / "current" / "server.crt").read_bytes()


def private_value(data: bytes) -> bytes:
    """The secret number of a private key file."""
    load = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
    key = load(data, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes(48, "big")
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def private_files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder that holds a private key in the clear, and its secret."""
    return {
        path.name: private_value(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    }
