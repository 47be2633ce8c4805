"""`veilface provision` from the command line: one clear error for each mistake, and no trace."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import common.cli
from common.bundle import Bundle
from simulations.small_training import SMALL, training_toml
from tests.provisioning_rig import archive, private_files, shown

Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]
POINT = EntryPoint("provision", "server.provision_cli:provision", common.cli.RoomCommands.points)
NEW = ("--name", "fed", "--server", "127.0.0.1:8443", "--site", "a", "--site", "b")
TOML = training_toml(replace(SMALL, rounds=3))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "work" / "fed"


@pytest.fixture
def run(out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Run:
    """Run the command on this test's folder; return code, stdout and stderr."""
    out.parent.mkdir()
    monkeypatch.setattr(common.cli, "entry_points", lambda **_: (POINT,))

    def of(*arguments: object, to: Path = out) -> Outcome:
        with pytest.raises(SystemExit) as exit_:
            common.cli.main(["provision", "--out", str(to), *map(str, arguments)])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return of


def test_a_federation_from_its_making_to_a_renewed_certificate(run: Run, out: Path) -> None:
    code, text, err = run(*NEW, "--localhost", "--json")
    assert (code, err) == (0, "")
    made = json.loads(text)
    assert (made["serial"], made["sites"], made["revoked"]) == (1, ["a", "b"], [])
    for path in made["bundles"]:
        assert Bundle.read(Path(path), expected=made["fingerprint"]).roster.serial == 1
    added = json.loads(run("--add-site", "c", "--add-site", "d", "--json")[1])
    assert (added["serial"], added["sites"]) == (2, ["a", "b", "c", "d"])
    revoked = json.loads(run("--revoke-site", "b", "--json")[1])
    assert (revoked["serial"], revoked["revoked"], revoked["bundles"]) == (3, ["b"], [])
    code, text, _ = run("--renew")
    assert (code, "Nothing to do" in text) == (0, True)
    code, text, _ = run("--renew", "--force")
    assert (code, "fed-server.tar.gz" in text, made["fingerprint"] in text) == (0, True, True)
    assert shown(out)[0].serial == 3


def test_the_summary_holds_no_secret(run: Run, out: Path) -> None:
    text = run(*NEW, "--json")[1] + run("--add-site", "c")[1]
    assert set(private_files(out / "ca")) == {"ca.key", "roster.key"}
    for secret in private_files(out / "ca").values():
        assert secret.hex() not in text
    assert "PRIVATE" not in text


def bad_names() -> list[str]:
    wide = unicodedata.lookup("FULLWIDTH LATIN SMALL LETTER A")
    cyrillic = unicodedata.lookup("CYRILLIC SMALL LETTER A")
    return [
        *("", " ", ".", "..", "../x", "/etc", "a/b", "a\\b", "a.b", "A", "x" * 41, "-a", "a-"),
        *(
            wide,
            cyrillic,
            "é",
            "a\u200b",
            "a\u202e",
            "a\n",
            "a\x1b[31m",
            "a b",
            "server",
            "ca",
            "%41",
        ),
    ]


@pytest.mark.parametrize("name", bad_names(), ids=ascii)
def test_odd_names_are_one_clear_error_and_no_folder(name: str, run: Run, out: Path) -> None:
    site = ("--name", "fed", "--server", "h:1", "--site", "ok", "--site", name)
    federation = ("--name", name, "--server", "h:1", "--site", "a")
    for arguments in (site, federation) if name not in ("server", "ca") else (site,):
        _refused(run(*arguments), "cannot name")
        assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "server",
    ["", ":", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:8x", "host: 80",
     "host:080", "host:٨", "a b:80", "a..b:80", "-a:80", "a-:80", ".a:80", "a.:80", "A:80",
     "1.2.3:80",
     "1.2.3.256:80", "0x7f.1:80", "::1:80", "[::1]", "[::1:80", "[1::2::3]:80", "[fe80::1%eth0]:80",
     "http://h:80", "h/x:80", "h@x:80", "*.x:80", "ü.de:80", "h\n:80", "x" * 64 + ":80",
     "a." * 127 + "a:80"],
    ids=ascii,
)  # fmt: skip
def test_odd_servers_are_one_clear_error_and_no_folder(server: str, run: Run, out: Path) -> None:
    _refused(run("--name", "fed", "--server", server, "--site", "a"), "--server")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("server", "said"),
    [("fed.example.org:443", "fed.example.org:443"), ("[::1]:8443", "[::1]:8443"),
     ("10.0.0.7:1", "10.0.0.7:1"), ("localhost:65535", "localhost:65535"),
     ("xn--bcher-kva.example:80", "xn--bcher-kva.example:80")],
)  # fmt: skip
def test_names_and_addresses_are_taken(server: str, said: str, run: Run, out: Path) -> None:
    text = run("--name", "fed", "--server", server, "--site", "a", "--json")[1]
    assert json.loads(text)["server"] == said
    assert Bundle.read(archive(out, "a")).manifest.server == said


def test_mistakes_are_one_clear_error_and_leave_no_trace(run: Run, out: Path) -> None:
    part = ("--name", "fed", "--server", "h:1")
    missing = out.parent / "missing" / "fed"
    for arguments, said in (
        (part, "--site"),
        ((*part, "--site", "a", "--site", "a"), "twice"),
        (("--name", "fed", "--site", "a"), "--server"),
        ((*NEW, "--days", "0"), "--days"),
        ((*NEW, "--days", "9999"), "--days"),
        ((*NEW, "--add-site", "c"), "one thing"),
        ((), "one thing"),
        (("--add-site", "c", "--renew"), "one thing"),
        (("--add-site", "c", "--server", "h:1"), "belong to --name"),
        ((*NEW, "--force"), "--renew"),
        (("--add-site", "c"), "cannot open"),
        ((*NEW, "--config", out / "none.toml"), "none.toml"),
        ((*NEW, "--passphrase-file", out / "none"), "none"),
        (("--frobnicate",), "--help"),
    ):
        _refused(run(*arguments), said)
        assert list(out.parent.iterdir()) == []
    _refused(run(*NEW, to=missing), "not a folder")
    assert not missing.parent.exists()


def test_an_existing_folder_file_or_link_is_never_touched(run: Run, out: Path) -> None:
    out.mkdir()
    _refused(run(*NEW), "exists already")
    assert list(out.iterdir()) == []
    for change in (("--add-site", "c"), ("--revoke-site", "a"), ("--renew",)):
        _refused(run(*change), "not a federation")
    out.rmdir()
    out.symlink_to(out.parent / "nowhere")
    _refused(run(*NEW), "exists already")
    out.unlink()
    out.write_text("mine")
    _refused(run(*NEW), "exists already")
    _refused(run("--renew"), "cannot open")
    assert out.read_text() == "mine"
    out.unlink()
    assert run(*NEW)[0] == 0
    _refused(run(*NEW), "exists already")
    _refused(run("--revoke-site", "z"), "'z'")
    _refused(run("--add-site", "c", "--add-site", "c"), "twice")
    assert shown(out)[0].serial == 1


def test_without_the_ca_nothing_changes_and_the_hint_says_so(run: Run, out: Path) -> None:
    run(*NEW)
    (out / "ca").rename(out.parent / "safe")
    _refused(run("--add-site", "c"), "bring the ca folder back")
    (out.parent / "safe").rename(out / "ca")
    assert run("--add-site", "c")[0] == 0


def test_passphrases_by_file_seal_bundles_and_the_ca_apart(run: Run, out: Path) -> None:
    files = {name: out.parent / name for name in ("all", "ca", "a", "open", "empty")}
    for name, path in files.items():
        path.write_text("" if name == "empty" else f"secret of {name}\n")
        path.chmod(0o644 if name == "open" else 0o600)
    _refused(run(*NEW, "--passphrase-file", files["open"]), "chmod 600")
    _refused(run(*NEW, "--passphrase-file", files["empty"]), "empty")
    _refused(run(*NEW, "--passphrase-file", files["all"], "--passphrase-file", files["a"]), "two")
    assert not out.exists()
    given = [f"ca={files['ca']}", f"a={files['a']}", str(files["all"])]
    options = [part for value in given for part in ("--passphrase-file", value)]
    assert run(*NEW, *options)[0] == 0
    for party, secret in (("a", "a"), ("b", "all"), ("server", "all")):
        assert Bundle.read(archive(out, party)).unlocked(f"secret of {secret}").keys
    assert private_files(out) == {}
    _refused(run("--add-site", "c"), "ca=FILE")
    assert run("--add-site", "c", *options[:2], *options[4:])[0] == 0


def test_the_training_settings_reach_every_bundle(run: Run, out: Path) -> None:
    config = out.parent / "training.toml"
    config.write_text(TOML)
    assert run(*NEW, "--config", config)[0] == 0
    assert run("--add-site", "c")[0] == 0
    contracts = {Bundle.read(archive(out, p)).file("contract.json") for p in ("server", "a", "c")}
    (terms,) = [json.loads(text) for text in contracts]
    assert terms["backbone"] == "lenet"
    assert terms["training"]["rounds"] == 3
    assert terms["privacy"]["epsilon"] == 2.0
    assert terms["privacy"]["noise_multiplier"] > 0
    assert terms["privacy"]["public_denominator"] == 8.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("lenet", "nonet", "nonet"), ("epsilon = 2.0", "", "epsilon"), ("2.0", "-1.0", "epsilon"),
     ("seed = 0", "seed = 0\nspeed = 1", "speed"), ("public-negatives", "softmax", "softmax"),
     ('"adapter"', '"head"', "head"), ("[training]", "[training", "training.toml")],
)  # fmt: skip
def test_odd_training_settings_are_one_clear_error(
    old: str, new: str, said: str, run: Run, out: Path
) -> None:
    config = out.parent / "training.toml"
    config.write_text(TOML.replace(old, new))
    _refused(run(*NEW, "--config", config), said)
    assert list(out.parent.iterdir()) == [config]


def _refused(outcome: Outcome, said: str) -> None:
    code, text, err = outcome
    assert (code, text, err.count("\n")) == (2, "", 1), outcome
    assert err.startswith("veilface: ")
    assert said in err, err
    assert "Traceback" not in err
    assert err[:-1].isprintable(), "no control character reaches the terminal"
