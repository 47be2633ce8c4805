"""A small training and the files that state it: for where only the way to a round matters."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Final

from common.terms import TrainingConfig

# Rounds of moments, of an untrained network, that two sites are enough for.
SMALL: Final = TrainingConfig(
    train_set="adapter",
    loss="public-negatives",
    rounds=2,
    local_steps=1,
    epsilon=2.0,
    delta=1e-4,
    sample_rate=1.0,
    persons_per_site=8.0,
    aggregator="mean",
    seed=0,
    minimum_sites=2,
)


def training_toml(training: TrainingConfig = SMALL, **others: bool | str | Path) -> str:
    """Return a `training.toml`; with the `others` that a `federation.toml` holds, one of those."""
    head: dict[str, object] = {"backbone": "lenet", **others}
    table = {field.name: getattr(training, field.name) for field in fields(training)}
    return f"{_lines(head)}\n[training]\n{_lines(table)}"


def _lines(values: dict[str, object]) -> str:
    # Of text, numbers and truth, JSON is TOML.
    told = {name: value for name, value in values.items() if value is not None}
    return "".join(f"{name} = {json.dumps(value, default=str)}\n" for name, value in told.items())
