"""Provisioning: each party gets its own keys and no other's; a command is done or was never."""

from __future__ import annotations

import base64
import errno
import gzip
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import load_pem_x509_certificate

from common.bundle import Bundle
from common.errors import InputError, VeilfaceError
from common.roster import RosterStore
from server.provisioning.federation import add_sites, renew, revoke_sites
from tests.provisioning_rig import (
    DAY,
    NOW,
    OPEN,
    archive,
    make,
    names,
    private_files,
    shown,
)


@pytest.fixture
def fed(tmp_path: Path) -> Path:
    out = tmp_path / "fed"
    make(out)
    return out


def test_every_private_key_is_in_its_own_bundle_only_by_value(fed: Path, tmp_path: Path) -> None:
    add_sites(fed, ("c",), OPEN, now=NOW + DAY)
    renew(fed, OPEN, force=True, now=NOW + DAY)
    owners = {"ca": private_files(fed / "ca")}
    assert set(owners["ca"]) == {"ca.key", "roster.key"}
    unpacked: dict[str, bytes] = {"roster": (fed / "current" / "roster").read_bytes()}
    for party in ("server", "a", "b", "c"):
        with tarfile.open(archive(fed, party)) as tar:
            tar.extractall(tmp_path / party, filter="data")
        owners[party] = private_files(tmp_path / party)
        expected = {"server.key"} if party == "server" else {"node.key", "signing.key"}
        assert set(owners[party]) == expected
        unpacked[party] = gzip.decompress(archive(fed, party).read_bytes())
    secrets = [(party, value) for party, keys in owners.items() for value in keys.values()]
    assert len({value for _, value in secrets}) == 9
    outside = [
        p for p in fed.rglob("*") if p.is_file() and "ca" not in p.parts and p.suffix != ".gz"
    ]
    unpacked["folder"] = b"".join(path.read_bytes() for path in outside)
    pem = {party: _pem_lines(tmp_path / party) for party in ("server", "a", "b", "c")}
    pem["ca"] = _pem_lines(fed / "ca")
    for holder, content in unpacked.items():
        for owner, value in secrets:
            if owner != holder:
                for form in (value, value.hex().encode(), base64.b64encode(value)[:-4]):
                    assert form not in content, (holder, owner)
        for owner, lines in pem.items():
            held = [line for line in lines if line in content]
            assert (len(held) == len(lines)) if owner == holder else not held, (holder, owner)


def _pem_lines(folder: Path) -> set[bytes]:
    """The lines of private key files that hold a secret: not those of an OpenSSH header."""
    keys = [p.read_bytes() for p in folder.rglob("*.key")]
    common = set.intersection(*(set(_body(key)) for key in keys)) if len(keys) > 1 else set()
    return {line for key in keys for line in _body(key)[1:-1] if line not in common}


def _body(key: bytes) -> list[bytes]:
    return key.strip().splitlines()[1:-1]


def test_everything_is_for_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make(tmp_path / "fed")
        add_sites(tmp_path / "fed", ("c",), OPEN, now=NOW)
    finally:
        os.umask(old)
    for path in (tmp_path / "fed", *(tmp_path / "fed").rglob("*")):
        if not path.is_symlink():
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    with tarfile.open(archive(tmp_path / "fed", "a")) as tar:
        modes = {member.name: (member.isdir(), member.mode) for member in tar}
    assert modes.pop("fed-a") == (True, 0o700)
    assert set(modes.values()) == {(False, 0o600)}


def test_adding_a_site_leaves_the_other_bundles_as_they_were(fed: Path) -> None:
    before = {party: archive(fed, party).read_bytes() for party in ("server", "a", "b")}
    done = add_sites(fed, ("c",), OPEN, now=NOW + DAY)
    assert (done.serial, done.sites, done.changed) == (2, ("a", "b", "c"), True)
    assert [Path(path).name for path in done.bundles] == ["fed-c.tar.gz"]
    assert {party: archive(fed, party).read_bytes() for party in before} == before
    assert Bundle.read(archive(fed, "c")).roster == shown(fed)[0]


def test_adding_again_changes_nothing(fed: Path) -> None:
    add_sites(fed, ("c",), OPEN, now=NOW + DAY)
    before = shown(fed), archive(fed, "c").read_bytes()
    done = add_sites(fed, ("c", "a"), OPEN, now=NOW + 2 * DAY)
    assert (done.changed, done.serial, done.bundles) == (False, 2, ())
    assert (shown(fed), archive(fed, "c").read_bytes()) == before
    mixed = add_sites(fed, ("c", "d"), OPEN, now=NOW + 2 * DAY)
    assert [Path(path).name for path in mixed.bundles] == ["fed-d.tar.gz"]


def test_a_revoked_site_is_out_for_good_and_its_bundle_gone(fed: Path) -> None:
    keys = shown(fed)[0].sites[1]
    done = revoke_sites(fed, ("b",), OPEN, now=NOW + DAY)
    assert (done.serial, done.sites, done.revoked) == (2, ("a",), ("b",))
    assert shown(fed)[0].revoked == (keys,)
    assert names(fed) == ["fed-a.tar.gz", "fed-server.tar.gz"]
    assert not revoke_sites(fed, ("b",), OPEN, now=NOW + DAY).changed
    with pytest.raises(InputError, match="never comes back"):
        add_sites(fed, ("b",), OPEN, now=NOW + DAY)
    with pytest.raises(InputError, match="'z'"):
        revoke_sites(fed, ("a", "z"), OPEN, now=NOW + DAY)
    assert shown(fed)[0].serial == 2


def test_a_site_that_saw_the_revocation_refuses_the_roster_from_before(
    fed: Path, tmp_path: Path
) -> None:
    bundle = Bundle.read(archive(fed, "a"))
    store = RosterStore(tmp_path / "state" / "roster", bundle.roster_key)
    assert [s.name for s in store.newest(bundle.file("roster")).sites] == ["a", "b"]
    old = (fed / "current" / "roster").read_bytes()
    revoke_sites(fed, ("b",), OPEN, now=NOW + DAY)
    store.accept((fed / "current" / "roster").read_bytes())
    with pytest.raises(VeilfaceError, match="older"):
        store.accept(old)
    assert [s.name for s in store.newest(bundle.file("roster")).sites] == ["a"]


def test_a_certificate_is_renewed_when_due_under_the_same_ca(fed: Path) -> None:
    first = load_pem_x509_certificate((fed / "current" / "server.crt").read_bytes())
    assert not renew(fed, OPEN, now=NOW + 200 * DAY).changed
    site_bundles = [archive(fed, party).read_bytes() for party in ("a", "b")]
    done = renew(fed, OPEN, now=NOW + 300 * DAY)
    second = load_pem_x509_certificate((fed / "current" / "server.crt").read_bytes())
    assert (done.changed, done.serial, done.certificate_expires) == (
        True,
        1,
        "2028-09-19T12:00:00Z",
    )
    assert second.public_key() != first.public_key()
    ca = load_pem_x509_certificate((fed / "ca" / "ca.crt").read_bytes())
    second.verify_directly_issued_by(ca)
    assert (
        Bundle.read(archive(fed, "server")).file("ca.crt") == (fed / "ca" / "ca.crt").read_bytes()
    )
    assert [archive(fed, party).read_bytes() for party in ("a", "b")] == site_bundles
    assert not renew(fed, OPEN, now=NOW + 301 * DAY).changed
    with pytest.raises(InputError, match="expired"):
        renew(fed, OPEN, now=NOW + 4000 * DAY)


def test_bundles_that_were_handed_over_and_deleted_are_not_missed(fed: Path) -> None:
    for party in ("server", "a", "b"):
        archive(fed, party).unlink()
    add_sites(fed, ("c",), OPEN, now=NOW)
    revoke_sites(fed, ("a",), OPEN, now=NOW)
    assert names(fed) == ["fed-c.tar.gz"]


def test_a_clock_that_went_back_signs_nothing(fed: Path) -> None:
    with pytest.raises(InputError, match="clock"):
        add_sites(fed, ("c",), OPEN, now=NOW - DAY)


def test_a_copied_folder_that_lost_its_link_is_refused_and_keeps_all_it_has(
    fed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fed, copy, symlinks=False)
    before = sorted(copy.rglob("*"))
    with pytest.raises(InputError, match="not a federation"):
        add_sites(copy, ("c",), OPEN, now=NOW)
    assert sorted(copy.rglob("*")) == before


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "add": lambda out: add_sites(out, ("c",), OPEN, now=NOW + DAY),
    "revoke": lambda out: revoke_sites(out, ("b",), OPEN, now=NOW + DAY),
    "renew": lambda out: renew(out, OPEN, force=True, now=NOW + DAY),
    "create": make,
}
_STEPS = ("open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir")


def _stop_at(step: int, command: Callable[[Path], Any], out: Path, fail: bool) -> None:
    """Run a command that is killed, or whose disk is full, at its n-th step on the disk."""
    left = step

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _STEPS and (event != "open" or str(out.parent) in str(arguments[0])):
            left -= 1
            if left == 0 and not fail:
                os.kill(os.getpid(), signal.SIGKILL)
            if left == 0:
                raise OSError(errno.ENOSPC, "no space left")

    sys.addaudithook(hook)
    try:
        command(out)
    except (VeilfaceError, OSError):
        os._exit(7)
    os._exit(0 if left > 0 else 8)


@pytest.mark.parametrize("fail", [False, True], ids=["killed", "disk full"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_stopped_at_any_step_leaves_the_old_or_the_new_state(
    command: str, fail: bool, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    outcomes = set()
    made = tmp_path / "made"
    if command != "create":
        make(made)
    for step in range(1, 400):
        out = tmp_path / str(step) / "fed"
        out.parent.mkdir()
        if made.exists():
            shutil.copytree(made, out, symlinks=True)
        before = shown(out) if out.exists() else None
        child = context.Process(target=_stop_at, args=(step, COMMANDS[command], out, fail))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        after = shown(out) if out.exists() else None
        outcomes.add(after == before)
        if after is None and fail:
            assert [path for path in out.parent.rglob("*") if path.is_file()] == [], step
        if after is None:
            COMMANDS[command](out)
        elif after != before:
            _is_new(command, out)
        again = COMMANDS[command](out) if command != "create" else None
        assert again is None or command == "renew" or again.changed is (after == before)
        _is_new(command, out)
        assert sorted(p.name for p in out.parent.iterdir()) == ["fed"]
        assert len(list((out / "versions").iterdir())) == 1, step
    else:
        pytest.fail("the command never came to its end")
    assert step > 10
    assert True in outcomes, "it was stopped before the change"
    assert fail or False in outcomes, "it was stopped after the change"


def _is_new(command: str, out: Path) -> None:
    roster, bundles, _ = shown(out)
    sites = {"add": ["a", "b", "c"], "revoke": ["a"]}.get(command, ["a", "b"])
    assert [site.name for site in roster.sites] == sites
    assert bundles == (*sites, "server")


def _hold(out: Path, held: Any, done: Any) -> None:
    from server.provisioning.versions import locked

    with locked(out):
        held.set()
        done.wait(30)


def test_two_commands_at_once_are_one_after_the_other_or_a_clear_error(fed: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(fed, held, done))
    other.start()
    assert held.wait(30)
    with pytest.raises(InputError, match="another command"):
        add_sites(fed, ("c",), OPEN, now=NOW)
    done.set()
    other.join(30)
    assert add_sites(fed, ("c",), OPEN, now=NOW).serial == 2
