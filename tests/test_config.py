"""The one parser: what is not known, missing or of the wrong type is an error with a name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import LATER, digest, from_json, from_toml, parse, read_json, to_json
from common.constants import LossConfig
from common.contract import Contract, Privacy
from common.errors import InputError

CONTRACT = Contract(
    run_id="r",
    backbone="lenet",
    train_set="full",
    frozen_id="f",
    images_per_person=4,
    public_negatives=10,
    rounds=2,
    local_steps=1,
    local_learning_rate=1.0,
    local_momentum=0.0,
    privacy=Privacy(1.0, 1e-4, 2.0, 0.5, 1.0, 100.0),
)


def test_a_contract_survives_json() -> None:
    assert from_json(Contract, to_json(CONTRACT)) == CONTRACT


@given(st.floats(1e-6, 1e6), st.integers(1, 10**6), st.text(max_size=20))
def test_any_contract_survives_json_bit_for_bit(clip: float, rounds: int, run_id: str) -> None:
    privacy = dataclasses.replace(CONTRACT.privacy, max_grad_norm=clip)
    contract = dataclasses.replace(CONTRACT, privacy=privacy, rounds=rounds, run_id=run_id)
    assert from_json(Contract, to_json(contract)) == contract


def test_the_digest_changes_with_every_field() -> None:
    seen = {digest(CONTRACT)}
    for change in (
        {"run_id": "s"},
        {"rounds": 3},
        {"loss": LossConfig(temperature=47.0)},
        {"privacy": dataclasses.replace(CONTRACT.privacy, noise_multiplier=2.0000001)},
    ):
        seen.add(digest(dataclasses.replace(CONTRACT, **change)))
    assert len(seen) == 5


@pytest.mark.parametrize(
    "change, names",
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"rounds": "three"}, "rounds"),
        ({"rounds": True}, "rounds"),
        ({"train_set": "most"}, "adapter"),
        ({"loss": {"name": "triplet", "heat": 1}}, "heat"),
        ({"local_learning_rate": math.inf}, "finite"),
        ({"privacy": 3}, "table"),
        ({"rounds": 0}, "rounds"),
        ({"loss": {"name": "supcon"}}, "public-negatives"),
    ],
)
def test_each_surprise_is_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        parse(Contract, {**dataclasses.asdict(CONTRACT), **change})


def test_a_missing_key_is_named() -> None:
    values = dataclasses.asdict(CONTRACT)
    del values["backbone"]
    with pytest.raises(InputError, match="missing key 'backbone'"):
        parse(Contract, values)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": 0.0},
        {"epsilon": None},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"max_grad_norm": 0.0},
        {"public_denominator": 0.0},
    ],
)
def test_a_mechanism_that_cannot_hold_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(CONTRACT.privacy, **change)


def test_toml_is_read_and_a_broken_file_is_named(tmp_path: Path) -> None:
    good = tmp_path / "loss.toml"
    good.write_text('name = "triplet"\nmargin = 0.1\n')
    assert from_toml(LossConfig, good) == LossConfig("triplet", margin=0.1)
    good.write_text("name = ")
    with pytest.raises(InputError, match=r"loss\.toml"):
        from_toml(LossConfig, good)
    with pytest.raises(InputError, match="absent"):
        from_toml(LossConfig, tmp_path / "absent.toml")


def test_a_byte_order_mark_before_toml_or_json_is_no_fault(tmp_path: Path) -> None:
    """Editors of Windows write one, and who wrote `training.toml` cannot see it."""
    path = tmp_path / "loss"
    path.write_bytes(b'\xef\xbb\xbfname = "triplet"\nmargin = 0.1\n')
    assert from_toml(LossConfig, path) == LossConfig("triplet", margin=0.1)
    path.write_bytes(b"\xef\xbb\xbf" + to_json(CONTRACT).encode())
    assert read_json(Contract, path) == CONTRACT
    assert from_json(Contract, path.read_bytes().decode()) == CONTRACT
    path.write_bytes('name = "triplet"\n'.encode("utf-16"))
    with pytest.raises(InputError, match="UTF-8"):
        from_toml(LossConfig, path)


@dataclasses.dataclass(frozen=True)
class Early:
    name: str
    count: int | None = None


@dataclasses.dataclass(frozen=True)
class Late:
    name: str
    count: int | None = None
    more: Early | None = dataclasses.field(default=None, metadata=LATER)


def test_a_field_that_came_later_leaves_what_had_none_its_text_and_its_digest() -> None:
    assert to_json(Late("a")) == to_json(Early("a")) == '{"count":null,"name":"a"}'
    assert digest(Late("a")) == digest(Early("a"))
    told = Late("a", more=Early("b"))
    assert from_json(Late, to_json(told)) == told
    assert from_json(Late, to_json(Early("a"))) == Late("a")
