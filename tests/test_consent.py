"""A site's policy: what it allows, what it refuses, and that nobody else can widen it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from client.consent import SitePolicy
from common.app_bundle import app_bundle, app_hash, installed_code
from common.contract import Contract
from common.errors import BudgetExceeded, InputError, Refused
from common.ledger import Genesis, Ledger
from common.terms import Terms, TrainingConfig, read_terms
from simulations.small_training import SMALL, training_toml


@pytest.fixture
def terms(tmp_path: Path) -> Terms:
    path = tmp_path / "training.toml"
    path.write_text(training_toml(dataclasses.replace(SMALL, rounds=4)))
    return read_terms(path)


def contract(training: TrainingConfig, **changes: object) -> Contract:
    agreed = Contract(
        run_id="r",
        backbone="lenet",
        train_set=training.train_set,
        frozen_id="0" * 64,
        images_per_person=4,
        public_negatives=10,
        rounds=training.rounds,
        local_steps=training.local_steps,
        local_learning_rate=1.0,
        local_momentum=0.0,
        privacy=training.privacy(),
    )
    return dataclasses.replace(agreed, **changes)  # type: ignore[arg-type]


def test_a_policy_drawn_from_the_terms_allows_exactly_the_run_of_the_terms(terms: Terms) -> None:
    policy = SitePolicy.accepting(terms)
    policy.check_installed()
    policy.check_code(app_hash())
    policy.check(contract(terms.training))


def test_terms_and_policy_survive_their_files(terms: Terms, tmp_path: Path) -> None:
    assert Terms.read(terms.to_bytes()) == terms
    policy = SitePolicy.accepting(terms)
    path = tmp_path / "policy.toml"
    path.write_text(policy.to_toml())
    assert SitePolicy.read(path) == policy


def test_every_way_to_ask_for_more_is_refused(terms: Terms) -> None:
    training = terms.training
    policy = SitePolicy.accepting(terms)
    more = dataclasses.replace(training, epsilon=2.01)
    longer = dataclasses.replace(training, rounds=5)
    looser = dataclasses.replace(training, delta=1e-3)
    fair = contract(training).privacy
    for asked, reason in (
        (contract(training, backbone="dlib-resnet"), "backbone"),
        (contract(longer), "rounds"),
        (contract(more), "epsilon 2.0"),
        (contract(looser), "delta"),
        (contract(training, privacy=dataclasses.replace(fair, noise_multiplier=1.0)), "epsilon"),
        (contract(training, local_steps=2), "epsilon"),
    ):
        with pytest.raises(Refused, match=reason):
            policy.check(asked)


def test_a_run_that_changes_its_contract_half_way_is_still_one_run(
    terms: Terms, tmp_path: Path
) -> None:
    """The budget of a run is counted from the ledger, not from what each contract says."""
    policy = dataclasses.replace(SitePolicy.accepting(terms), epsilon=100.0)
    Ledger.create(tmp_path, Genesis(delta=1e-4, epsilon=100.0))
    with Ledger.open(tmp_path) as ledger:
        first = contract(terms.training)
        for round_ in (1, 2, 3, 4):
            reserved = policy.plan.reserve(ledger, first, round_, f"{round_:064x}", secret=True)
            ledger.commit(reserved, "0" * 64)
        second = contract(dataclasses.replace(terms.training, rounds=5))
        with pytest.raises(BudgetExceeded, match="a run"):
            policy.plan.reserve(ledger, second, 5, f"{5:064x}", secret=True)
        other = dataclasses.replace(first, run_id="another")
        policy.plan.reserve(ledger, other, 1, f"{6:064x}", secret=True)


def masked(**changes: object) -> TrainingConfig:
    """Training of the terms above with secure aggregation over four sites or more."""
    training = TrainingConfig(
        train_set="adapter", loss="public-negatives", rounds=4, local_steps=1, epsilon=2.0,
        delta=1e-4, sample_rate=1.0, persons_per_site=8.0, aggregator="mean", seed=0,
        minimum_sites=4, trust="secagg", colluders=1,
    )  # fmt: skip
    return dataclasses.replace(training, **changes)  # type: ignore[arg-type]


def test_a_policy_bounds_whom_a_site_trusts_and_the_server_cannot_widen_it() -> None:
    training = masked()
    agreed = contract(training, masking=training.masking(500))
    alone = dataclasses.replace(training, trust="local", colluders=None)
    terms = Terms("lenet", training, 4, training.privacy())
    policy = SitePolicy.accepting(terms)
    policy.check(agreed)
    for asked, reason in (
        (contract(alone), "trust 'local'"),
        (contract(masked(minimum_sites=3), masking=masked(minimum_sites=3).masking(500)), "wants"),
        (contract(masked(colluders=0), masking=masked(colluders=0).masking(500)), "wants 4 and 1"),
    ):
        with pytest.raises(Refused, match=reason):
            policy.check(asked)
    with pytest.raises(Refused, match="trust 'secagg'"):
        SitePolicy.accepting(dataclasses.replace(terms, training=alone)).check(agreed)


def test_a_contract_whose_shares_are_too_small_for_its_noise_is_no_contract() -> None:
    training = masked()
    masking = training.masking(500)
    assert masking is not None
    contract(training, masking=masking)
    with pytest.raises(InputError, match="less than the stated"):
        contract(training, masking=dataclasses.replace(masking, sigma=masking.sigma * 0.999))
    with pytest.raises(InputError, match="one step"):
        contract(training, masking=masking, local_steps=2)


def test_robust_rules_local_steps_and_sampling_are_refused_with_secure_aggregation() -> None:
    for rule in ("median", "krum", "trimmed-mean"):
        with pytest.raises(Refused, match="single updates"):
            masked(aggregator=rule)
    for changes in (
        {"local_steps": 2},
        {"sample_rate": 0.5},
        {"colluders": None},
        {"minimum_sites": 2},
        {"trust": "local"},
    ):
        with pytest.raises(InputError):
            masked(**changes)


def test_a_bundle_with_other_code_is_refused_and_ours_holds_no_code(terms: Terms) -> None:
    policy = SitePolicy.accepting(terms)
    for other in ("0" * 64, app_hash()[:-1], "", hashlib.sha256(app_bundle() + b" ").hexdigest()):
        with pytest.raises(Refused, match="does not list"):
            policy.check_code(other)
    with zipfile.ZipFile(io.BytesIO(app_bundle())) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
        assert installed_code().encode() in archive.read("pyproject.toml")


def test_code_that_was_updated_here_needs_new_consent(terms: Terms) -> None:
    policy = dataclasses.replace(SitePolicy.accepting(terms), code=("0" * 64,))
    with pytest.raises(Refused, match=app_hash()):
        policy.check_installed()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('backbones = ["nonsense"]', "nonsense"),
        ('backbones = "lenet"', "expected a list"),
        ("epsilon = inf", "finite"),
        ("epsilon = nan", "finite"),
        ("epsilon = 0.0", "positive"),
        ("epsilon_per_run = -1.0", "positive"),
        ("delta = 1.0", "delta"),
        ("rounds_per_run = 0", "rounds_per_run"),
        ("code = []", "code"),
        ("trust = []", "trust"),
        ('trust = ["anyone"]', "anyone"),
        ('trust = ["secagg"]', "too few"),
        ("survivors = 3", "no secagg"),
        ('code = ["*"]', "code"),
        ("anything = true", "unknown key"),
    ],
)
def test_a_policy_that_bounds_nothing_is_an_error(
    line: str, reason: str, terms: Terms, tmp_path: Path
) -> None:
    name = line.split(" ")[0]
    kept = [
        own
        for own in SitePolicy.accepting(terms).to_toml().splitlines()
        if not own.startswith(f"{name} ")
    ]
    path = tmp_path / "policy.toml"
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(InputError, match=reason):
        SitePolicy.read(path)


def test_nothing_in_a_policy_has_a_default(terms: Terms, tmp_path: Path) -> None:
    lines = SitePolicy.accepting(terms).to_toml().splitlines()
    for missing in lines[1:]:
        path = tmp_path / "policy.toml"
        path.write_text("\n".join(line for line in lines if line != missing))
        with pytest.raises(InputError, match="missing key"):
            SitePolicy.read(path)
