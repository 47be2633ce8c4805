"""A user without a home folder is told in one line what to name instead."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from client.start import default_state
from common.bundle import Bundle
from common.cache_key import CacheSealer
from common.chip_cache import ChipCache
from common.cli import main
from common.errors import InputError, StorageError
from tests.provisioning_rig import archive, make


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: object) -> None:
        raise KeyError("no entry of that uid")

    for name in ("HOME", "VEILFACE_CACHE", "VEILFACE_CACHE_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_each_default_names_what_to_give_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"--cache or VEILFACE_CACHE.*VEILFACE_CACHE_KEY"):
        ChipCache.open()
    with pytest.raises(InputError, match=r"VEILFACE_CACHE_KEY.*VEILFACE_CACHE or --cache"):
        ChipCache.open(tmp_path / "cache")
    make(tmp_path / "fed")
    with pytest.raises(InputError, match="--state"):
        default_state(Bundle.read(archive(tmp_path / "fed", "a")))
    monkeypatch.setenv("VEILFACE_CACHE_KEY", str(tmp_path / "own" / "key"))
    ChipCache.open(tmp_path / "cache").close()


@pytest.mark.usefixtures("homeless")
def test_a_command_without_a_home_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for person in "abcdefghijkl":
        (tmp_path / "faces" / person).mkdir(parents=True)
        for name in ("1.jpg", "2.jpg"):
            (tmp_path / "faces" / person / name).write_bytes(person.encode() + name.encode())
    with pytest.raises(SystemExit) as exit_:
        main(["simulate", "--data", str(tmp_path / "faces"), "--sites", "2", "--epsilon", "8",
              "--out", str(tmp_path / "run")])  # fmt: skip
    told = capsys.readouterr().err
    assert exit_.value.code == 2, told
    assert len(told.strip().splitlines()) == 1 and "VEILFACE_CACHE_KEY" in told


def test_a_home_that_cannot_be_made_names_what_to_give_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("VEILFACE_CACHE_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="VEILFACE_CACHE_KEY names the file"):
        ChipCache.open(tmp_path / "cache")


def test_the_folder_of_a_cache_key_is_not_closed_to_others(tmp_path: Path) -> None:
    """It may be /tmp."""
    tmp_path.chmod(0o777)
    CacheSealer.open(tmp_path / "key")
    assert tmp_path.stat().st_mode & 0o777 == 0o777
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
