"""What `veilface server` and `veilface site` refuse before anything runs, with what exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from client.consent import SitePolicy
from common.bundle import Bundle
from common.bundle_options import PASSPHRASE_VARIABLE, open_bundle
from common.signing import fingerprint
from common.supervision import only_one
from common.terms import Terms
from server.deployment.up import install
from server.provisioning.request import Passphrases
from tests.deployment_rig import Rig, command, training
from tests.process_rig import BIN

TERMS = training(rounds=4)
TOTAL = ("--epsilon-total", 2)


@pytest.fixture
def rig(people_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A federation with terms whose every command must end: none may become a supervisor."""

    def supervise(*_: object) -> None:
        raise AssertionError("it was not refused")

    monkeypatch.setattr(os, "execv", supervise)
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    own = os.dup(0)  # whoever is about to become a supervisor has given its standard input away
    yield Rig(tmp_path, people_folder, ("a", "b"), terms=TERMS)
    os.dup2(own, 0)
    os.close(own)


def refused(code: int, word: str, *arguments: object) -> None:
    """Assert that a command ends with a code and one line that names what is wrong."""
    done = command(*arguments)
    assert (done.code, word in done.err, len(done.err.splitlines())) == (code, True, 1), done
    assert done.out == ""


def site(rig: Rig, *more: object, bundle: str = "a") -> tuple[object, ...]:
    return (
        "site", "up", "--bundle", rig.bundle(bundle), "--data", rig.root / "one",
        "--state", rig.state("a"), *more, *(TOTAL if "--accept-terms" in more else ()),
    )  # fmt: skip


def server(rig: Rig, *more: object, bundle: str = "server") -> tuple[object, ...]:
    return (
        "server", "up", "--bundle", rig.bundle(bundle), "--state", rig.root / "server",
        "--listen", f"127.0.0.1:{rig.port}", "--page", f"127.0.0.1:{rig.page}", *more,
    )  # fmt: skip


def test_a_site_that_has_agreed_to_nothing_does_not_start_and_is_told_what_to_do(rig: Rig) -> None:
    done = started(rig, *site(rig))
    assert done.returncode == 3
    for hint in ("agreed to nothing", "veilface site policy", "--policy", "--accept-terms"):
        assert hint in done.stderr
    assert not (rig.state("a") / "ledger.jsonl").exists()
    shown = command("site", "policy", "--bundle", rig.bundle("a"))
    assert shown.out == SitePolicy.accepting(Terms.read(_contract(rig))).to_toml()


def test_a_site_with_a_person_who_is_two_does_not_join_unless_told_that_they_differ(
    rig: Rig,
) -> None:
    for name in ("Ann", "Ann copy"):
        (rig.root / "one" / name).mkdir(parents=True)
        (rig.root / "one" / name / "a.png").write_bytes(b"the same")
    refused(2, "same files as another", *site(rig, "--accept-terms"))
    assert not rig.state("a").exists()
    with pytest.raises(AssertionError, match="it was not refused"):
        command(*site(rig, "--accept-terms", "--allow-duplicates"))


def test_terms_that_changed_since_they_were_accepted_need_a_new_answer(rig: Rig) -> None:
    wide = rig.file("own.toml", SitePolicy.accepting(Terms.read(_contract(rig))).to_toml())
    tighter = wide.read_text().replace("rounds_per_run = 4", "rounds_per_run = 3")
    with pytest.raises(AssertionError, match="not refused"):
        command(*site(rig, "--policy", rig.file("tighter.toml", tighter)))
    refused(3, "agreed to before", *site(rig, "--accept-terms"))
    refused(2, "one of --policy", *site(rig, "--accept-terms", "--policy", wide))
    foreign = tighter[: tighter.index("code =")] + f'code = ["{"0" * 64}"]\n'
    refused(3, "does not list", *site(rig, "--policy", rig.file("foreign.toml", foreign)))


def _contract(rig: Rig) -> bytes:
    return Bundle.read(rig.bundle("a")).file("contract.json")


def test_each_party_starts_from_its_own_bundle_of_the_federation_it_was_told(
    rig: Rig, people_folder: Path, tmp_path: Path
) -> None:
    refused(3, "bundle of a", *server(rig, bundle="a"))
    refused(3, "bundle of server", *site(rig, "--accept-terms", bundle="server"))
    other = tmp_path / "other"
    other.mkdir()
    theirs = Rig(other, people_folder, ("a",), terms=TERMS)
    told = fingerprint(Bundle.read(theirs.bundle("a")).roster_key)
    for words in (site(rig, "--accept-terms"), server(rig)):
        refused(3, told, *words, "--fingerprint", told)
    install(open_bundle(rig.bundle("server"), None, str), rig.root / "server")
    refused(3, "another federation", *server(theirs, "--state", rig.root / "server"))
    refused(2, "--bundle", *site(rig, "--bundle", tmp_path / "none"))


def test_sealed_keys_open_with_the_passphrase_alone(people_folder: Path, rig: Rig) -> None:
    secret, wrong = rig.file("secret", "as it is\n"), rig.file("wrong", "as it is not\n")
    secret.chmod(0o600)
    (rig.root / "sealed").mkdir()
    sealed = Rig(
        rig.root / "sealed", people_folder, ("a",), terms=TERMS,
        passphrases=Passphrases.read((str(secret),), ()),
    )  # fmt: skip
    for words in (site(sealed, "--accept-terms"), server(sealed)):
        refused(2, "sealed", *words)
        refused(2, "passphrase does not open", *words, "--passphrase-file", wrong)
        refused(2, "none", *words, "--passphrase-file", rig.root / "none")
        with pytest.raises(AssertionError, match="not refused"):
            command(*words, "--passphrase-file", secret)


def test_a_state_in_use_is_named(rig: Rig) -> None:
    for where, words in (
        (rig.state("a"), site(rig, "--accept-terms")), (rig.root / "server", server(rig)),
    ):  # fmt: skip
        with only_one(where):
            refused(2, "in use by another process", *words)


def test_a_folder_of_someone_else_is_neither_filled_nor_closed(rig: Rig) -> None:
    """`--state server` in a checkout names the source package."""
    theirs = rig.root / "checkout"
    theirs.mkdir(mode=0o755)
    (theirs / "__init__.py").write_text("# theirs\n")
    for words in (site(rig, "--accept-terms"), server(rig)):
        refused(2, "holds something else", *words, "--state", theirs)
        assert [path.name for path in theirs.iterdir()] == ["__init__.py"]
        assert theirs.stat().st_mode & 0o777 == 0o755


def test_a_killed_server_leaves_no_keys_outside_its_folder_and_the_next_removes_those_in_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = rig.root / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    found = []
    for _ in range(2):
        with pytest.raises(AssertionError, match="not refused"):  # as if killed right after
            command(*server(rig))
        found.append({path.read_bytes() for path in rig.root.rglob("inside.key")})
    assert list(temporary.iterdir()) == []
    assert [len(keys) for keys in found] == [1, 1] and found[0] != found[1]


def test_a_port_that_is_taken_ends_the_server_and_is_named(rig: Rig) -> None:
    with closing(socket.create_server(("127.0.0.1", rig.port))):
        done = started(rig, *server(rig))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{rig.port}" in done.stderr


def started(rig: Rig, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a process until it ends."""
    told = [str(word) for word in (BIN / "veilface", *words)]
    return subprocess.run(told, env=rig.environment, capture_output=True, text=True, timeout=240)


def test_a_run_on_other_terms_than_those_of_the_bundles_is_refused(rig: Rig) -> None:
    folder = install(open_bundle(rig.bundle("server"), None, str), rig.root / "server")
    words = ("server", "run", "--state", folder.path, "--public", rig.root / "public", "--detach")
    other = rig.file("other.toml", training(rounds=5))
    refused(3, "differs from the terms", *words, "--config", other)
    assert list(folder.runs()) == []
    done = command(*words, "--config", rig.file("same.toml", TERMS), "--run-id", "same")
    assert (done.code, [run.name for run in folder.runs()]) == (0, ["same"])
    refused(2, "other settings", *words, "--run-id", "same", "--aligned")
    refused(2, "cannot name a run", *words, "--run-id", "../out")
    refused(2, "--drop-after", *words, "--drop-after", 4)


def test_a_folder_that_is_no_servers_is_called_that_by_every_command(rig: Rig) -> None:
    words: tuple[object, ...]
    for words in (("status",), ("run", "--public", rig.root / "public"), ("cancel", "x")):
        refused(2, "is no server's folder", "server", *words, "--state", rig.root / "none")


def test_an_address_that_is_none_is_refused_before_a_site_starts(rig: Rig) -> None:
    for address in ("nowhere", "host:99999", "host:x", ":1"):
        refused(2, "is no address", *site(rig, "--accept-terms", "--server", address))
    assert not rig.state("a").exists()
