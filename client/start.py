"""How a site starts: state, terms, policy and roster are settled, then its node is kept alive.

All of it happens before anything private is read, in a moment and without torch; the node is a
process of its own (`client.up`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import click

from client.consent import SitePolicy
from client.folder_config import FolderConfig
from client.odometer import kept_or_stated
from client.outbox import Outbox
from common.bundle import CONTRACT, ROSTER_KEY, Bundle
from common.bundle_options import OpenedBundle
from common.errors import BudgetExceeded, InputError, Refused
from common.ledger import Ledger
from common.pinning import pin
from common.roster import Roster
from common.spending import spent
from common.storage import home_folder, own_directory, write_private
from common.supervision import Part, Supervision, become_supervisor, only_one, python
from common.terms import Terms

POLICY: Final = "policy.toml"
# One of these is in the state of every site that was ever started.
OURS: Final = (POLICY, ROSTER_KEY, Ledger.FILE_NAME)


@dataclass(frozen=True)
class SiteOptions:
    """What an engineer says at the start: `server` replaces the address of the bundle."""

    folder: FolderConfig
    server: str | None
    verbose: bool


def default_state(bundle: Bundle) -> Path:
    """Return where a site keeps its state if it is not told: in the user's data folder."""
    base = home_folder(
        "XDG_DATA_HOME", ".local/share", hint="--state says where this site keeps it"
    )
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
    return state / POLICY


def settle_policy(
    bundle: Bundle, state: Path, given: Path | None, *, accept: bool, total: float | None = None
) -> SitePolicy:
    """Return the policy that holds here; without one the site takes part in nothing.

    A given file is taken in; `accept` takes the terms of the bundle, with `total` as the epsilon of
    all runs together, which has to be said the first time. What was settled before is never
    replaced by other terms unasked, and nothing that allows more than the ledger is taken in.
    """
    path = policy_path(own_directory(state, OURS))
    if given is not None:
        policy = SitePolicy.read(given)
        _fits(policy, state)
        write_private(path, given.read_bytes())
    elif accept:
        before = SitePolicy.read(path) if path.exists() else None
        if total is None and before is None:
            raise _no_total(terms_of(bundle))
        kept = None if before is None else before.epsilon
        policy = SitePolicy.accepting(terms_of(bundle), kept if total is None else total)
        if before is not None and before != policy:
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


def _fits(policy: SitePolicy, state: Path) -> None:
    if (state / Ledger.FILE_NAME).exists():
        with Ledger.open(state) as ledger:
            policy.plan.check_against(ledger)


def _no_total(terms: Terms) -> InputError:
    once = terms.training.epsilon or 0.0
    return InputError(
        "how much may all runs together spend of these people's privacy, for good?",
        hint=f"--epsilon-total {once:g} is one run of these terms, {3 * once:g} three; "
        "the ledger never takes more",
    )


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
        policy = SitePolicy.read(policy_path(folder.state))
        Outbox(folder.state).settle(policy.plan)
        spent_before(folder, policy)
        become_supervisor(Supervision((_node(opened, options),), lock, "", options.verbose))


def spent_before(folder: FolderConfig, policy: SitePolicy) -> None:
    """Say what other federations spent of these data; nothing left for this one is Refused."""
    odometer = kept_or_stated(folder.odometer, folder.data, policy.spent_elsewhere)
    with Ledger.open(folder.state) as ledger, odometer.locked():
        others = odometer.of_others(ledger)
    total = spent(others, policy.delta) + (policy.spent_elsewhere or 0.0)
    if not total:
        return
    said = f"{folder.data} has spent epsilon {total:.4f} of {policy.epsilon:g} elsewhere"
    if total >= policy.epsilon:
        raise BudgetExceeded(
            said, hint="`epsilon` in the policy is what the data may spend in all federations"
        )
    click.echo(f"Note: {said} (delta {policy.delta:g})", err=True)


def _node(opened: OpenedBundle, options: SiteOptions) -> Part:
    folder = options.folder
    command = [
        *python("client.up"),
        *("--bundle", str(opened.path), "--data", str(folder.data), "--state", str(folder.state)),
        *(["--aligned"] if folder.aligned else []),
        *(["--allow-duplicates"] if folder.allow_duplicates else []),
        *(["--weights", str(folder.weights)] if folder.weights else []),
        *(["--cache", str(folder.cache)] if folder.cache else []),
        *(["--odometer", str(folder.odometer)] if folder.odometer else []),
        *(["--server", options.server] if options.server else []),
        *(["--verbose"] if options.verbose else []),
    ]
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return Part("node", tuple(command), quiet, secret=opened.secret)
