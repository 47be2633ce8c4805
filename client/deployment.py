"""The ClientApp for Flower's own SuperNode, whose node configuration names the site's settings:

    --node-config 'data-dir="/data" state-dir="/state" policy="/etc/veilface/policy.toml"'

`veilface site up` does not use it: Flower's SuperNode runs the code that the server sends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flwr.app import Context

from client.app import OpenSite, make_app
from client.consent import SitePolicy
from client.folder import open_folder
from client.folder_config import FolderConfig
from common.errors import InputError

_KNOWN: Final = {
    "data-dir", "state-dir", "policy", "weights", "aligned", "cache-dir", "odometer-dir",
    "partition-id", "num-partitions",
}  # fmt: skip


def open_folder_site(context: Context) -> OpenSite:
    """Return the site that a node's configuration describes; whatever is missing is named."""
    settings = context.node_config
    unknown = sorted(set(settings) - _KNOWN)
    if unknown:
        raise InputError(f"unknown node setting {unknown[0]!r}", hint=f"known: {sorted(_KNOWN)}")

    def path(name: str) -> Path | None:
        return Path(str(settings[name])) if name in settings else None

    def required(name: str) -> Path:
        if (value := path(name)) is None:
            raise InputError(f"the node configuration misses {name!r}")
        return value

    config = FolderConfig(
        data=required("data-dir"),
        state=required("state-dir"),
        aligned=bool(settings.get("aligned", False)),
        weights=path("weights"),
        cache=path("cache-dir"),
        odometer=path("odometer-dir"),
    )
    return open_folder(config, SitePolicy.read(required("policy")))


app = make_app(open_folder_site)
