"""The same words open, whatever wrote them down; what is no text is one line."""

from __future__ import annotations

import os
import secrets
import struct
import unicodedata
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from common.bundle_options import PASSPHRASE_VARIABLE as OF_BUNDLES
from common.cli import main
from common.errors import InputError, SealError
from common.passphrases import passphrase_in, prepared
from common.sealing import PassphraseLock, seal
from common.terms import read_terms
from server.provisioning.request import Passphrases
from tests.provisioning_rig import archive, make
from tests.test_vocabulary import TOML

KEY, WORDS = bytes(range(32)), "k\u00f6nig \u1e9b\u0323 x"
NFD = unicodedata.normalize("NFD", WORDS)
ALIKE = [WORDS, NFD, f"\ufeff{WORDS}", f"\ufeff{NFD}", WORDS.replace(" ", "\u00a0"), f"{WORDS}\r\n"]


@pytest.mark.parametrize("told", ALIKE)
def test_words_typed_on_another_system_open_what_was_locked(told: str) -> None:
    for made in (WORDS, told):
        wrapped = PassphraseLock(made).wrap(KEY, b"vault")
        assert PassphraseLock(WORDS if made is told else told).unwrap(wrapped, b"vault") == KEY


def locked_before(text: str) -> bytes:
    """A vault key as it was wrapped when a passphrase was taken byte by byte."""
    cost = struct.pack(">BBI16s", 3, 4, 64 << 10, secrets.token_bytes(16))
    kdf = Argon2id(salt=cost[-16:], length=32, iterations=3, lanes=4, memory_cost=64 << 10)
    return cost + seal(kdf.derive(text.encode()), KEY, cost + b"vault")


@pytest.mark.parametrize(
    "text", [WORDS, NFD, f"\ufeff{WORDS}", f"\ufeff{NFD}", "a\u00a0b", "plain"]
)
def test_what_was_locked_before_there_was_one_form_still_opens(text: str) -> None:
    assert PassphraseLock(text).unwrap(locked_before(text), b"vault") == KEY


def test_a_mark_of_yesterday_does_not_keep_todays_words_out() -> None:
    for text in (f"\ufeff{WORDS}", NFD, f"\ufeff{NFD}"):
        assert PassphraseLock(WORDS).unwrap(locked_before(text), b"vault") == KEY


@pytest.mark.parametrize(
    "other", ["konig x", "K\u00f6nig x", " k\u00f6nig x", "k\u00f6nigx", "\ufeff"]
)
def test_other_words_open_nothing(other: str) -> None:
    wrapped = PassphraseLock("k\u00f6nig x").wrap(KEY, b"vault")
    with pytest.raises((SealError, InputError)):
        PassphraseLock(other).unwrap(wrapped, b"vault")


@pytest.mark.parametrize("nothing", ["", "\n", "\ufeff", "\ufeff\r\n"])
def test_a_passphrase_of_nothing_protects_nothing(nothing: str) -> None:
    with pytest.raises(InputError, match="protects nothing"):
        prepared(nothing)


def test_bytes_that_are_no_text_are_one_line_at_every_door_and_are_not_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").write_bytes(b"secret\xff")
    (tmp_path / "bad").chmod(0o600)
    with pytest.raises(InputError, match="not UTF-8") as found:
        passphrase_in(tmp_path / "bad")
    with pytest.raises(InputError, match="not UTF-8"):
        Passphrases.read((str(tmp_path / "bad"),), ())
    make(tmp_path / "fed", passphrases=Passphrases.read((_file(tmp_path, "good"),), ()))
    sealed = str(archive(tmp_path / "fed", "a"))
    vault = ["template", "init", "--vault", str(tmp_path / "v.db")]
    site = ["site", "up", "--bundle", sealed, "--data", str(tmp_path), "--accept-terms"]
    bad = ["--passphrase-file", str(tmp_path / "bad")]
    for line, variable in ((vault, "VEILFACE_PASSPHRASE"), (site, OF_BUNDLES)):
        for extra in (bad, []):
            monkeypatch.setenv(variable, os.fsdecode(b"secret\xff"))
            with pytest.raises(SystemExit) as exit_:
                main([*line, *extra])
            told = capsys.readouterr().err
            assert exit_.value.code == 2 and told.count("\n") == 1
            assert "not UTF-8" in told and "secret" not in told and "xff" not in told
    assert "secret" not in str(found.value) and not (tmp_path / "v.db").exists()


def test_a_bundle_opens_with_the_words_of_another_system(tmp_path: Path) -> None:
    from common.bundle import Bundle

    make(tmp_path / "fed", passphrases=Passphrases.read((_file(tmp_path, f"\ufeff{NFD}\r\n"),), ()))
    assert not Bundle.read(archive(tmp_path / "fed", "a")).unlocked(WORDS).sealed


def test_a_mark_before_the_terms_of_training_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "marked.toml").write_text(TOML, encoding="utf-8-sig")
    assert read_terms(tmp_path / "marked.toml") == read_terms(tmp_path / "plain.toml")


def _file(folder: Path, text: str) -> str:
    path = folder / "passphrase"
    path.write_bytes(text.encode())
    path.chmod(0o600)
    return str(path)
