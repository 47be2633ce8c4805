"""Every command that takes a bundle opens it the same way, and says what a wrong passphrase is."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.bundle_options import PASSPHRASE_VARIABLE
from server.provisioning.request import Passphrase, Passphrases
from tests.deployment_rig import command
from tests.provisioning_rig import archive, make

COMMANDS = {
    "server up": ("server", ("server", "up", "--state", "state")),
    "site up": ("a", ("site", "up", "--data", "data", "--accept-terms", "--epsilon-total", "9")),
    "audit statement": ("a", ("audit", "statement", "data", "--out", "out")),
    "audit report": ("server", ("audit", "report", "data", "--out", "out")),
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fed") / "fed"
    make(out, passphrases=Passphrases((Passphrase("", "correct horse"),)))
    return out


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_passphrase_is_called_that_in_one_line_with_what_to_do(
    name: str, sealed: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    party, words = COMMANDS[name]
    line = (*words, "--bundle", archive(sealed, party))
    (here / "wrong").write_text("battery staple\n")
    told = [command(*line, "--passphrase-file", here / "wrong")]
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "battery staple")
    told.append(command(*line))
    for done in told:
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), done
        assert f"this passphrase does not open the keys of {party} (give the one" in done.err
    assert sorted(path.name for path in here.iterdir()) == ["data", "wrong"]


@pytest.mark.parametrize("name", COMMANDS)
def test_sealed_keys_without_a_passphrase_say_how_to_give_it(name: str, sealed: Path) -> None:
    party, words = COMMANDS[name]
    done = command(*words, "--bundle", archive(sealed, party))
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "sealed" in done.err and "--passphrase-file, or VEILFACE_BUNDLE_PASS" in done.err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bundle_of_another_fingerprint_is_refused_by_every_command(
    name: str, sealed: Path
) -> None:
    party, words = COMMANDS[name]
    done = command(*words, "--bundle", archive(sealed, party), "--fingerprint", "SHA256:other")
    assert (done.code, len(done.err.splitlines())) == (3, 1) and "SHA256:other" in done.err


def test_an_option_of_a_bundle_without_a_bundle_is_not_ignored() -> None:
    done = command("audit", "report", "data", "--out", "out", "--fingerprint", "SHA256:x")
    assert done.code == 2 and "of which bundle?" in done.err
