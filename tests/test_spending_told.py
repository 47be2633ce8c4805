"""What a server tells that its sites may have spent: never less than they have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import InputError
from common.plan import epsilon_after
from server.deployment.folder import Contacts, Progress, RunFolder, ServerFolder, SiteContact
from server.deployment.journal import Journal
from server.exchange import SILENT
from tests.deployment_rig import command
from tests.front_rig import federation
from tests.server_run_rig import NORTH, SOUTH, ask, carry, contract, meet, record, terms

ROUNDS, LATE = 8, 13
TERMS = terms(ROUNDS)
NAMES = {NORTH: "a", SOUTH: "b", LATE: "late"}


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    found = ServerFolder(tmp_path)
    meet(found)
    return found


@pytest.fixture
def run(folder: ServerFolder) -> RunFolder:
    return ask(folder, "run", ROUNDS, "2026-11-24T10:00:00Z")


def begun(folder: ServerFolder, run: RunFolder, rounds: int) -> Journal:
    """A coordinator that has played rounds of a run with sites a and b."""
    journal = Journal(folder, run)
    journal.begin(contract(run.name, TERMS))
    for round_ in range(1, rounds + 1):
        journal.counted({NORTH: "a", SOUTH: "b"})
        journal.round_started(round_, (NORTH, SOUTH))
        journal.round_finished(record(round_))
    carry(folder, run, map(record, range(1, rounds + 1)))
    return journal


def told(run: RunFolder) -> Progress:
    found = run.progress()
    assert found is not None
    return found


def shares(run: RunFolder) -> dict[str, float]:
    return {site.site: site.epsilon for site in told(run).sites}


def cost(rounds: int) -> float:
    return epsilon_after(contract("run", TERMS), rounds)


@pytest.mark.parametrize("how", ["cancelled", "failed", "waiting"])
def test_a_round_that_was_broken_off_is_counted_for_all_who_were_asked(
    folder: ServerFolder, run: RunFolder, how: str
) -> None:
    journal = begun(folder, run, 2)
    journal.counted({NORTH: "a", LATE: "late"})
    journal.round_started(3, (NORTH, LATE))
    journal.end(how, "by the operator")  # type: ignore[arg-type]
    assert shares(run) == {"a": cost(3), "b": cost(2), "late": cost(1)}
    assert told(run).epsilon == cost(3) > cost(2) > cost(1) > 0
    assert [(site.asked, site.accepted) for site in told(run).sites] == [(2, 2), (2, 2), (0, 0)]


def test_it_is_counted_from_before_anyone_is_asked_and_outlives_a_power_cut(
    folder: ServerFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        "os.fsync", lambda open_: synced.append(str(Path(f"/proc/self/fd/{open_}").readlink()))
    )
    journal = begun(folder, run, 0)
    assert told(run).epsilon == 0.0
    journal.counted({NORTH: "a"})
    synced.clear()
    journal.round_started(1, (NORTH,))
    assert shares(run) == {"a": cost(1)} and told(run).epsilon == cost(1)
    for name in ("asked.json", "progress.json"):
        assert any(name in path for path in synced), f"{name} is on the disk"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_site_that_was_gone_when_its_round_was_played_again_has_still_spent_on_it(
    folder: ServerFolder, run: RunFolder, restarted: bool
) -> None:
    journal = begun(folder, run, 2)
    journal.counted(NAMES)
    journal.round_started(3, (NORTH, SOUTH))
    if restarted:
        journal = Journal(folder, run)
        journal.begin(contract(run.name, TERMS))
    journal.round_started(3, (NORTH,))
    journal.round_finished(replace(record(3), asked=(NORTH,)))
    assert shares(run) == {"a": cost(3), "b": cost(3)}
    assert [(site.asked, site.accepted) for site in told(run).sites] == [(3, 3), (3, 2)]


def test_a_site_that_was_there_but_not_asked_after_all_has_spent_nothing(
    folder: ServerFolder, run: RunFolder
) -> None:
    journal = begun(folder, run, 1)
    journal.counted(NAMES)
    journal.round_started(2, (NORTH, LATE))
    assert shares(run)["late"] == cost(1)
    journal.round_finished(
        replace(record(2), asked=(NORTH,), rejected=((LATE, "refused: budget"),))
    )
    assert shares(run) == {"a": cost(2), "b": cost(1), "late": 0.0}
    assert told(run).sites[2].rejections == {"budget": 1}


def test_a_site_whose_later_answer_was_not_used_was_used_all_the_same(
    folder: ServerFolder, run: RunFolder
) -> None:
    """A masked update is in the sum even where its site is silent or complains afterwards."""
    journal = begun(folder, run, 1)
    journal.round_started(2, (NORTH, SOUTH))
    late = replace(record(2), accepted=2, rejected=((SOUTH, SILENT),), used=(NORTH, SOUTH))
    journal.round_finished(late)
    assert [(site.accepted, site.refused, site.rejections) for site in told(run).sites] == [
        (2, "", {}), (2, "", {}),
    ]  # fmt: skip


def test_the_last_answer_of_a_site_is_not_forgotten_once_it_is_gone(
    folder: ServerFolder, run: RunFolder
) -> None:
    journal = begun(folder, run, 1)
    for round_, asked in ((2, (NORTH, SOUTH)), (3, (NORTH,))):
        journal.round_started(round_, asked)
        why = ((SOUTH, "refused: data"),) if round_ == 2 else ()
        journal.round_finished(replace(record(round_), asked=asked, rejected=why, accepted=1))
    assert [site.refused for site in told(run).sites] == ["", "refused: data"]


def test_a_list_of_sites_that_a_power_cut_damaged_fails_no_run(
    folder: ServerFolder, run: RunFolder
) -> None:
    begun(folder, run, 2)
    (folder.path / "sites.json").write_text("")
    Journal(folder, run).begin(contract(run.name, TERMS))
    assert told(run).state == "running" and shares(run).keys() == {"a", "b"}


def test_a_site_is_one_site_under_every_id_that_it_has_had(
    folder: ServerFolder, run: RunFolder
) -> None:
    begun(folder, run, 2)
    heard = "2026-11-24T10:00:00Z"
    folder.keep_contacts(Contacts(heard, (SiteContact("a", "online", heard, 77),)))
    journal = Journal(folder, run)
    journal.begin(contract(run.name, TERMS))
    journal.counted({77: "a", 78: "b"})
    journal.round_started(3, (77, 78))
    journal.round_finished(replace(record(3), asked=(77, 78)))
    assert shares(run) == {"a": cost(3), "b": cost(3)}
    assert [(site.site, site.asked, site.accepted) for site in told(run).sites] == [
        ("a", 3, 3), ("b", 3, 3),
    ]  # fmt: skip


def test_without_its_list_a_run_counts_one_round_more_and_with_a_damaged_one_it_stops(
    folder: ServerFolder, run: RunFolder
) -> None:
    begun(folder, run, 2)
    run.asked.unlink()
    Journal(folder, run).begin(contract(run.name, TERMS))
    assert shares(run) == {"a": cost(3), "b": cost(3)}
    for damaged in (
        "",
        "{}",
        '{"names":{"x":"a"},"rounds":{}}',
        '{"names":{},"rounds":{"a":["1"]}}',
    ):
        run.asked.write_text(damaged)
        with pytest.raises(InputError, match=r"asked\.json"):
            Journal(folder, run).begin(contract(run.name, TERMS))


def test_a_run_that_cannot_be_taken_up_keeps_what_was_told_of_its_spending(
    folder: ServerFolder, run: RunFolder
) -> None:
    begun(folder, run, 4)
    run.checkpoint.write_bytes(b"no checkpoint")
    before, journal = told(run), Journal(folder, run)
    with pytest.raises(InputError):
        journal.begin(contract(run.name, TERMS))
    journal.end("failed", "it is damaged")
    after = told(run)
    assert (after.state, after.why) == ("failed", "it is damaged")
    assert (after.epsilon, after.sites) == (before.epsilon, before.sites)
    assert after.epsilon == cost(4)


def test_a_damaged_checkpoint_hides_no_other_run(tmp_path: Path) -> None:
    folder = ServerFolder(federation(tmp_path).folder)
    meet(folder)
    for hour, name in enumerate(("good", "bad")):
        run = ask(folder, name, 9, f"2026-11-24T0{hour}:00:00Z")
        carry(folder, run, [record(1), record(2)])
    run.checkpoint.write_bytes(b"no checkpoint")
    done = command("server", "status", "--state", folder.path, "--json")
    runs = json.loads(done.out)["runs"]
    assert len(runs["good"]["versions"]) == 2 and runs["bad"]["versions"] is None
    assert runs["bad"]["epsilon"] > 0 and str(run.checkpoint) in done.err
    (run.path / "progress.json").write_text("")
    refused = command("server", "status", "--state", folder.path)
    assert (refused.code, f"{run.path}/progress.json is not JSON" in refused.err) == (2, True)
