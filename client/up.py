"""A site's processes: the node, kept alive; no port is opened, every connection goes out."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from client.app import make_app
from client.consent import SitePolicy
from client.folder import FolderConfig, open_folder
from client.link import ServerLink
from client.masked_site import Identity
from client.node import Node
from common.bundle import CONTRACT, Bundle
from common.bundle_options import OpenedBundle, open_from_stdin
from common.errors import InputError, Refused
from common.pinning import pin
from common.roster import Roster
from common.storage import make_private_directory, write_private
from common.supervision import (
    Part,
    Supervision,
    become_supervisor,
    only_one,
    python,
    run_part,
    stop_on_signals,
)
from common.terms import Terms

log = logging.getLogger("veilface.site")


@dataclass(frozen=True)
class SiteOptions:
    """What an engineer says at the start: `server` replaces the address of the bundle."""

    folder: FolderConfig
    server: str | None
    verbose: bool


def default_state(bundle: Bundle) -> Path:
    """Return where a site keeps its state if it is not told: in the user's data folder."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    base = base if base.is_absolute() else Path.home() / ".local" / "share"
    return base / "veilface" / f"{bundle.manifest.federation}-{bundle.manifest.party}"


def terms_of(bundle: Bundle) -> Terms:
    """Return the terms that a bundle proposes; InputError if it has none."""
    if all(file.name != CONTRACT for file in bundle.files):
        raise InputError(
            "this bundle proposes no terms of training",
            hint="write a policy by hand, or ask the operator to provision with --config",
        )
    return Terms.read(bundle.file(CONTRACT))


def policy_path(state: Path) -> Path:
    """Return where a site's policy lies in its state."""
    return state / "policy.toml"


def settle_policy(bundle: Bundle, state: Path, given: Path | None, *, accept: bool) -> SitePolicy:
    """Return the policy that holds here; without one the site takes part in nothing.

    A given file is taken in; `accept` takes the terms of the bundle. What was settled before is
    never replaced by other terms unasked.
    """
    path = policy_path(make_private_directory(state))
    if given is not None:
        policy = SitePolicy.read(given)
        write_private(path, given.read_bytes())
    elif accept:
        policy = SitePolicy.accepting(terms_of(bundle))
        if path.exists() and SitePolicy.read(path) != policy:
            raise Refused(
                f"the terms differ from {path}, which was agreed to before",
                hint="compare with `veilface site policy`, and give the one you want by --policy",
            )
        write_private(path, policy.to_toml().encode())
    elif path.exists():
        policy = SitePolicy.read(path)
    else:
        raise Refused(
            "this site has agreed to nothing yet",
            hint="read `veilface site policy --bundle B`, then give it (or your own) as --policy, "
            "or say --accept-terms",
        )
    policy.check_installed()
    return policy


def admitted(bundle: Bundle, state: Path) -> Roster:
    """Return the newest roster that is known here; a site that is not on it is Refused."""
    roster = pin(bundle, state)
    if bundle.manifest.party not in {site.name for site in roster.sites}:
        raise Refused(f"{bundle.manifest.party} was revoked", hint="ask the federation's operator")
    return roster


def up(opened: OpenedBundle, options: SiteOptions) -> NoReturn:
    """Become the supervisor of a site's node."""
    folder = options.folder
    with only_one(folder.state) as lock:
        admitted(opened.bundle, folder.state)
        open_folder(folder, SitePolicy.read(policy_path(folder.state)))  # refuses before it starts
        become_supervisor(Supervision((_node(opened, options),), lock, "", options.verbose))


def _node(opened: OpenedBundle, options: SiteOptions) -> Part:
    folder = options.folder
    command = [
        *python("client.up"),
        *("--bundle", str(opened.path), "--data", str(folder.data), "--state", str(folder.state)),
        *(["--aligned"] if folder.aligned else []),
        *(["--weights", str(folder.weights)] if folder.weights else []),
        *(["--cache", str(folder.cache)] if folder.cache else []),
        *(["--server", options.server] if options.server else []),
        *(["--verbose"] if options.verbose else []),
    ]
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return Part("node", tuple(command), quiet, secret=opened.secret)


def main() -> NoReturn:
    """Be the node of a site whose policy is settled."""
    parser = argparse.ArgumentParser(prog="veilface-node")
    for name in ("--bundle", "--data", "--state"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--weights", "--cache"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--server")
    for name in ("--aligned", "--verbose"):
        parser.add_argument(name, action="store_true")
    given = parser.parse_args()
    stop = stop_on_signals()

    def body() -> None:
        bundle = open_from_stdin(given.bundle)
        policy = SitePolicy.read(policy_path(given.state))
        policy.check_installed()
        folder = FolderConfig(given.data, given.state, given.aligned, given.weights, given.cache)
        opened = open_folder(folder, policy, Identity.of(bundle, given.state))
        link = partial(ServerLink, bundle, given.server)
        Node(link, make_app(lambda context: opened), policy, given.state, stop).run()

    run_part(body, verbose=given.verbose)


if __name__ == "__main__":
    main()
