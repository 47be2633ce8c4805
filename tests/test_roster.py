"""A roster is what the federation signed, to the byte, and never an older one than was seen."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import to_json
from common.errors import Refused
from common.roster import Roster, RosterStore, SiteKeys, is_name
from common.signing import fingerprint, public_key, sign, verified

KEY = Ed25519PrivateKey.generate()
PIN = KEY.public_key()


def site(name: str) -> SiteKeys:
    node, signing = ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()
    lines = [
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        for key in (node, signing)
    ]
    return SiteKeys(name, *lines)


A, B, C = site("a"), site("b"), site("c-3")
FIRST = Roster("fed", 1, "2026-11-24T12:00:00Z", (A, B))
SECOND = Roster("fed", 2, "2026-11-25T12:00:00Z", (A, B, C))
THIRD = Roster("fed", 3, "2026-11-26T12:00:00Z", (A, C), (B,))
DOCUMENT = THIRD.signed(KEY)


def test_a_signed_roster_is_read_back() -> None:
    assert Roster.read(DOCUMENT, PIN) == THIRD


@settings(max_examples=400)
@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_caught(place: int, flip: int) -> None:
    changed = bytearray(DOCUMENT)
    changed[place] ^= flip
    with pytest.raises(Refused):
        Roster.read(bytes(changed), PIN)


def test_every_single_flipped_bit_is_caught() -> None:
    for place in range(len(DOCUMENT)):
        changed = bytearray(DOCUMENT)
        changed[place] ^= 1 << place % 8
        with pytest.raises(Refused):
            Roster.read(bytes(changed), PIN)


@given(st.integers(0, len(DOCUMENT)), st.binary(min_size=1, max_size=8))
def test_inserted_and_cut_off_bytes_are_caught(place: int, extra: bytes) -> None:
    for changed in (DOCUMENT[:place] + extra + DOCUMENT[place:], DOCUMENT[:place][:-1]):
        with pytest.raises(Refused):
            Roster.read(changed, PIN)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(noise: bytes) -> None:
    with pytest.raises(Refused):
        Roster.read(noise, PIN)


def test_another_key_another_kind_and_an_upper_case_signature_are_refused() -> None:
    body, signature, _ = DOCUMENT.decode().split("\n")
    for document, key in (
        (DOCUMENT, Ed25519PrivateKey.generate().public_key()),
        (sign("manifest", body, KEY), PIN),
        (f"{body}\n{signature.upper()}\n".encode(), PIN),
        (DOCUMENT.replace(b"\n", b"\r\n"), PIN),
        (DOCUMENT + b"\n", PIN),
    ):
        with pytest.raises(Refused):
            Roster.read(document, key)


def test_a_document_of_absurd_size_is_refused_unread() -> None:
    with pytest.raises(Refused, match="not a signed"):
        verified("roster", sign("roster", '"' + "x" * (5 << 20) + '"', KEY), PIN)


def bodies() -> list[tuple[str, str]]:
    """Bodies that the federation's key did sign, and that are no roster all the same."""
    plain: dict[str, Any] = json.loads(to_json(THIRD))
    made = {
        "unknown key": {**plain, "extra": 1},
        "missing key": {k: v for k, v in plain.items() if k != "serial"},
        "missing list": {k: v for k, v in plain.items() if k != "revoked"},
        "serial of text": {**plain, "serial": "3"},
        "serial of true": {**plain, "serial": True},
        "serial 0": {**plain, "serial": 0},
        "time": {**plain, "issued": "yesterday"},
        "sites no list": {**plain, "sites": 5},
        "site no table": {**plain, "sites": ["a"]},
        "a name twice": {**plain, "sites": plain["sites"] * 2},
        "path": {**plain, "sites": [{**plain["sites"][0], "name": "../a"}]},
        "key kind": {**plain, "sites": [{**plain["sites"][0], "signing_key": A.node_key}]},
        "not a table": [plain],
    }
    canonical = {
        name: json.dumps(v, sort_keys=True, separators=(",", ":")) for name, v in made.items()
    }
    canonical["spaces"] = json.dumps(plain, sort_keys=True)
    canonical["key twice"] = to_json(THIRD).replace('"serial":3', '"serial":9,"serial":3')
    canonical["no JSON"] = "roster"
    return list(canonical.items())


@pytest.mark.parametrize(("what", "body"), bodies())
def test_what_is_signed_but_no_roster_is_refused(what: str, body: str) -> None:
    with pytest.raises(Refused):
        Roster.read(sign("roster", body, KEY), PIN)


@pytest.mark.parametrize("what", ["name", "node_key", "signing_key"])
def test_a_revoked_name_or_key_cannot_come_back_under_another(what: str) -> None:
    again = replace(C, **{what: getattr(B, what)})
    with pytest.raises(Refused, match=f"a {what} twice"):
        Roster("fed", 4, THIRD.issued, (A, again), (B,))


@pytest.mark.parametrize("name", ["a", "site-1", "0", "x" * 40, "a--b"])
def test_plain_names_are_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "A", "-a", "a-", "x" * 41, "..", "a/b", "a.b", "a\n", "a ", "a\0", "ä", "а", "a\u200b",
     "１", "²", "a_b", "~", "$(id)"],
)  # fmt: skip
def test_odd_names_are_none(name: str) -> None:
    assert not is_name(name)


@given(st.text(max_size=45))
def test_a_name_is_ascii_and_safe_in_a_path(name: str) -> None:
    if is_name(name):
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert 1 <= len(name) <= 40
        assert Path("/x", name).resolve().parent == Path("/x")


def test_an_older_roster_than_was_seen_is_refused_and_the_kept_one_stays(tmp_path: Path) -> None:
    store = RosterStore(tmp_path / "state" / "roster", PIN)
    assert store.accept(FIRST.signed(KEY)) == FIRST
    assert store.accept(DOCUMENT) == THIRD
    for older in (FIRST, SECOND):
        with pytest.raises(Refused, match="older"):
            store.accept(older.signed(KEY))
    assert store.accept(DOCUMENT) == THIRD
    assert store.path.read_bytes() == DOCUMENT
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_a_bundle_that_is_older_than_the_kept_roster_does_not_win(tmp_path: Path) -> None:
    store = RosterStore(tmp_path / "roster", PIN)
    assert store.newest(FIRST.signed(KEY)) == FIRST
    store.accept(DOCUMENT)
    assert store.newest(FIRST.signed(KEY)) == THIRD
    assert RosterStore(store.path, PIN).newest(SECOND.signed(KEY)) == THIRD


def test_two_rosters_of_one_serial_are_a_fork_and_refused(tmp_path: Path) -> None:
    store = RosterStore(tmp_path / "roster", PIN)
    store.accept(DOCUMENT)
    for fork in (replace(THIRD, issued="2026-11-26T12:00:01Z"), replace(THIRD, sites=(C,))):
        with pytest.raises(Refused, match="differs"):
            store.accept(fork.signed(KEY))
        with pytest.raises(Refused, match="differs"):
            store.newest(fork.signed(KEY))


def test_a_newer_roster_may_not_forget_whom_it_had_or_change_a_key(tmp_path: Path) -> None:
    store = RosterStore(tmp_path / "roster", PIN)
    store.accept(DOCUMENT)
    for forgetful in (
        Roster("fed", 4, THIRD.issued, (A, B, C)),
        Roster("fed", 4, THIRD.issued, (A, C)),
        Roster("fed", 4, THIRD.issued, (A,), (B,)),
        Roster("fed", 4, THIRD.issued, (site("a"), C), (B,)),
        replace(THIRD, federation="other", serial=4),
    ):
        with pytest.raises(Refused, match="forgets"):
            store.accept(forgetful.signed(KEY))


def test_a_changed_or_foreign_kept_roster_is_refused_not_replaced(tmp_path: Path) -> None:
    store = RosterStore(tmp_path / "roster", PIN)
    store.accept(FIRST.signed(KEY))
    damaged = store.path.read_bytes().replace(b'"serial":1', b'"serial":0')
    store.path.write_bytes(damaged)
    with pytest.raises(Refused):
        store.accept(DOCUMENT)
    with pytest.raises(Refused):
        store.newest(DOCUMENT)
    assert store.path.read_bytes() == damaged


def _race(path: Path, documents: list[bytes]) -> None:
    for document in documents:
        try:
            RosterStore(path, PIN).accept(document)
        except Refused:
            continue


def test_of_racing_processes_the_newest_roster_wins(tmp_path: Path) -> None:
    rosters = [replace(THIRD, serial=n).signed(KEY) for n in range(3, 23)]
    context = multiprocessing.get_context("fork")
    racers = [
        context.Process(target=_race, args=(tmp_path / "roster", order))
        for order in (rosters, rosters[::-1], rosters[::2])
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
    assert RosterStore(tmp_path / "roster", PIN).newest(FIRST.signed(KEY)).serial == 22


def test_a_roster_waits_for_another_process_that_is_at_it(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    context = multiprocessing.get_context("fork")
    waiting = context.Process(target=_race, args=(tmp_path / "roster", [DOCUMENT]))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert list(tmp_path.iterdir()) == []
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    waiting.join(30)
    os.close(descriptor)
    assert (tmp_path / "roster").read_bytes() == DOCUMENT


def test_the_fingerprint_is_that_of_the_pinned_line() -> None:
    line = PIN.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert fingerprint(public_key(line)) == fingerprint(PIN)
    assert fingerprint(PIN).startswith("SHA256:")
    for other in (b"", b"ssh-ed25519 AAAA", A.node_key.encode(), b"\xff\xfe"):
        with pytest.raises(Refused):
            public_key(other)
