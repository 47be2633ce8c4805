"""Sites and server killed at every message and every write: the right sum, or none."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import pytest
from flwr.app import Message

from common.ledger import verify
from server.rounds import RoundFailed
from tests.masking_rig import names_of
from tests.secagg_rig import Kill, Killed, Rig, check_sums, contract

KINDS = ("query.prepare", "train.mask", "query.confirm", "query.unmask")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here: hundreds of rounds need not wait for the disk at each step."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def spent_once(rig: Rig) -> None:
    """Every ledger holds, and has one reservation a round at most."""
    for name in names_of(rig.count):
        if (rig.folder / name / "ledger.jsonl").exists():
            report = verify(rig.folder / name)
            assert report.ok
            rounds = [r.round for r in report.reservations]
            assert len(rounds) == len(set(rounds))


def test_without_a_fault_every_round_is_the_sum_of_all_sites(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 5, contract(4))
    assert check_sums(rig.run(), rig) == (5, 5)
    for name in names_of(5):
        assert not list((tmp_path / name).glob("masking/*")), "the run's key goes with the run"
        assert not list((tmp_path / name).glob("*.key"))
    assert not (tmp_path / "masked-round.json").exists()


def test_one_site_killed_at_any_message_costs_its_update_and_no_more(tmp_path: Path) -> None:
    for number, kill in enumerate(Kill(*one) for one in product((0, 3), KINDS, (False, True))):
        rig = Rig(tmp_path / str(number), 5, contract(4, rounds=1))
        (accepted,) = check_sums(rig.run(kill), rig)
        late = kill.kind in ("query.confirm", "query.unmask")
        assert accepted == (5 if late else 4), kill
        spent_once(rig)


def test_two_sites_killed_at_any_messages_end_in_the_right_sum(tmp_path: Path) -> None:
    """Five sites of which two may be missing; both stay away from where they died."""
    points = list(product(KINDS[1:], (False, True)))
    for number, (one, two) in enumerate(product(points, points)):
        rig = Rig(tmp_path / str(number), 5, contract(3, rounds=1))
        done = rig.run(Kill(2, *one), Kill(4, *two))
        (accepted,) = check_sums(done, rig)
        assert accepted >= 3
        spent_once(rig)


def test_more_sites_killed_than_may_be_missing_stop_the_round_which_is_redone(
    tmp_path: Path,
) -> None:
    points = list(product(KINDS[1:], (False, True)))
    ends = set()
    for number, (one, two) in enumerate(combinations(points, 2)):
        rig = Rig(tmp_path / str(number), 5, contract(4, rounds=2))
        kills = (Kill(1, *one), Kill(2, *two))
        try:
            rig.run(*kills)
        except RoundFailed as failed:
            assert "4 needed" in failed.message
            ends.add("stopped")
        done = rig.finish()
        accepted = check_sums(done, rig)
        assert all(count in (0, 4, 5) for count in accepted)
        assert sum(accepted) >= 8, "what was stopped was redone"
        spent_once(rig)
    assert ends == {"stopped"}


@pytest.mark.parametrize("missing", [(), (Kill(1, "train.mask", False),)])
def test_a_server_killed_at_any_message_goes_on_to_the_right_sums(
    tmp_path: Path, missing: tuple[Kill, ...]
) -> None:
    survived = set()
    for at in range(1, 30):
        rig = Rig(tmp_path / str(at), 4, contract(3, rounds=2))
        left = [at]

        def server(message: Message, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        try:
            rig.run(*missing, server=server)
            break
        except Killed:
            accepted = check_sums(rig.finish(), rig)
            assert all(count in (3, 4) for count in accepted), (at, accepted)
            survived.add(at)
        spent_once(rig)
    assert len(survived) >= 24


def test_a_site_killed_at_any_write_to_its_disk_answers_the_same_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four sites have to survive, so the round is redone with the one that was killed."""
    killed = 0
    for at in range(1, 60):
        rig = Rig(tmp_path / str(at), 4, contract(4, rounds=1))
        left = [at]

        def fsync(descriptor: int, left: list[int] = left, at: int = at) -> None:
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            if f"/{at}/s002" in path:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", fsync)
            try:
                rig.run()
            except RoundFailed:
                killed += 1
            else:
                break
        assert check_sums(rig.finish(), rig) == (4,), at
        spent_once(rig)
    assert killed >= 10, "there are that many writes in a round"
