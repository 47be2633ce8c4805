"""Another recipe reaches the contract and its digest, and one that makes no sense is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.consent import SitePolicy
from common.cli import main
from common.config import digest, from_json, from_toml, to_json
from common.contract import Contract
from common.errors import InputError
from common.recipe_options import RecipeOptions
from common.terms import Terms, read_terms
from simulations.experiment import Experiment
from simulations.federation import build
from simulations.material import gather
from simulations.run_folder import RunFolder
from simulations.small_training import SMALL, training_toml

GRADIENTS: dict[str, Callable[[Any], bool]] = {
    "max_grad_norm = 0.3": lambda c: c.privacy.max_grad_norm == 0.3,
    "images_per_person = 2": lambda c: c.images_per_person == 2,
    "temperature = 20": lambda c: c.loss.temperature == 20.0,
    "margin = 0.5": lambda c: c.loss.margin == 0.5,
    "public_negatives = 7": lambda c: c.public_negatives == 7,
    "public_gradient = false": lambda c: not c.loss.public_gradient,
    "learning_rate = 0.4": lambda c: c.local_learning_rate == 0.4,
    "momentum = 0.5": lambda c: c.local_momentum == 0.5,
    "average_from = 0.5": lambda c: c.recipe.average_from == 0.5,
    "public_start = { steps = 1 }": lambda c: c.recipe.public_start.steps == 1,
}


def read(folder: Path, text: str) -> RecipeOptions:
    path = folder / "recipe.toml"
    path.write_text(text)
    return from_toml(RecipeOptions, path)


def test_each_option_reaches_the_contract_and_its_digest(
    experiment: Experiment, tmp_path: Path
) -> None:
    asked = replace(experiment, local_steps=2)
    material = gather(asked)

    def contract(text: str) -> Contract:
        options = read(tmp_path, text) if text else None
        changed = replace(asked, recipe=options)
        changed.check()
        return build(changed, "run", tmp_path, material).federation.contract

    plain = contract("")
    digests = {digest(plain)}
    for text, holds in GRADIENTS.items():
        found = contract(text)
        assert holds(found), text
        assert from_json(Contract, to_json(found)) == found
        digests.add(digest(found))
    assert len(digests) == len(GRADIENTS) + 1


def test_the_servers_own_step_is_that_of_the_recipe(experiment: Experiment, tmp_path: Path) -> None:
    asked = replace(experiment, recipe=read(tmp_path, "learning_rate = 0.4\nmomentum = 0.5"))
    optimizer = build(asked, "run", tmp_path, gather(asked)).federation.optimizer
    assert (optimizer.learning_rate, optimizer.momentum) == (0.4, 0.5)


def test_the_split_of_the_budget_is_that_of_the_recipe(
    experiment: Experiment, tmp_path: Path
) -> None:
    asked = replace(
        experiment,
        train_set="statistics",
        rounds=1,
        recipe=read(tmp_path, "moments = { embedding_scale = 0.7, counter_scale = 0.3 }"),
    )
    moments = build(asked, "run", tmp_path, gather(asked)).federation.contract.moments
    assert moments is not None
    assert (moments.embedding_scale, moments.counter_scale) == (0.7, 0.3)


def test_without_a_recipe_terms_and_contract_keep_their_bytes() -> None:
    terms = Terms("lenet", SMALL, 4, SMALL.privacy()).to_bytes()
    assert hashlib.sha256(terms).hexdigest().startswith("095ef6b156429392")
    contract = Contract(
        "run", "lenet", "adapter", "0" * 64, 4, 100, 2, 1, 1.0, 0.0, SMALL.privacy()
    )
    assert digest(contract).startswith("27d1619573faa48c")


def test_a_site_agrees_to_the_terms_of_a_deployments_recipe(tmp_path: Path) -> None:
    path = tmp_path / "training.toml"
    table = "\n[training.recipe]\nmax_grad_norm = 0.3\nimages_per_person = 2\n"
    path.write_text(training_toml() + table)
    terms = Terms.read(read_terms(path).to_bytes())
    assert (terms.privacy.max_grad_norm, terms.images_per_person) == (0.3, 2)
    contract = Contract(
        *("run", "lenet", "adapter", "0" * 64, 2, 100, 2, 1, 1.0, 0.0, terms.privacy),
        recipe=terms.training.recipe,
    )
    SitePolicy.accepting(terms).check(contract)
    with pytest.raises(InputError, match="not those of its recipe"):
        replace(contract, images_per_person=900)


@pytest.mark.parametrize(
    ("train", "text", "words"),
    [
        ("adapter", "", "changes nothing"),
        ("adapter", "max_grad_norm = nan", "must be finite"),
        ("adapter", "max_grad_norm = 0", "max_grad_norm must lie in"),
        ("adapter", "learning_rate = -0.1", "learning_rate must lie in"),
        ("adapter", "temperature = 0", "temperature must lie in"),
        ("adapter", "images_per_person = 0", "images_per_person must lie in"),
        ("adapter", "images_per_person = 1001", "images_per_person must lie in"),
        ("adapter", "momentum = 1", "momentum must lie in"),
        ("adapter", "public_start = { steps = 0 }", "steps must lie in"),
        ("adapter", "clip = 1.0", "unknown key 'clip'"),
        ("adapter", "moments = { block = 4 }", "moments is not for the train set adapter"),
        ("tail", "public_start = { steps = 4 }", "public_start is not for the train set tail"),
        ("statistics", "learning_rate = 0.1", "learning_rate is not for the train set statistics"),
        ("statistics", "moments = { counter_scale = 0 }", "counter_scale must lie in"),
    ],
)
def test_nonsense_is_one_line_exit_2_and_leaves_nothing(
    people_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    train: str,
    text: str,
    words: str,
) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_:
        main(["simulate", "--data", str(people_folder), "--epsilon", "4", "--train", train,
              "--recipe", str(tmp_path / "recipe.toml"), "--out", str(out)])  # fmt: skip
    line = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(line) == 1 and words in line[0]
    assert not out.exists()


def test_a_run_is_not_gone_on_with_under_another_recipe(
    experiment: Experiment, tmp_path: Path
) -> None:
    asked = replace(experiment, recipe=RecipeOptions(temperature=20.0))
    RunFolder.start(tmp_path / "run", asked)
    assert RunFolder.resume(tmp_path / "run", asked).run_id
    for other in (None, RecipeOptions(temperature=30.0)):
        with pytest.raises(InputError, match="started with recipe"):
            RunFolder.resume(tmp_path / "run", replace(asked, recipe=other))
