"""A name that a contract may use has what it stands for, and what trains has such a name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch

from common import backbones
from common.backbones.base import Backbone
from common.backbones.registry import create
from common.backbones.torchvision_nets import NETS
from common.constants import LossConfig
from common.errors import InputError
from common.losses import LOSSES, create_loss
from common.recipe import recommended
from common.terms import read_terms
from common.vocabulary import AGGREGATOR_NAMES, BACKBONES, LOSS_NAMES, TORCHVISION, TRAIN_SETS
from server.aggregation import AGGREGATORS
from simulations.cli import simulate

torch.set_num_threads(1)

TOML = """
backbone = "lenet"
[training]
train_set = "adapter"
loss = "public-negatives"
rounds = 2
local_steps = 1
epsilon = 2.0
delta = 1e-4
sample_rate = 1.0
persons_per_site = 8.0
aggregator = "mean"
seed = 0
minimum_sites = 2
"""


def built() -> Iterator[Backbone]:
    """Every backbone that a file of the package builds, by name or without one."""
    for entry in pkgutil.iter_modules(backbones.__path__):
        module = importlib.import_module(f"{backbones.__name__}.{entry.name}")
        for _, build in inspect.getmembers(module, inspect.isfunction):
            signature = inspect.signature(build)
            own = build.__module__ == module.__name__ and not signature.parameters
            if own and signature.return_annotation == Backbone.__name__:
                yield build()
    yield from map(create, NETS)


def test_a_backbone_is_built_under_each_name_and_none_without_one() -> None:
    assert [create(name).name for name in BACKBONES] == list(BACKBONES)
    assert sorted(NETS) == sorted(TORCHVISION)
    assert sorted(backbone.name for backbone in built()) == sorted(BACKBONES)


def test_each_loss_and_rule_has_its_name_and_each_name_its_loss_or_rule() -> None:
    assert set(LOSSES) == set(LOSS_NAMES)
    assert all(callable(create_loss(LossConfig(name))) for name in LOSS_NAMES)
    assert set(AGGREGATORS) == set(AGGREGATOR_NAMES)


def test_each_trainable_set_has_its_recipe() -> None:
    assert len({recommended(train_set) for train_set in TRAIN_SETS}) == len(TRAIN_SETS) == 4


@pytest.mark.parametrize(
    ("option", "names"),
    [("loss", LOSS_NAMES), ("aggregator", AGGREGATOR_NAMES), ("train", TRAIN_SETS)],
)
def test_the_command_offers_every_name(option: str, names: tuple[str, ...]) -> None:
    (offered,) = (parameter.type for parameter in simulate.params if parameter.name == option)
    assert isinstance(offered, click.Choice)
    assert set(offered.choices) == set(names)


@pytest.mark.parametrize(
    ("key", "known"),
    [("backbone", "lenet"), ("loss", "public-negatives"), ("aggregator", "mean")],
)
def test_terms_with_an_unknown_name_are_refused_with_the_known_ones(
    tmp_path: Path, key: str, known: str
) -> None:
    path = tmp_path / "training.toml"
    path.write_text(TOML)
    assert read_terms(path).backbone == "lenet"
    path.write_text(TOML.replace(f'{key} = "{known}"', f'{key} = "other"'))
    with pytest.raises(InputError, match=f"unknown {key} 'other'.*{known}"):
        read_terms(path)
