"""What a site agrees to: said before the first start, and changed while the node runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from client.agreement import Agreement
from client.consent import SitePolicy
from client.folder_config import FolderConfig
from client.start import policy_path, settle_policy
from common.app_bundle import app_hash
from common.bundle import Bundle
from common.cli import main
from common.errors import InputError, Refused
from common.terms import read_terms
from server.provisioning.federation import create
from server.provisioning.request import Endpoint, Settings
from tests.provisioning_rig import OPEN, archive
from tests.test_vocabulary import TOML

POLICY = SitePolicy(("lenet",), 4.0, 1e-4, 2.0, 9, ("local",), 0, 0, (app_hash(),))


@pytest.fixture
def agreed(tmp_path: Path) -> Agreement:
    (tmp_path / "faces").mkdir()
    (tmp_path / "state").mkdir(mode=0o700)
    change(tmp_path, POLICY)
    folder = FolderConfig(tmp_path / "faces", tmp_path / "state", odometer=tmp_path / "odometer")
    return Agreement(folder, None)


def change(root: Path, policy: SitePolicy) -> None:
    policy_path(root / "state").write_text(policy.to_toml())


def test_a_policy_that_is_changed_holds_from_the_next_message_on(
    agreed: Agreement, tmp_path: Path
) -> None:
    before = agreed.site()
    assert agreed.policy() == POLICY and agreed.site() is before
    tighter = dataclasses.replace(POLICY, epsilon=1.0, rounds_per_run=1)
    change(tmp_path, tighter)
    assert agreed.policy() == tighter
    assert agreed.site().site.plan.epsilon == 1.0
    change(tmp_path, POLICY)
    assert agreed.site().site.plan.epsilon == 4.0, "as much as the ledger was made for"


def test_while_a_changed_policy_cannot_hold_nothing_is_agreed(
    agreed: Agreement, tmp_path: Path
) -> None:
    path = policy_path(tmp_path / "state")
    wide = dataclasses.replace(POLICY, epsilon=4.1).to_toml()
    foreign = dataclasses.replace(POLICY, code=("0" * 64,)).to_toml()
    for text in ("epsilon = ", wide, foreign, None):
        path.unlink() if text is None else path.write_text(text)
        for ask in (agreed.policy, agreed.site, agreed.policy):
            with pytest.raises(Refused):
                ask()
    change(tmp_path, POLICY)
    assert agreed.policy() == POLICY


def test_how_much_all_runs_may_tell_is_asked_once_and_kept(tmp_path: Path) -> None:
    """Unsaid it was one run's, for good: the second run had no way but a fresh ledger."""
    (tmp_path / "training.toml").write_text(TOML)
    terms = read_terms(tmp_path / "training.toml").to_bytes()
    settings = Settings("fed", Endpoint("127.0.0.1", 8443))
    create(tmp_path / "fed", settings, ("a",), OPEN, contract=terms)
    bundle, state = Bundle.read(archive(tmp_path / "fed", "a")), tmp_path / "state"
    with pytest.raises(InputError, match="all runs together"):
        settle_policy(bundle, state, None, accept=True)
    with pytest.raises(InputError, match="less than one run costs"):
        settle_policy(bundle, state, None, accept=True, total=0.1)
    first = settle_policy(bundle, state, None, accept=True, total=20.0)
    assert first.epsilon == 20.0 > first.epsilon_per_run
    assert settle_policy(bundle, state, None, accept=True) == first
    with pytest.raises(Refused, match="agreed to before"):
        settle_policy(bundle, state, None, accept=True, total=21.0)


def test_the_status_of_a_site_tells_the_budget_of_its_ledger(
    agreed: Agreement, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy that was widened by hand said 12 where the ledger takes 4."""
    change(tmp_path, dataclasses.replace(POLICY, epsilon=12.0))
    words = ["site", "status", "--state", str(tmp_path / "state")]
    words += ["--odometer", str(tmp_path / "odometer")]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main([*words, *more])
    told, _, found = capsys.readouterr().out.rpartition("\n{")
    assert "of 4 at delta" in told
    assert "the policy says 12, the ledger was made for 4" in told
    status = json.loads("{" + found)
    assert (status["epsilon"], status["epsilon_left"], status["epsilon_policy"]) == (4, 4, 12)
