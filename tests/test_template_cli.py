"""`veilface template` from the command line: a vault, a person, a decision, an erasure."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.picture import Picture
from client.vault import Vault
from client.vault_options import recogniser
from common.cli import main
from common.sealing import KeyFileLock

LFW = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "lfw" / "images"
needs_lfw = pytest.mark.skipif(not LFW.is_dir(), reason="LFW is not in ../shared")
Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]
PERSON = "Colin_Powell"


def image(number: int, person: str = PERSON) -> Path:
    return LFW / person / f"{person}_{number:04d}.jpg"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Run:
    """Run a sub-command on the vault of this test; return code, stdout and stderr."""
    monkeypatch.delenv("VEILFACE_PASSPHRASE", raising=False)

    def of(command: str, *arguments: object, key: str = "key") -> Outcome:
        place = ["--vault", tmp_path / "v" / "site.db", "--key-file", tmp_path / key]
        with pytest.raises(SystemExit) as exit_:
            main([str(part) for part in ("template", command, *place, *arguments)])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return of


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder of 60 other persons with two images each."""
    root = tmp_path / "public"
    chosen = [p for p in sorted(LFW.iterdir()) if p.is_dir() and p.name != PERSON]
    for person in [p for p in chosen if len(list(p.iterdir())) >= 2][::25][:60]:
        (root / person.name).mkdir(parents=True)
        for file in sorted(person.iterdir())[:2]:
            (root / person.name / file.name).symlink_to(file)
    return root


@needs_lfw
def test_a_walk_from_an_empty_vault_to_an_erased_person(
    run: Run, tmp_path: Path, public: Path
) -> None:
    assert run("init")[0] == 0
    code, out, err = run("enrol", PERSON, image(1), image(2), "--force", "--json")
    assert code == 0, err
    pseudonym = json.loads(out)["pseudonym"]
    assert PERSON not in out
    copied = shutil.copytree(public, tmp_path / "copied")
    code, out, err = run(
        "calibrate", "--data", copied, "--fmr", 1e-3, "--fpir", 0.06, "--cache", tmp_path / "c",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["verify"]["low"] <= 1e-3 * 2
    assert 0.8 < found["identify"]["value"] < 1.0

    code, out, _ = run("verify", PERSON, image(4))
    assert (code, out.split(":")[0]) == (0, "accepted")
    code, out, _ = run("verify", PERSON, image(1, "Serena_Williams"))
    assert (code, out.split(":")[0]) == (1, "rejected")
    code, out, _ = run("identify", image(5), "--json")
    assert code == 0
    assert json.loads(out)["accepted"]["pseudonym"] == pseudonym
    code, out, _ = run("identify", image(1, "Hugo_Chavez"))
    assert code == 1
    assert "nobody of this vault" in out

    assert pseudonym in run("list")[1]
    for place in (tmp_path / "missing" / "receipt.json", tmp_path):
        code, out, err = run("erase", PERSON, "--receipt", place)
        assert (code, out) == (2, "")
        assert "nobody was erased" in err
    code, out, _ = run("erase", PERSON, "--receipt", tmp_path / "receipt.json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "receipt.json").read_text())
    assert PERSON not in out
    assert run("receipt", PERSON)[1] == out
    assert run("receipt", "nobody")[0] == 2
    assert run("verify", PERSON, image(4))[0] == 2
    code, out, _ = run("log", "--json")
    assert [entry["operation"] for entry in json.loads(out)["entries"]][:2] == ["enrol", "verify"]
    assert PERSON not in out
    with pytest.raises(SystemExit) as exit_:
        main(["ledger", "verify", str(tmp_path / "v" / "site.db")])
    assert exit_.value.code == 0


class FullDisk(io.StringIO):
    """What a shell's `> file` gives on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@needs_lfw
def test_a_receipt_that_cannot_be_printed_is_still_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    pseudonym = json.loads(run("enrol", PERSON, image(1), "--force", "--json")[1])["pseudonym"]
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", FullDisk())
        code, _, err = run("erase", PERSON, "--receipt", tmp_path / "receipt.json")
    assert (code, err.count("\n")) == (1, 1)
    assert pseudonym in (tmp_path / "receipt.json").read_text()


def test_an_operation_that_was_taken_out_of_the_log_is_found(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("init")
    for _ in range(3):
        run("renew")
    with sqlite3.connect(tmp_path / "v" / "site.db") as database:
        (table,) = database.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%log%'"
        ).fetchone()
        (middle,) = database.execute(
            f"SELECT id FROM {table} ORDER BY id LIMIT 1 OFFSET 1"
        ).fetchone()
        database.execute(f"DELETE FROM {table} WHERE id = ?", (middle,))
    with pytest.raises(SystemExit) as exit_:
        main(["ledger", "verify", str(tmp_path / "v" / "site.db")])
    assert exit_.value.code == 3
    assert "operation log" in capsys.readouterr().err
    assert run("log")[0] == 3


@needs_lfw
def test_the_key_can_be_changed_and_the_old_one_opens_nothing(run: Run, tmp_path: Path) -> None:
    run("init")
    run("enrol", PERSON, image(1), "--force")
    assert run("rotate-key", "--new-key-file", tmp_path / "new")[0] == 0
    code, _, err = run("list")
    assert code == 3
    assert "key" in err
    assert "1 person, 1 template" in run("list", key="new")[1]


def test_no_pseudonym_is_cut_off_in_a_pipe_or_on_a_narrow_screen(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("init")
    with Vault.open(str(tmp_path / "v" / "site.db"), KeyFileLock(tmp_path / "key")) as vault:
        row = np.eye(vault.info.dim, dtype=np.float32)[:1]
        pseudonym = vault.enrol("ann", row, model_id=vault.info.model_id)
    monkeypatch.delenv("COLUMNS", raising=False)  # whoever runs the tests may have set it
    for command in ("log", "list"):
        assert pseudonym in run(command)[1]
    monkeypatch.setenv("COLUMNS", "40")
    for command in ("log", "list"):
        out = run(command)[1]
        assert "\u2026" not in out
        rows = [[cell.strip() for cell in re.split("[\u2502\u2503]", x)] for x in out.splitlines()]
        cells = ["".join(column) for column in zip_longest(*rows, fillvalue="")]
        assert any(pseudonym in cell for cell in cells), out


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("list", (), "does not exist|no vault|cannot"),
        ("enrol", ("x", "no-such.jpg"), "does not exist|no vault|cannot"),
        ("calibrate", ("--data", "x"), "choose a rate"),
        ("calibrate", ("--data", "x", "--fmr", "nan"), "--fmr must lie between"),
        ("calibrate", ("--data", "x", "--fpir", "1"), "--fpir must lie between"),
        ("calibrate", ("--data", "x", "--fmr", "1e-300"), "--fmr must lie between"),
        ("calibrate", ("--data", "x", "--fmr", ".1", "--gallery", "9"), "belongs to --fpir"),
        ("init", ("--yunet", __file__), "not a YuNet model"),
        ("rotate-key", (), "opens the vault from now on"),
        ("identify", ("x.jpg", "--top", "0"), "--top"),
    ],
)
def test_a_wrong_command_is_one_line(
    run: Run, command: str, arguments: tuple[object, ...], words: str
) -> None:
    code, out, err = run(command, *arguments)
    assert code == 2
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert any(word in err for word in words.split("|")), err


def test_a_vault_that_is_there_stays_and_no_key_is_made_for_it(run: Run, tmp_path: Path) -> None:
    assert run("init")[0] == 0
    code, out, err = run("init", key="another")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "exists already" in err
    assert not (tmp_path / "another").exists()
    assert run("list")[0] == 0


def test_an_empty_file_is_no_vault_and_stays_empty(run: Run, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "site.db").touch()
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "key").chmod(0o600)
    code, _, err = run("list")
    assert code == 2
    assert "there is no vault" in err
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["site.db"]
    assert not (tmp_path / "v" / "site.db").stat().st_size


def test_a_device_without_end_is_no_picture(run: Run) -> None:
    assert run("init")[0] == 0
    code, out, err = run("verify", "ann", "/dev/zero")
    assert (code, out) == (2, "")
    assert "not a regular file" in err


def test_migrating_says_in_words_what_happened_and_warns_of_random_weights(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("init")[0] == 0
    backup = ("--backup", tmp_path / "backup")
    code, out, _ = run("migrate", "--backbone", "lenet", "--yes", *backup)
    assert code == 0
    assert out.splitlines()[0].startswith("Not measured: the vault keeps no pictures")
    assert out.splitlines()[-1] == "the vault's network is lenet: 0 persons moved"
    assert "lenet has random weights" in caplog.text
    code, out, _ = run("migrate", "--backbone", "lenet", "--yes", *backup)
    assert code == 0, "the same command goes on with a move that was stopped"


def test_no_move_without_a_backup_and_a_yes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("init")[0] == 0
    before, backup = run("list", "--json")[1], tmp_path / "backup"
    code, _, err = run("migrate", "--backbone", "lenet", "--yes")
    assert code == 2 and "--backup" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("migrate", "--backbone", "lenet", "--backup", backup)[0] == 130
    assert run("migrate", "--backbone", "lenet", "--dry-run")[0] == 0
    assert run("migrate", "--back", "--yes", "--backup", backup)[0] == 2, "no other network"
    backup.write_text("somebody's")
    assert run("migrate", "--backbone", "lenet", "--yes", "--backup", backup)[0] == 2
    assert run("list", "--json")[1] == before and backup.read_text() == "somebody's"


WEIGHTS = LFW.parents[2] / "weights" / "mobilefacenet_foamliu.pt"


@needs_lfw
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the MobileFaceNet weights are not in ../shared")
def test_a_move_to_a_worse_network_is_measured_and_refused_and_a_forced_one_can_be_undone(
    run: Run, tmp_path: Path, public: Path
) -> None:
    assert run("init", "--backbone", "mobilefacenet", "--weights", WEIGHTS, "--keep-chips")[0] == 0
    path, key = tmp_path / "v" / "site.db", tmp_path / "key"
    people = sorted(public.iterdir())[:30]
    with Vault.open(str(path), KeyFileLock(key)) as vault:
        engine = recogniser(vault)
        for person in people:
            pictures = [Picture(f.name, f.read_bytes()) for f in sorted(person.iterdir())]
            engine.enrol(person.name, pictures, force=True)
        before = vault.gallery()
    backup, second = tmp_path / "backup", tmp_path / "second"
    listed = run("list", "--json")[1]
    code, out, _ = run("migrate", "--backbone", "lenet", "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and told["moves"] == 30 and told["measured"]["persons"] == 30
    assert told["measured"]["verdict"] == "worse"
    assert told["measured"]["before"]["tmr_at_fmr_1e-2"] > 0.8
    code, out, err = run("migrate", "--backbone", "lenet", "--yes", "--backup", backup)
    assert code == 3 and "worse on this site's own faces" in err and "WORSE" in out
    assert run("list", "--json")[1] == listed and not backup.exists()

    code, out, _ = run("migrate", "--backbone", "lenet", "--yes", "--force", "--backup", backup)
    assert code == 0 and "30 persons moved" in out
    lock = KeyFileLock(key)
    with Vault.import_(backup, lock, str(tmp_path / "v" / "from-backup.db"), lock) as vault:
        np.testing.assert_array_equal(vault.gallery().vectors, before.vectors)
    code, out, err = run("migrate", "--back", "--yes", "--backup", second)
    assert code == 0 and "is better" in out, err
    with Vault.open(str(path), lock) as vault:
        for name in (person.name for person in people):
            number = before.pseudonyms.index(vault.pseudonym(name))
            held = before.vectors[before.owners == number]
            np.testing.assert_allclose(vault.templates(name), held, atol=1e-4)


@needs_lfw
def test_pictures_that_were_cut_for_another_network_are_not_given_to_a_new_one(
    run: Run, tmp_path: Path, public: Path
) -> None:
    """150 pixels by dlib's corners of the eyes are no 112 pixels by the centres of the eyes."""
    assert run("init", "--keep-chips")[0] == 0
    assert run("enrol", PERSON, image(1), image(2), "--force")[0] == 0
    data = shutil.copytree(public, tmp_path / "copied")
    code, out, _ = run("migrate", "--backbone", "lenet", "--data", data, "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and (told["moves"], len(told["must_enrol"])) == (0, 1)
    assert told["measured"]["verdict"] == "worse" and told["measured"]["persons"] > 50
    arguments = ("--backbone", "lenet", "--yes", "--backup", tmp_path / "b", "--json")
    code, out, _ = run("migrate", *arguments)
    assert code == 0 and json.loads(out)["migrated"] == []
    assert len(json.loads(out)["must_enrol"]) == 1


def test_two_keys_at_once_or_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VEILFACE_PASSPHRASE", raising=False)
    base = ["template", "list", "--vault", str(tmp_path / "v.db")]
    for extra, words in (
        (["--key-file", "a", "--passphrase-file", "b"], "give one of"),
        ([], "needs a key"),
        (["--transit", "nonsense"], "URL/KEY-NAME"),
        (["--passphrase-file", str(tmp_path / "none")], "cannot read"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*base, *extra])
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err


def test_too_few_persons_for_a_rate_are_refused_before_faces_are_looked_for(
    run: Run, tmp_path: Path
) -> None:
    for person in ("ann", "ben"):
        (tmp_path / "data" / person).mkdir(parents=True)
        (tmp_path / "data" / person / "1.jpg").write_text(f"no picture of {person}")
    assert run("init")[0] == 0
    code, _, err = run("calibrate", "--data", tmp_path / "data", "--fpir", 0.01, "--gallery", 100)
    assert code == 2 and "2 persons cannot show an FPIR of 0.01" in err and "takes 400" in err


def test_a_vault_whose_witness_is_gone_takes_an_explicit_word(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "v" / "site.db", KeyFileLock.create(tmp_path / "key")
    Vault.create(str(path), lock, model_id="m", dim=16).close()
    path.with_name("site.db.head").unlink()
    code, _, err = run("list")
    assert code == 3 and "template trust" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("trust")[0] == 130 and run("list")[0] == 3
    code, out, _ = run("trust", "--yes")
    assert code == 0 and "0 persons" in out and "never used" in out
    assert run("list")[0] == 0
