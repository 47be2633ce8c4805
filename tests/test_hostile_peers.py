"""What a hostile server or site might send, and a neighbour nobody expects: none gets further."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from client.book_keeping import book_keeping
from client.consent import SitePolicy
from client.folder import open_folder
from client.folder_config import FolderConfig
from client.preparation import PublicPart, Unprepared, load_public, store_public
from client.site import Prepared, Site
from common.app_bundle import app_hash
from common.backbones.adapter import AdapterHead, PublicStatistics
from common.backbones.registry import create
from common.backbones.split import frozen_part
from common.config import digest, from_json
from common.constants import LossConfig
from common.contract import Contract, Privacy
from common.embedding import frozen_rows
from common.errors import InputError, VeilfaceError
from common.layout import Layout
from common.ledger import Ledger
from common.losses import PersonBatch, PublicSide, public_negatives
from common.mechanism import clip_by_person
from common.npy import from_npy
from common.plan import PrivacyPlan
from common.update import Expected, check_header
from common.vocabulary import TrainSet
from server.checkpoint import Checkpoint, RoundRecord, load, save
from server.optimizer import OptimizerState
from simulations.experiment import Experiment
from simulations.federation import build
from simulations.material import gather
from tests.site_rig import assert_answers_with_noise


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (64 - (11 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize("clip", [300 * 5e-324, 1e-300, 1e-7, 1e7, float("inf"), float("nan")])
def test_a_clip_beyond_what_floats_resolve_is_refused(clip: float) -> None:
    """At 300 times the smallest float a clipped gradient would have 3.3 times the norm."""
    with pytest.raises(InputError, match="between 1e-6 and 1e6"):
        clip_by_person([torch.full((1_000_000,), 0.51)], 1_000_000, clip)
    with pytest.raises(InputError):
        Privacy(1.0, 1e-5, 0.5, clip, 1.0, 10.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"images_per_person": 10**12},
        {"local_steps": 10**14},
        {"rounds": 0},
        {"public_negatives": 10**9},
        {"loss": LossConfig(temperature=-1e300)},
        {"loss": LossConfig(temperature=float("nan"))},
    ],
)
def test_a_contract_that_would_tie_a_site_up_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(contract("r"), **changed)


def test_a_shape_that_no_memory_holds_is_one_error() -> None:
    with pytest.raises(InputError):
        from_npy(npy("(0, 999999999999999999, 999999999999999999)"))


def test_a_site_cannot_ruin_the_checkpoint_with_long_names(tmp_path: Path) -> None:
    try:
        check_header({"A" * 120_000_000: 1}, Expected("r", "m", 1, Layout(("w",), ((4,),))))
    except VeilfaceError as error:
        text = error.message
    done = Checkpoint(
        "x",
        OptimizerState.start(np.zeros(4, np.float32)),
        (RoundRecord(1, 1, ((5, text),), 1.0, {}),),
    )
    save(tmp_path / "c", done)
    load(tmp_path / "c", "x")


def test_a_server_cannot_name_a_file_outside_the_public_folder(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "vault.safetensors").write_bytes(b"xx")
    with pytest.raises(Unprepared):
        load_public(tmp_path / "public", "../vault")


def test_a_server_cannot_fill_a_sites_disk_with_runs(tmp_path: Path) -> None:
    """Two banks at most, the one in use among them; one that was sent away is asked for again."""
    public = tmp_path / "public"

    def part(run: int) -> PublicPart:
        bank = torch.full((1, 4, 4, 3), run, dtype=torch.uint8)
        return PublicPart(contract(f"run {run}"), {"w": torch.zeros(4)}, bank)

    in_use = store_public(public, part(0))
    half = public / ".half.safetensors.999.part"  # what a kill leaves
    half.write_bytes(b"x" * 1000)
    os.utime(half, (0, 0))
    least = (public / f"{in_use}.safetensors").stat().st_size
    for run in range(1, 40):
        os.utime(public / f"{in_use}.safetensors", (run, run))  # the clock is too coarse for this
        load_public(public, in_use)
        other = store_public(public, part(run))
        os.utime(public / f"{other}.safetensors", (run, run))
        assert sum(file.stat().st_size for file in public.iterdir()) < 2.5 * least
    assert {file.stem for file in public.iterdir()} == {in_use, other}
    assert store_public(public, part(39)) == other and load_public(public, in_use).inputs.max() == 0
    with pytest.raises(Unprepared):
        load_public(public, digest(contract("run 7")))
    assert store_public(public, part(7)) == digest(contract("run 7"))
    assert load_public(public, digest(contract("run 7"))).inputs.max() == 7


def contract(run: str) -> Contract:
    privacy = Privacy(1.0, 1e-5, 0.5, 0.1, 1.0, 10.0)
    return Contract(run, "b", "adapter", "f", 4, 10, 5, 1, 1.0, 0.0, privacy)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(float("nan"), 1e-5), (float("inf"), 1e-5), (50.0, 1e-5), (1.0, 0.5)]
)
def test_a_ledgers_budget_cannot_be_widened_by_another_plan(
    tmp_path: Path, epsilon: float, delta: float
) -> None:
    Site.open(tmp_path / "s", PrivacyPlan(1.0, 1e-5))
    with pytest.raises(VeilfaceError):
        Site.open(tmp_path / "s", PrivacyPlan(epsilon, delta))
    with Ledger.open(tmp_path / "s") as ledger, pytest.raises(VeilfaceError):
        PrivacyPlan(epsilon, delta).reserve(ledger, contract("r"), 1, "q", secret=True)
    Site.open(tmp_path / "s", PrivacyPlan(0.5, 1e-5))


def test_no_image_gives_no_row() -> None:
    class Pixels:
        def preprocess(self, chips: torch.Tensor) -> torch.Tensor:
            return chips.permute(0, 3, 1, 2).float()

    assert len(frozen_rows(Pixels(), nn.Identity(), torch.zeros(0, 8, 8, 3))) == 0  # type: ignore[arg-type]


def test_deeply_nested_json_is_one_error() -> None:
    with pytest.raises(InputError):
        from_json(Contract, "[" * 200_000)


def test_a_neighbour_does_not_change_the_rounding_of_others() -> None:
    """A hostile public bank makes gradients cancel: rounding alone could then exceed the clip."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(1)
    f, d, r, n, clip = 256, 128, 256, 100, 0.1
    torch.manual_seed(0)
    head = AdapterHead(
        nn.Linear(f, d, bias=False),
        PublicStatistics(torch.zeros(d), torch.tensor(1.0), torch.zeros(r), torch.eye(r)),
    ).eval()
    loss, worst = public_negatives(LossConfig()), (0.0, 0)

    def total(x: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
        present = torch.ones(x.shape[:2], dtype=torch.bool)
        batch = PersonBatch(x, present, torch.zeros(len(x), dtype=torch.long))
        return book_keeping(head, batch, loss, PublicSide(public, False), clip).value

    for persons in (8, 15, 20, 26, 28, 35, 37):
        for _ in range(6):
            # What a hostile server may send: pairs of public rows that differ in the map's sign.
            public = torch.randn(n, f + r, generator=g)
            public[n // 2 :] = public[: n // 2]
            public[:, f:] *= 1e9
            public[n // 2 :, f:] = -public[: n // 2, f:]
            public = public[torch.randperm(n, generator=g)]
            x, p = (torch.randn(k, 4, f + r, generator=g) for k in (persons, 1))
            moved = float((total(torch.cat([p, x]), public) - total(x, public)).norm()) / clip
            worst = max(worst, (moved, persons))
    assert worst[0] <= 1 + 1e-6, worst


@pytest.mark.parametrize("count", [1, 5, 16, 17, 33])
def test_a_frozen_row_does_not_depend_on_how_many_images_there_are(count: int) -> None:
    backbone = create("dlib-resnet")
    rng = np.random.default_rng(0)
    chips = torch.from_numpy(rng.integers(0, 256, (count + 1, 150, 150, 3), np.uint8))
    frozen = frozen_part(backbone, "tail")
    first = frozen_rows(backbone, frozen, chips)[count]
    assert torch.equal(frozen_rows(backbone, frozen, chips[count:])[0], first)


@pytest.mark.parametrize(
    ("train_set", "loss", "cut"),
    [("adapter", "public-negatives", (slice(None), slice(1))), ("full", "triplet", (slice(0),))],
)
def test_a_crafted_public_bank_does_not_tell_a_site_with_one_person_from_an_empty_one(
    tmp_path: Path, experiment: Experiment, train_set: TrainSet, loss: str, cut: tuple[slice, ...]
) -> None:
    """A bank that breaks the loss, but only where somebody's images meet it."""
    experiment = dataclasses.replace(experiment, train_set=train_set, loss=loss)
    federation = build(experiment, "r", tmp_path / "unused", gather(experiment)).federation
    policy = SitePolicy(("lenet",), 9.0, 1e-4, 9.0, 100, ("local",), 0, 0, (app_hash(),))
    assert experiment.data is not None
    (tmp_path / "nobody").mkdir()
    shutil.copytree(next(experiment.data.iterdir()), tmp_path / "one" / "Ann")

    def answer(site: str, inputs: torch.Tensor) -> str:
        part = PublicPart(federation.contract, federation.state, inputs)
        config = FolderConfig(tmp_path / site, tmp_path / f"{site}-{inputs.shape}", aligned=True)
        opened = open_folder(config, policy)
        ready = Prepared(part.contract, opened.model(part), part.inputs, opened.persons(part))
        try:
            vector = torch.from_numpy(federation.initial)
            opened.site.train(lambda: ready, part.contract, 1, vector, part.id)
        except (RuntimeError, IndexError, ValueError) as error:
            return type(error).__name__
        return "an update"

    bank = federation.public_inputs
    assert answer("one", bank) == answer("nobody", bank) == "an update"
    bad = bank[cut].contiguous()
    assert answer("one", bad) == answer("nobody", bad)


@pytest.mark.parametrize(
    ("folder", "name", "target"),
    [(b"Zoe", "a.png", "/etc/hostname"), (b"Zoe", "a.png", "a.png"), (b"Z\xff", "a.png", None)],
    ids=["a link that leads out", "a link to itself", "a name that is no text"],
)
def test_one_unusable_person_takes_nobody_else_out_of_training(
    tmp_path: Path, experiment: Experiment, folder: bytes, name: str, target: str | None
) -> None:
    """Else adding one person would move the sum by the clip of everybody."""
    assert experiment.data is not None
    federation = build(experiment, "r", tmp_path / "unused", gather(experiment)).federation
    part = PublicPart(federation.contract, federation.state, federation.public_inputs)
    policy = SitePolicy(("lenet",), 9.0, 1e-4, 9.0, 100, ("local",), 0, 0, (app_hash(),))
    without = open_folder(FolderConfig(experiment.data, tmp_path / "1", aligned=True), policy)
    data = shutil.copytree(experiment.data, tmp_path / "data")
    odd = Path(os.fsdecode(os.fsencode(data) + b"/" + folder))
    odd.mkdir()
    if target is None:
        with Image.open(next(experiment.data.glob("*/*.png"))) as picture:
            picture.rotate(3).save(odd / name)  # a picture of nobody else
    else:
        (odd / name).symlink_to(target)
    persons = open_folder(FolderConfig(data, tmp_path / "2", aligned=True), policy).persons(part)
    expected = without.persons(part)
    assert len(persons) == len(expected) + (target is None)
    assert torch.equal(persons.inputs[: len(expected.inputs)], expected.inputs)


@pytest.mark.parametrize("content", ["nothing", "no person", "no face", "a link that leads out"])
def test_a_site_whose_images_cannot_be_used_trains_on_nobody_and_does_not_say_so(
    tmp_path: Path, experiment: Experiment, content: str
) -> None:
    """Else one person more or less would change the answer from an update to a refusal."""
    data = tmp_path / "data"
    data.mkdir()
    if content == "no person":
        (data / "notes.txt").write_text("x")
    elif content == "no face":
        (data / "Ann").mkdir()
        Image.new("RGB", (120, 120)).save(data / "Ann" / "a.png")
    elif content == "a link that leads out":
        (data / "Ann").symlink_to("/")
    federation = build(experiment, "r", tmp_path / "unused", gather(experiment)).federation
    part = PublicPart(federation.contract, federation.state, federation.public_inputs)
    policy = SitePolicy(("lenet",), 9.0, 1e-4, 9.0, 100, ("local",), 0, 0, (app_hash(),))
    opened = open_folder(FolderConfig(data, tmp_path / "s"), policy)
    assert_answers_with_noise(opened, part, federation.initial)
