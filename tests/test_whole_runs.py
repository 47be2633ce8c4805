"""Whether a run has a chance is asked before anyone spends on it; the answer tells no balance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from flwr.app import Context

from client.app import OpenSite, make_app
from client.site import Site
from common.contract import Contract
from common.errors import BudgetExceeded, Refused
from common.ledger import Ledger, Reservation, verify
from common.persons import Persons
from common.plan import PrivacyPlan, calibrate
from common.spending import spent
from server.rounds import RoundFailed, run_rounds
from simulations.inprocess import InProcessGrid
from tests.test_site import CONTRACT
from tests.test_updates import Silent, federation

DELTA = 1e-4
# What a site spent on other runs, as one release.
BEFORE = Reservation(1, "other", 1, 4.0, 1.0, 1, 0.5, "", True)
SPENT = spent([BEFORE], DELTA)


def run_of(epsilon: float, rounds: int = 4, run_id: str = "run") -> Contract:
    privacy = calibrate(
        epsilon=epsilon, delta=DELTA, rounds=rounds, local_steps=1, max_grad_norm=0.5,
        sample_rate=1.0, public_denominator=5.0,
    )  # fmt: skip
    return dataclasses.replace(CONTRACT, run_id=run_id, rounds=rounds, privacy=privacy)


def says_yes(total: float, contract: Contract, per_run: float = 2.0) -> bool:
    plan = PrivacyPlan(total, DELTA, epsilon_per_run=per_run)
    try:
        plan.check_room([BEFORE], contract)
    except BudgetExceeded:
        return False
    return True


def test_there_is_room_for_a_run_exactly_where_all_its_rounds_will_be_taken() -> None:
    def all_rounds_fit(total: float) -> bool:
        rounds = [dataclasses.replace(BEFORE, run_id="run", round=r,
                                      noise_multiplier=run_of(2.0).privacy.noise_multiplier)
                  for r in (1, 2, 3, 4)]  # fmt: skip
        return spent([BEFORE, *rounds], DELTA) <= total

    for total in (2.0, 2.05, 2.1, 2.2, 2.3, 2.0 + SPENT):
        assert says_yes(total, run_of(2.0)) == all_rounds_fit(total), total
    assert not says_yes(2.0, run_of(2.0)) and says_yes(2.0 + SPENT, run_of(2.0))


def test_who_asks_for_runs_of_all_sizes_learns_no_balance() -> None:
    """By halving, a server would find what these people's images spent in other federations."""
    sizes = [run_of(epsilon, rounds) for epsilon in (0.01, 0.3, 1.0, 2.0) for rounds in (1, 9)]
    for total in (2.02, 2.0 + SPENT):
        assert len({says_yes(total, one) for one in sizes}) == 1


def test_what_other_federations_spent_of_the_same_faces_counts() -> None:
    plan = PrivacyPlan(2.0, DELTA, epsilon_per_run=2.0)
    plan.check_room([], run_of(2.0))
    with pytest.raises(BudgetExceeded):
        plan.check_room([], run_of(2.0), [dataclasses.replace(BEFORE, run_id="ledger:other")])
    with pytest.raises(BudgetExceeded):
        dataclasses.replace(plan, elsewhere=0.5).check_room([], run_of(2.0))


def test_a_run_that_was_begun_needs_no_second_budget() -> None:
    plan = PrivacyPlan(2.0, DELTA, epsilon_per_run=2.0)
    half = [dataclasses.replace(BEFORE, run_id="run", round=r) for r in (1, 2)]
    plan.check_room(half, run_of(2.0))
    with pytest.raises(BudgetExceeded):
        plan.check_room(half, run_of(2.0, run_id="next"))


class Sites:
    """Five sites, of which some have spent most of their budget on another run."""

    def __init__(self, folder: Path, poor: int) -> None:
        self.folder, self.read = folder, 0
        for node in range(1, 6):
            site = self.site(node)
            if node <= poor:
                with Ledger.open(site.directory) as ledger:
                    site.plan.reserve(ledger, run_of(1.9, 1, "other"), 1, "0" * 64, secret=True)

    def site(self, node: int) -> Site:
        plan = PrivacyPlan(2.0, DELTA, epsilon_per_run=2.0)
        return Site.open(self.folder / str(node), plan)

    def __call__(self, context: Context) -> OpenSite:
        folder = self.folder / f"public-{context.node_id}"
        return OpenSite(
            self.site(context.node_id), folder, lambda part: torch.nn.Linear(1, 1),
            self._persons, lambda contract: None,
        )  # fmt: skip

    def _persons(self, part: object) -> Persons:
        self.read += 1
        raise AssertionError("nothing private is read before a round is paid for")

    def spent(self) -> list[int]:
        """How many rounds of this run each site has reserved."""
        found = [verify(self.folder / str(node)).reservations for node in range(1, 6)]
        return [sum(r.run_id == "run" for r in of_site) for of_site in found]


@pytest.mark.parametrize("poor", [3, 5])
def test_a_run_that_too_few_sites_can_pay_is_refused_before_any_site_spends(
    poor: int, tmp_path: Path
) -> None:
    sites = Sites(tmp_path, poor)
    grid, path = InProcessGrid(make_app(sites), 5), tmp_path / "checkpoint"
    with pytest.raises(Refused, match="nobody has spent anything") as refused:
        run_rounds(grid, federation(3), path, lambda *_: {}, Silent())
    assert f"{5 - poor} sites can take part, 3 are needed" in str(refused.value)
    assert str(refused.value).count("refused: budget") == poor
    assert sites.spent() == [0] * 5 and sites.read == 0
    kept = {folder.name for folder in tmp_path.glob("public-*") if any(folder.iterdir())}
    assert kept == {f"public-{node}" for node in range(poor + 1, 6)}, "a no keeps nothing of it"


def test_where_enough_say_yes_those_who_said_no_are_not_asked(tmp_path: Path) -> None:
    sites = Sites(tmp_path, 2)
    with pytest.raises(RoundFailed):  # none of these sites can really train
        run_rounds(
            InProcessGrid(make_app(sites), 5), federation(3), tmp_path / "c", lambda *_: {},
            Silent(),
        )  # fmt: skip
    assert sites.spent()[:2] == [0, 0]
