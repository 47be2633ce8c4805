"""`veilface ledger` end to end: what was spent, in words and JSON, and damage is exit 3."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.consent import SitePolicy
from common.cli import main
from common.ledger import Genesis, Ledger
from common.spending import spent

Run = Callable[..., tuple[int, str, str]]
DELTA, BUDGET = 1e-4, 4.0


def site(directory: Path, rounds: int = 2, private: bool = True) -> Path:
    """A site's state folder: all rounds reserved, the last one not committed."""
    Ledger.create(directory, Genesis(delta=DELTA, epsilon=BUDGET))
    with Ledger.open(directory) as ledger:
        for round_ in range(1, rounds + 1):
            reservation = ledger.reserve(
                run_id="a-run-with-quite-a-long-name",
                round=round_,
                noise_multiplier=6.0,
                sample_rate=1.0,
                steps=3,
                max_grad_norm=0.5,
                request_digest=f"request {round_}",
                private=private,
                check=lambda reservations: None,
            )
            if round_ < rounds:
                ledger.commit(reservation, f"release {round_}")
    return directory


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    for name in ("site-000", "site-001"):
        site(tmp_path / "run" / "sites" / name)
    (tmp_path / "run" / "sites" / "notes.txt").write_text("not a site")
    return tmp_path / "run"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `veilface ledger ...` and return its exit code, stdout and stderr."""

    def of(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["ledger", *map(str, arguments)])
        printed = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, printed.out, printed.err

    return of


def damage(directory: Path) -> None:
    path = directory / Ledger.FILE_NAME
    path.write_bytes(path.read_bytes().replace(b'"steps":3', b'"steps":1', 1))


def test_a_whole_run_is_verified_in_one_line_a_ledger(run: Run, run_folder: Path) -> None:
    code, out, err = run("verify", run_folder)
    assert (code, err) == (0, "")
    assert [line.rsplit(": ", 1)[1] for line in out.splitlines()] == ["ok, 2 rounds reserved"] * 2
    assert "site-000" in out and "site-001" in out


@pytest.mark.parametrize("part", [".", Ledger.FILE_NAME])
def test_a_state_folder_and_a_ledger_file_name_the_same_ledger(
    run: Run, tmp_path: Path, part: str
) -> None:
    code, out, _ = run("verify", site(tmp_path / "state") / part)
    assert code == 0
    assert out == f"{tmp_path / 'state'}: ok, 2 rounds reserved\n"


def test_a_damaged_ledger_is_named_on_stderr_and_exits_with_3(run: Run, run_folder: Path) -> None:
    damage(run_folder / "sites" / "site-001")
    code, out, err = run("verify", run_folder)
    assert code == 3
    assert "site-000: ok" in out and "site-001" not in out
    finding, summary = err.splitlines()
    assert "site-001: line 2:" in finding
    assert summary.startswith("veilface: 1 of 2 ledgers do not hold")

    code, out, _ = run("verify", run_folder, "--json")
    found = json.loads(out)
    assert code == 3 and found["ok"] is False
    counts = [len(texts) for _, texts in sorted(found["findings"].items())]
    assert counts == [0, 1]

    code, out, err = run("show", run_folder)
    assert (code, out) == (3, ""), "nothing is stated that cannot be relied on"
    assert "site-001" in err


def test_a_ledger_whose_file_is_gone_is_damage_not_absence(run: Run, run_folder: Path) -> None:
    (run_folder / "sites" / "site-000" / Ledger.FILE_NAME).unlink()
    code, _, err = run("verify", run_folder)
    assert code == 3
    assert "ledger.jsonl is gone" in err


@pytest.mark.parametrize("command", ["show", "verify"])
def test_no_path_or_no_ledger_there_is_one_line_and_exit_2(
    run: Run, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file", tmp_path / "ledger.jsonl"):
        code, out, err = run(command, path)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert str(path) in err


def test_show_states_epsilon_with_its_delta_and_adjacency(run: Run, tmp_path: Path) -> None:
    code, out, err = run("show", site(tmp_path / "state", rounds=2))
    assert (code, err) == (0, "")
    with Ledger.open(tmp_path / "state") as ledger:
        one, both = spent(ledger.reservations[:1], DELTA), spent(ledger.reservations, DELTA)
    flat = " ".join(out.split())
    assert f"epsilon {both:.4f} spent of 4, {BUDGET - both:.4f} remaining" in flat
    assert "delta 0.0001, for a person added or removed" in flat
    rows = [line for line in out.splitlines() if "6.0000" in line]
    assert f"{one:.4f}" in rows[0] and "no (spent)" not in rows[0]
    assert f"{both:.4f}" in rows[1] and "no (spent)" in rows[1]


def test_the_json_of_show_holds_every_round_and_nothing_else(run: Run, run_folder: Path) -> None:
    code, out, err = run("show", run_folder, "--json")
    assert (code, err) == (0, "")
    ledgers = json.loads(out)["ledgers"]
    assert [Path(entry["path"]).name for entry in ledgers] == ["site-000", "site-001"]
    shown = ledgers[0]
    assert (shown["delta"], shown["adjacency"]) == (DELTA, "add-remove-one")
    assert shown["spent_epsilon"] + shown["remaining_epsilon"] == pytest.approx(BUDGET)
    assert shown["not_private"] is False
    assert [entry["committed"] for entry in shown["rounds"]] == [True, False]
    assert shown["rounds"][-1]["epsilon"] == shown["spent_epsilon"]
    assert shown["rounds"][0]["epsilon"] < shown["spent_epsilon"]


def test_what_is_not_private_is_infinite_and_never_a_number(run: Run, tmp_path: Path) -> None:
    state = site(tmp_path / "state", private=False)
    code, out, _ = run("show", state)
    assert code == 0
    assert "epsilon infinite (not private) spent of 4, 0.0000 remaining" in " ".join(out.split())
    code, out, _ = run("show", state, "--json")
    shown = json.loads(out)["ledgers"][0]
    assert code == 0
    assert shown["not_private"] is True
    assert shown["spent_epsilon"] is None
    assert [entry["epsilon"] for entry in shown["rounds"]] == [None, None]


def test_an_untouched_ledger_has_spent_nothing(run: Run, tmp_path: Path) -> None:
    Ledger.create(tmp_path / "new", Genesis(delta=DELTA, epsilon=BUDGET))
    _, out, _ = run("show", tmp_path / "new", "--json")
    shown = json.loads(out)["ledgers"][0]
    assert (shown["spent_epsilon"], shown["remaining_epsilon"]) == (0.0, BUDGET)
    assert shown["rounds"] == [] and shown["not_private"] is False


def test_a_look_at_a_ledger_loads_no_torch() -> None:
    code = "import sys, client.ledger_cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("rounds", [2, 3, 5, 7])
def test_no_line_says_less_than_was_spent_or_more_than_is_left(
    tmp_path: Path, run: Run, rounds: int
) -> None:
    state = site(tmp_path / "s", rounds)
    ((_, printed, _), (_, exact, _)) = run("show", state), run("show", state, "--json")
    (found,) = json.loads(exact)["ledgers"]
    spent_of, left = re.findall(r"epsilon ([\d.]+) spent of 4, ([\d.]+) remaining", printed)[0]
    assert found["spent_epsilon"] <= float(spent_of) < found["spent_epsilon"] + 1e-4
    assert found["remaining_epsilon"] - 1e-4 < float(left) <= found["remaining_epsilon"]


def test_the_status_of_a_site_with_a_damaged_ledger_states_no_epsilon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can still be read of it is less than what was spent."""
    state = site(tmp_path / "s")
    policy = SitePolicy(("lenet",), BUDGET, DELTA, BUDGET, 9, ("local",), 0, 0, ("0" * 64,))
    (state / "policy.toml").write_text(policy.to_toml())

    def status(*more: str) -> str:
        with pytest.raises(SystemExit):
            main(["site", "status", "--state", str(state), *more])
        return capsys.readouterr().out

    whole = json.loads(status("--json"))["epsilon_spent"]
    assert f"epsilon spent {math.ceil(1e4 * whole) / 1e4:.4f} of 4" in status()
    lines = (state / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (state / "ledger.jsonl").write_bytes(b"".join(lines[:2]))
    assert "epsilon spent unknown of 4" in status()
    damaged = json.loads(status("--json"))
    assert (damaged["epsilon_spent"], damaged["epsilon_left"]) == (None, None)
