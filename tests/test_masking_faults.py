"""Every site killed at every stage: the right sum over the survivors, or a named refusal."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from common.errors import Refused
from common.masking import SumOverSites, Terms
from tests.masking_rig import (
    STAGES,
    Federation,
    names_of,
    plain_sum,
)

Kill = tuple[str, str]


def run(folder: Path, count: int, terms: Terms, kills: tuple[Kill, ...]) -> SumOverSites:
    """Run one round in which each killed site answers no stage from its own on."""

    def alive(site: str, stage: str) -> bool:
        return all(
            site != dead or STAGES.index(stage) < STAGES.index(since) for dead, since in kills
        )

    found, rejected = Federation(folder, names_of(count), terms).run(alive)
    assert rejected == []
    return found


def outcome(folder: Path, count: int, terms: Terms, kills: tuple[Kill, ...]) -> str:
    """Return "sum" or "refused", after checking that a sum is the survivors' and exact."""
    dead = {site for site, _ in kills}
    before_update = {site for site, stage in kills if stage == "update"}
    try:
        found = run(folder, count, terms, kills)
    except Refused as refusal:
        assert "fewest" in refusal.message or "shares of" in refusal.message
        return "refused"
    assert np.array_equal(found.total, plain_sum(found.survivors))
    assert set(found.survivors) >= set(names_of(count)) - dead
    assert not set(found.survivors) & before_update
    assert len(found.survivors) >= terms.minimum
    return "sum"


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here: a hundred rounds need not wait for the disk at each step."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize(
    ("count", "terms"), [(5, Terms(4, 1)), (6, Terms(4, 0)), (7, Terms(6, 1)), (8, Terms(6, 2))]
)
def test_one_or_two_sites_killed_at_any_stage_give_the_right_sum_or_a_refusal(
    tmp_path: Path, count: int, terms: Terms
) -> None:
    every = list(product(names_of(count), STAGES))
    pairs = [pair for pair in combinations(every, 2) if pair[0][0] != pair[1][0]]
    # By symmetry of the protocol the first site stands for all, but for its place in the order.
    chosen = [pair for pair in pairs if pair[0][0] == "s000" or count == 5]
    cases: list[tuple[Kill, ...]] = [(), *((kill,) for kill in every), *chosen]
    for number, kills in enumerate(cases):
        ended = outcome(tmp_path / str(number), count, terms, kills)
        assert ended == ("sum" if len(kills) <= count - terms.minimum else "refused"), kills


@pytest.mark.usefixtures("quick_disk")
def test_at_the_edge_of_the_threshold_one_more_missing_site_is_a_refusal(tmp_path: Path) -> None:
    terms, names = Terms(5, 0), names_of(7)
    for number, stages in enumerate(product(STAGES, repeat=3)):
        kills = tuple(zip(names, stages, strict=False))
        assert outcome(tmp_path / f"{number} two", 7, terms, kills[:2]) == "sum"
        assert outcome(tmp_path / f"{number} three", 7, terms, kills) == "refused"


def test_a_server_that_forgot_a_round_gets_the_same_sum_again_and_no_other(tmp_path: Path) -> None:
    federation = Federation(tmp_path, names_of(6), Terms(4, 0))
    first, _ = federation.run(lambda site, stage: site != "s005")
    again, _ = federation.run(lambda site, stage: site != "s005")
    assert np.array_equal(first.total, again.total)
    with pytest.raises(Refused, match="unmasked for other survivors"):
        federation.run(lambda site, stage: site != "s004")
    with pytest.raises(Refused, match="never confirmed here"):
        federation.run()


def test_a_site_lost_while_survivors_are_confirmed_is_left_out_by_a_second_asking(
    tmp_path: Path,
) -> None:
    gone = {("s000", "update"), ("s003", "confirm"), ("s006", "unmask")}
    found, _ = Federation(tmp_path, names_of(10), Terms(7, 1)).run(lambda *who: who not in gone)
    assert found.survivors == tuple(n for n in names_of(10) if n not in ("s000", "s003"))
    assert np.array_equal(found.total, plain_sum(found.survivors))
