"""A site's node as a process: no port is opened, every connection goes out (`client.start`)."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NoReturn

from client.agreement import Agreement
from client.app import make_app
from client.consent import SitePolicy
from client.folder_config import FolderConfig
from client.link import ServerLink
from client.masked_site import Identity
from client.node import Node
from client.start import policy_path
from common.bundle_options import open_from_stdin
from common.proxy import host_of, stays_here, without_proxy
from common.supervision import run_part, stop_on_signals


def main() -> NoReturn:
    """Be the node of a site whose policy is settled."""
    parser = argparse.ArgumentParser(prog="veilface-node")
    for name in ("--bundle", "--data", "--state"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--weights", "--cache", "--odometer"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--server")
    for name in ("--aligned", "--allow-duplicates", "--verbose"):
        parser.add_argument(name, action="store_true")
    given = parser.parse_args()
    stop = stop_on_signals()

    def body() -> None:
        bundle = open_from_stdin(given.bundle)
        SitePolicy.read(policy_path(given.state)).check_installed()
        folder = FolderConfig(
            data=given.data,
            state=given.state,
            aligned=given.aligned,
            weights=given.weights,
            cache=given.cache,
            odometer=given.odometer,
            allow_duplicates=given.allow_duplicates,
        )
        agreed = Agreement(folder, Identity.of(bundle, given.state))
        if stays_here(address := given.server or bundle.manifest.server):
            without_proxy(host_of(address))
        link = partial(ServerLink, bundle, given.server)
        Node(link, make_app(lambda context: agreed.site()), agreed.policy, given.state, stop).run()

    run_part(body, verbose=given.verbose)


if __name__ == "__main__":
    main()
