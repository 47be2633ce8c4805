"""Which calls of this process go through a proxy of the environment, and which never do."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

_NAMES: Final = ("no_proxy", "NO_PROXY")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def without_proxy(host: str) -> None:
    """Let calls of this process to `host` take no proxy, whatever the environment says."""
    kept = next((os.environ[name] for name in _NAMES if os.environ.get(name)), "")
    for name in _NAMES:
        os.environ[name] = f"{kept},{host}" if kept else host


def host_of(address: str) -> str:
    """Return the host of HOST:PORT, without the brackets of an IPv6 address."""
    return address.rpartition(":")[0].strip("[]")


def stays_here(address: str) -> bool:
    """Say whether HOST:PORT is on this machine, which no proxy could reach."""
    return host_of(address) in _LOOPBACK


def proxy_to(host: str) -> str:
    """Return HOST:PORT of the proxy that HTTPS calls to `host` take; empty for none."""
    proxies = getproxies_environment()
    found = proxies.get("https") or proxies.get("all") or ""
    if not found or proxy_bypass(host):
        return ""
    return urlsplit(found if "://" in found else f"//{found}").netloc.rpartition("@")[2]
