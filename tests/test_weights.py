"""Weights files: nothing is guessed, nothing runs, every fault is named."""

from __future__ import annotations

import json
import os
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from common.backbones.registry import create
from common.backbones.weights import (
    load_into,
    load_model,
    model_id,
    read_state,
    save_model,
)
from common.errors import StorageError, WeightsError


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def good() -> dict[str, Tensor]:
    return dict(network().state_dict())


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "module."])
def test_a_state_dict_is_read_with_its_known_wrappings(tmp_path: Path, wrapped: str) -> None:
    state: object = good()
    if wrapped == "state_dict":
        state = {"state_dict": good(), "epoch": 3}
    elif wrapped == "module.":
        state = {f"module.{name}": value for name, value in good().items()}
    torch.save(state, tmp_path / "w.pt")
    read = read_state(tmp_path / "w.pt")
    assert all(torch.equal(read[name], value) for name, value in good().items())


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(good(), str(tmp_path / "w.safetensors"))
    assert set(read_state(tmp_path / "w.safetensors")) == {"weight", "bias"}


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch bomb-went-off",)


def test_code_in_a_weights_file_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Bomb()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt"):
        read_state(tmp_path / "w.pt")
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize("data", [b"", b"not a weights file", b"PK\x03\x04broken"])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, data: bytes) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=name):
            read_state(tmp_path / name)
    with pytest.raises(WeightsError, match="absent"):
        read_state(tmp_path / "absent.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "model"])
def test_no_cut_or_flipped_file_gets_past_a_clear_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.pt" if kind in ("zip", "legacy") else "w.safetensors")
    if kind == "model":
        save_model(path, backbone="lenet", train_set="full", state=good(), meta={"a": "b"})
    elif kind == "safetensors":
        safetensors.torch.save_file(good(), str(path))
    else:
        torch.save(good(), path, _use_new_zipfile_serialization=kind == "zip")
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for round_ in range(120):
        data = bytearray(whole)
        if round_ % 3 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(round_ % 3):
                data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(bytes(data))
        try:
            if kind == "model":
                load_model(path)
            else:
                load_into(network(), read_state(path), "file")
        except WeightsError as error:
            refused += path.name in error.message or "file" in error.message
    assert refused >= 40  # each file cut short, at least


def test_tensors_without_plain_values_are_named(tmp_path: Path) -> None:
    for strange in (torch.zeros(2, 3).to_sparse(), torch.zeros(2, 3, device="meta")):
        torch.save({**good(), "weight": strange}, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="weight is sparse"):
            read_state(tmp_path / "w.pt")


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save(good(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/9", bytes(64))
        archive.filelist[-1].file_size = 3 * 2**30  # what the file's directory claims
    with pytest.raises(WeightsError, match="unpacks to more than 2 GiB"):
        read_state(path)


@pytest.mark.parametrize(
    "change, names",
    [
        ({"bias": None}, "misses tensor 'bias'"),
        ({"extra": torch.zeros(1)}, "unknown tensor 'extra'"),
        ({"weight": torch.zeros(3, 2)}, r"weight has shape \[3, 2\]"),
        ({"weight": torch.full((2, 3), float("nan"))}, "weight holds a NaN"),
        ({"weight": torch.zeros(2, 3, dtype=torch.int64)}, "weight is torch.int64"),
        ({"weight": torch.full((2, 3), 1e300, dtype=torch.float64)}, "too large a number"),
    ],
)
def test_the_tensor_at_fault_is_named_and_nothing_is_loaded(
    change: dict[str, Tensor | None], names: str
) -> None:
    module = network()
    state = {k: v for k, v in {**good(), **change}.items() if v is not None}
    with pytest.raises(WeightsError, match=names):
        load_into(module, state, "file")
    assert all(torch.equal(module.state_dict()[name], good()[name]) for name in good())


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save(create("lenet").state_dict(), tmp_path / "lenet.pt")
    with pytest.raises(WeightsError, match="another architecture"):
        create("resnet18", weights=tmp_path / "lenet.pt")
    assert create("lenet", weights=tmp_path / "lenet.pt").name == "lenet"


def test_a_saved_model_comes_back_and_one_changed_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    name = save_model(path, backbone="lenet", train_set="full", state=good(), meta={"a": "b"})
    saved = load_model(path)
    assert (saved.backbone, saved.train_set, saved.meta) == ("lenet", "full", {"a": "b"})
    assert saved.model_id == name == model_id(good())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="changed"):
        load_model(path)
    safetensors.torch.save_file(good(), str(path))
    with pytest.raises(WeightsError, match="not a model of this version"):
        load_model(path)


@pytest.mark.parametrize("change", [{"backbone": None}, {"meta": None}, {"meta": "["}])
def test_a_model_that_does_not_say_what_it_is_is_refused(
    change: dict[str, str | None], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, backbone="lenet", train_set="full", state=good(), meta={})
    with safetensors.safe_open(str(path), framework="pt") as file:
        metadata = {**file.metadata(), **change}
    kept = {key: value for key, value in metadata.items() if value is not None}
    safetensors.torch.save_file(good(), str(path), metadata=kept)
    with pytest.raises(WeightsError, match="does not say what it was trained on"):
        load_model(path)
    text = {**metadata, "backbone": "lenet", "meta": json.dumps({"a": 1})}
    safetensors.torch.save_file(good(), str(path), metadata=text)
    with pytest.raises(WeightsError, match="notes that are not text"):
        load_model(path)


def test_a_model_with_a_nan_is_not_saved_and_shared_tensors_are(tmp_path: Path) -> None:
    path, shared = tmp_path / "m.safetensors", torch.ones(3)
    save_model(path, backbone="lenet", train_set="full", state={"a": shared, "b": shared}, meta={})
    assert torch.equal(load_model(path).state["b"], shared)
    path.unlink()
    broken = {"a": torch.full((3,), float("nan"))}
    with pytest.raises(WeightsError, match="trained a holds a NaN"):
        save_model(path, backbone="lenet", train_set="full", state=broken, meta={})
    assert list(tmp_path.iterdir()) == []


def test_the_id_depends_on_every_name_shape_type_and_value() -> None:
    state = good()
    others: list[dict[str, Tensor]] = [
        {**state, "weight": state["weight"].reshape(3, 2)},
        {**state, "weight": state["weight"].double()},
        {**state, "weight": state["weight"] + 1},
        {"w": state["weight"], "bias": state["bias"]},
        {},
    ]
    assert len({model_id(s) for s in [state, *others]}) == 6


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "such" / "folder" / "m.safetensors"
    with pytest.raises(StorageError):
        save_model(missing, backbone="lenet", train_set="full", state=good(), meta={})
    assert list(tmp_path.iterdir()) == []
