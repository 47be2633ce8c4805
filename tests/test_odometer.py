"""One budget a body of data: whatever federations and states of a machine use it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from client.consent import SitePolicy
from client.folder_config import FolderConfig
from client.odometer import NOT_COUNTED, Odometer, elsewhere_of, kept_or_stated
from client.site import Site
from client.start import spent_before
from common.app_bundle import app_hash
from common.errors import BudgetExceeded, InputError, LedgerError, Refused
from common.ledger import Ledger, verify
from common.plan import epsilon_after
from common.spending import spent
from tests.secagg_rig import start
from tests.test_site import BANK, CONTRACT, PLAN, prepared

DELTA = PLAN.delta


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    (folder / "ann").mkdir(parents=True)
    return folder


def site(tmp_path: Path, federation: str, data: Path, root: str = "odometer") -> Site:
    return Site.open(tmp_path / federation, PLAN, odometer=Odometer.open(tmp_path / root, data))


def play(opened: Site, round_: int, run_id: str = "run") -> None:
    contract = dataclasses.replace(CONTRACT, run_id=run_id)
    opened.train(prepared, contract, round_, torch.from_numpy(start()), BANK)


def policy(**changes: object) -> SitePolicy:
    agreed = SitePolicy(("lenet",), 2.0, DELTA, 2.0, 4, ("local",), 0, 0, (app_hash(),))
    return dataclasses.replace(agreed, **changes)  # type: ignore[arg-type]


def test_two_federations_on_the_same_faces_spend_one_budget(tmp_path: Path, faces: Path) -> None:
    north, south = site(tmp_path, "north", faces), site(tmp_path, "south", faces)
    for round_ in (1, 2):
        play(north, round_)
        play(south, round_)  # of the same name: a federation does not know of the other's runs
    for opened in (north, south):
        with pytest.raises(BudgetExceeded, match="all federations"):
            play(opened, 3)
    both = [r for one in ("north", "south") for r in verify(tmp_path / one).reservations]
    assert len(both) == 4
    assert spent(both, DELTA) <= PLAN.epsilon < epsilon_after(CONTRACT, 5)


def test_a_new_state_for_the_same_faces_has_no_new_budget(tmp_path: Path, faces: Path) -> None:
    opened = site(tmp_path, "north", faces)
    for round_ in range(1, 5):
        play(opened, round_)
    shutil.rmtree(tmp_path / "north")
    with pytest.raises(BudgetExceeded):
        play(site(tmp_path, "north", faces), 1)


@pytest.mark.parametrize("how", ["a link", "another name", "a folder within", "a folder around"])
def test_the_same_faces_under_another_name_are_the_same(
    tmp_path: Path, faces: Path, how: str
) -> None:
    opened = site(tmp_path, "north", faces)
    for round_ in range(1, 5):
        play(opened, round_)
    other = tmp_path / "other"
    if how == "a link":
        other.symlink_to(faces)
    elif how == "another name":
        faces.rename(other)
    else:
        other = faces / "ann" if how == "a folder within" else tmp_path
    with pytest.raises(BudgetExceeded):
        play(site(tmp_path, "south", other), 1)


def test_other_faces_have_a_budget_of_their_own(tmp_path: Path, faces: Path) -> None:
    (tmp_path / "others").mkdir()
    opened, other = site(tmp_path, "a", faces), site(tmp_path, "b", tmp_path / "others")
    for round_ in range(1, 5):
        play(opened, round_)
        play(other, round_)


def test_a_folder_that_joins_two_bodies_has_spent_what_both_did(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for name in ("a", "b"):
        (whole / name).mkdir(parents=True)
        opened = site(tmp_path, f"site-{name}", whole / name)
        play(opened, 1)
        play(opened, 2)
    with pytest.raises(BudgetExceeded):
        play(site(tmp_path, "site-c", whole), 1)


def test_what_was_spent_before_there_was_an_odometer_counts(tmp_path: Path, faces: Path) -> None:
    before = Site.open(tmp_path / "north", PLAN)
    for round_ in (1, 2, 3):
        play(before, round_)
    play(site(tmp_path, "north", faces), 4)
    with pytest.raises(BudgetExceeded):
        play(site(tmp_path, "south", faces), 1)


def test_a_state_that_was_put_back_whole_is_refused(tmp_path: Path, faces: Path) -> None:
    opened = site(tmp_path, "north", faces)
    play(opened, 1)
    shutil.copytree(tmp_path / "north", tmp_path / "backup")
    play(opened, 2)
    shutil.rmtree(tmp_path / "north")
    (tmp_path / "backup").rename(tmp_path / "north")
    assert verify(tmp_path / "north").ok, "by itself the backup holds"
    again = site(tmp_path, "north", faces)
    for round_ in (2, 3):
        with pytest.raises(LedgerError, match="put back"):
            play(again, round_)
    assert len(verify(tmp_path / "north").reservations) == 1


@pytest.mark.parametrize("where", ["add", "compute"])
def test_a_kill_between_ledger_and_odometer_counts_once(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    opened = site(tmp_path, "north", faces)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Odometer if where == "add" else Site, where if where == "add" else "_compute",
                      killed)  # fmt: skip
        play(opened, 1)
    play(site(tmp_path, "north", faces), 1)
    (body,) = (path.parent for path in (tmp_path / "odometer").glob("*/body.json"))
    assert len(verify(body).reservations) == len(verify(tmp_path / "north").reservations) == 1


def test_where_no_odometer_can_be_kept_the_policy_has_to_say_what_is_spent(
    tmp_path: Path, faces: Path
) -> None:
    (tmp_path / "file").write_text("x")
    nowhere = tmp_path / "file" / "odometer"
    with pytest.raises(Refused, match="cannot keep") as refused:
        kept_or_stated(nowhere, faces, None)
    assert "spent_elsewhere" in refused.value.hint
    assert kept_or_stated(nowhere, faces, 0.0) == NOT_COUNTED


def test_what_a_policy_states_is_taken_off_the_budget(tmp_path: Path) -> None:
    stated = policy(spent_elsewhere=0.8)
    path = tmp_path / "policy.toml"
    path.write_text(stated.to_toml())
    assert SitePolicy.read(path) == stated
    opened = Site.open(tmp_path / "north", stated.plan)
    play(opened, 1)
    with pytest.raises(BudgetExceeded, match=r"of 1\.2000 allowed"):
        for round_ in (2, 3, 4):
            play(opened, round_)
    with pytest.raises(InputError, match="spent_elsewhere"):
        policy(spent_elsewhere=-1.0)


def test_a_start_says_what_the_faces_have_spent_and_refuses_when_nothing_is_left(
    tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = site(tmp_path, "north", faces)
    play(first, 1)
    play(first, 2)
    Site.open(tmp_path / "south", PLAN)
    folder = FolderConfig(faces, tmp_path / "south", odometer=tmp_path / "odometer")
    spent_before(folder, policy())
    said = capsys.readouterr().err
    assert f"has spent epsilon {epsilon_after(CONTRACT, 2):.4f} of 2 elsewhere" in said
    with pytest.raises(BudgetExceeded, match="elsewhere"):
        spent_before(folder, policy(epsilon=0.9, epsilon_per_run=0.9))
    own = FolderConfig(faces, tmp_path / "north", odometer=tmp_path / "odometer")
    spent_before(own, policy())
    assert capsys.readouterr().err == "", "its own rounds are in its own ledger"
    assert len(elsewhere_of(tmp_path / "odometer", tmp_path / "south")) == 0
    play(site(tmp_path, "south", faces), 1)
    assert len(elsewhere_of(tmp_path / "odometer", tmp_path / "south")) == 2


def test_a_damaged_odometer_is_refused(tmp_path: Path, faces: Path) -> None:
    opened = site(tmp_path, "north", faces)
    play(opened, 1)
    (body,) = (path.parent for path in (tmp_path / "odometer").glob("*/body.json"))
    (body / Ledger.FILE_NAME).write_bytes(b"")
    with pytest.raises(LedgerError):
        play(opened, 2)
