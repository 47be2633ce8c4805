"""What an operator asks for, checked before anything is made."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.errors import InputError
from common.passphrases import passphrase_in
from common.roster import is_name

CA: Final = "ca"
SERVER: Final = "server"
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*"
    r"(?=[a-z0-9-]*[a-z])[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?",
    re.ASCII,
)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)


@dataclass(frozen=True)
class Endpoint:
    """Where the server is reached: a DNS name in lower case or an IP address, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Return the endpoint of HOST:PORT or [IPV6]:PORT; anything else is an InputError."""
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise InputError(f"--server {text!r}", hint=f"write an IPv6 address as [{host}]:{port}")
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise InputError(f"--server {text!r} has no port from 1 to 65535", hint="HOST:PORT")
        if _address(host) is None and not _HOST.fullmatch(host):
            raise InputError(
                f"--server {text!r}: {host!r} is neither a host name nor an IP address",
                hint="HOST:PORT, a DNS name in lower case (xn--... for other scripts)",
            )
        return cls(host, int(port))

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address, if it is one."""
        return _address(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Settings:
    """What a federation keeps for its whole life.

    Attributes:
        localhost: the server's certificate is also valid for localhost, 127.0.0.1 and ::1.
        days: how long a server certificate is valid.
        sealed: whether bundles are issued under a passphrase, and no later one without.
    """

    name: str
    server: Endpoint
    localhost: bool = False
    days: int = 365
    sealed: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "federation")
        if not 1 <= self.days <= 825:
            raise InputError(f"--days must lie between 1 and 825, not {self.days}")


@dataclass(frozen=True)
class Passphrase:
    """The passphrase of one party's bundle, of the CA, or of all bundles (`party` empty)."""

    party: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Passphrases:
    """Who needs which passphrase; the one for all bundles never opens the CA."""

    given: tuple[Passphrase, ...] = ()

    @classmethod
    def read(cls, options: tuple[str, ...], parties: tuple[str, ...]) -> Passphrases:
        """Read `FILE` or `PARTY=FILE`, where PARTY is a site, `server` or `ca`."""
        found: dict[str, Passphrase] = {}
        for option in options:
            party, equals, file = option.partition("=")
            if not equals or party not in (*parties, SERVER, CA):
                party, file = "", option
            if party in found:
                raise InputError(f"two passphrase files for {party or 'all bundles'}")
            found[party] = Passphrase(party, _passphrase(Path(file)))
        return cls(tuple(found.values()))

    def of(self, party: str) -> str | None:
        """Return the passphrase of a party, or None where its keys stay in the clear."""
        known = {passphrase.party: passphrase.text for passphrase in self.given}
        return known.get(party, None if party == CA else known.get(""))

    @property
    def seal_bundles(self) -> bool:
        """Whether any bundle has a passphrase."""
        return any(passphrase.party != CA for passphrase in self.given)


def check_name(name: str, what: str) -> None:
    """Raise InputError unless this may name a federation or a site."""
    if not is_name(name):
        raise InputError(
            f"{name!r} cannot name a {what}",
            hint="1 to 40 of a-z, 0-9 and hyphens between them",
        )


def check_sites(names: tuple[str, ...]) -> None:
    """Raise InputError unless these are names, each once, and none is taken by a party."""
    if not names:
        raise InputError("no site is named", hint="--site NAME, once for each")
    for name in names:
        check_name(name, "site")
        if name in (SERVER, CA):
            raise InputError(f"{name!r} cannot name a site: it is taken")
        if names.count(name) > 1:
            raise InputError(f"site {name!r} is named twice")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host) if "%" not in host else None
    except ValueError:
        return None


def _passphrase(path: Path) -> str:
    text = passphrase_in(path)
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path} is open to others", hint=f"chmod 600 {path}")
    if not text:
        raise InputError(f"{path} is empty", hint="an empty passphrase protects nothing")
    return text
