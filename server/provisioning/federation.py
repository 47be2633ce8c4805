"""A federation on its operator's disk: made once; then sites come and go, and certificates end.

Each command replaces the whole current version, so that no two rosters of one serial are ever seen.
A bundle is written once: who has one needs no other because another site joins or leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from common.bundle import SERVER
from common.errors import InputError
from common.roster import Roster, SiteKeys
from common.signing import fingerprint
from server.provisioning.folder import (
    State,
    Writer,
    bundle_path,
    read_state,
    roster_path,
    write_authority,
)
from server.provisioning.keys import Authority, site_files
from server.provisioning.request import Passphrases, Settings, check_sites
from server.provisioning.versions import (
    first_version,
    locked,
    new_folder,
    next_version,
    remove_leftovers,
)


@dataclass(frozen=True)
class Summary:
    """What holds after a command; nothing in it is secret.

    Attributes:
        fingerprint: of the roster key; people compare it over another channel.
        bundles: the paths of those that this command wrote.
        changed: False if everything was already as asked.
    """

    federation: str
    server: str
    serial: int
    fingerprint: str
    sites: tuple[str, ...]
    revoked: tuple[str, ...]
    bundles: tuple[str, ...]
    roster: str
    certificate_expires: str
    changed: bool


def create(
    out: Path,
    settings: Settings,
    sites: tuple[str, ...],
    passphrases: Passphrases,
    *,
    contract: bytes | None = None,
    now: datetime | None = None,
) -> Summary:
    """Make a federation, with all keys, certificates and bundles, in a new folder."""
    check_sites(sites)
    now = now or datetime.now(UTC)
    settings = replace(settings, sealed=passphrases.seal_bundles)
    with new_folder(out) as folder:
        authority = Authority.create(settings.name, now)
        write_authority(folder, settings.name, authority, passphrases)
        server = authority.server_files(settings, now)
        made = [site_files(name) for name in sites]
        roster = Roster(settings.name, 1, stamp(now), tuple(keys for keys, _ in made))
        state = State(settings, authority, roster, server[1].data, contract)
        writer = Writer(first_version(folder), state, passphrases, stamp(now))
        writer.bundle(SERVER, server)
        for keys, files in made:
            writer.bundle(keys.name, files)
    return _summary(out, state, (SERVER, *sites), changed=True)


def add_sites(
    out: Path, names: tuple[str, ...], passphrases: Passphrases, *, now: datetime | None = None
) -> Summary:
    """Admit sites and write their bundles; a site that is already in stays as it is."""
    check_sites(names)
    now = now or datetime.now(UTC)
    with _opened(out, passphrases, now) as (state, moment):
        roster = state.roster
        gone = {site.name for site in roster.revoked} & set(names)
        if gone:
            raise InputError(
                f"site {min(gone)!r} was revoked, and a name never comes back",
                hint="admit it under a new name",
            )
        known = {site.name for site in roster.sites}
        new = tuple(name for name in names if name not in known)
        if not new:
            return _summary(out, state, (), changed=False)
        made = [site_files(name) for name in new]
        sites = (*roster.sites, *(keys for keys, _ in made))
        state = replace(state, roster=_next(roster, moment, sites=sites))
        with next_version(out) as version:
            writer = Writer(version, state, passphrases, moment)
            writer.carry_over(out)
            for keys, files in made:
                writer.bundle(keys.name, files)
    return _summary(out, state, new, changed=True)


def revoke_sites(
    out: Path, names: tuple[str, ...], passphrases: Passphrases, *, now: datetime | None = None
) -> Summary:
    """Move sites to the roster's revoked list for good; one that is there already stays there."""
    check_sites(names)
    with _opened(out, passphrases, now or datetime.now(UTC)) as (state, moment):
        roster = state.roster
        known = {site.name for site in (*roster.sites, *roster.revoked)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(
                f"no site is named {unknown[0]!r}", hint=f"known: {', '.join(sorted(known))}"
            )
        leaving = tuple(site for site in roster.sites if site.name in names)
        if not leaving:
            return _summary(out, state, (), changed=False)
        sites = tuple(site for site in roster.sites if site not in leaving)
        revoked = (*roster.revoked, *leaving)
        state = replace(state, roster=_next(roster, moment, sites=sites, revoked=revoked))
        with next_version(out) as version:
            writer = Writer(version, state, passphrases, moment)
            writer.carry_over(out, without=names)
    return _summary(out, state, (), changed=True)


def renew(
    out: Path, passphrases: Passphrases, *, force: bool = False, now: datetime | None = None
) -> Summary:
    """Write a server bundle with a new key and certificate of the same CA, if less than a third
    of the old one's life is left or `force` asks for it; sites need nothing new.
    """
    now = now or datetime.now(UTC)
    with _opened(out, passphrases, now) as (state, moment):
        start, end = state.validity
        if not force and end - now > (end - start) / 3:
            return _summary(out, state, (), changed=False)
        server = state.authority.server_files(state.settings, now)
        state = replace(state, certificate=server[1].data)
        with next_version(out) as version:
            writer = Writer(version, state, passphrases, moment)
            writer.carry_over(out, without=(SERVER,))
            writer.bundle(SERVER, server)
    return _summary(out, state, (SERVER,), changed=True)


def stamp(now: datetime) -> str:
    """Return a time as rosters and manifests write it, in UTC."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def _opened(out: Path, passphrases: Passphrases, now: datetime) -> Iterator[tuple[State, str]]:
    with locked(out):
        remove_leftovers(out)
        state = read_state(out, passphrases)
        if stamp(now) < state.roster.issued:
            raise InputError(
                f"the clock says {stamp(now)}, and the roster is of {state.roster.issued}",
                hint="set the clock",
            )
        yield state, stamp(now)


def _next(
    roster: Roster,
    issued: str,
    *,
    sites: tuple[SiteKeys, ...],
    revoked: tuple[SiteKeys, ...] | None = None,
) -> Roster:
    gone = roster.revoked if revoked is None else revoked
    return Roster(roster.federation, roster.serial + 1, issued, sites, gone)


def _summary(out: Path, state: State, issued: tuple[str, ...], *, changed: bool) -> Summary:
    roster, settings = state.roster, state.settings
    return Summary(
        federation=settings.name,
        server=str(settings.server),
        serial=roster.serial,
        fingerprint=fingerprint(state.authority.roster_key.public_key()),
        sites=tuple(site.name for site in roster.sites),
        revoked=tuple(site.name for site in roster.revoked),
        bundles=tuple(str(bundle_path(out, settings, party)) for party in issued),
        roster=str(roster_path(out)),
        certificate_expires=stamp(state.validity[1]),
        changed=changed,
    )
