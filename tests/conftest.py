"""What several test files share: a small folder of synthetic persons and quick experiments."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

os.environ.update({"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"})
# Never the key, or the chips, of the person who runs the tests.
os.environ["VEILFACE_CACHE_KEY"] = str(Path(tempfile.mkdtemp()) / "cache.key")
os.environ["VEILFACE_ODOMETER"] = str(Path(tempfile.mkdtemp()) / "odometer")

import numpy as np
import pytest
import torch
from PIL import Image

from common.face import ChipSpec
from simulations.experiment import Experiment
from simulations.people import generate

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)

PERSONS, IMAGES = 24, 3
# The files that take longest come first, or whichever worker is left with one of them ends last;
# those that wait for real processes stand between those that compute.
SLOW: Final = (
    "test_real_sites", "test_attacks", "test_killed_parts", "test_simulation", "test_run_folder",
    "test_secagg_deployment", "test_closed_by_default", "test_provisioning",
    "test_network_namespaces", "test_vault_crash", "test_deployment", "test_sweep", "test_docker",
    "test_server_page", "test_secagg_faults", "test_front", "test_service_process",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files of the most tests; ours of the fewest take longest.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def people_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 synthetic persons with 3 aligned 112-pixel chips each, in folders with telling names."""
    root = tmp_path_factory.mktemp("people")
    people = generate(PERSONS, IMAGES, 5, ChipSpec(112, "arcface"))
    for row, subject in enumerate(people.subjects.tolist()):
        folder = root / f"CANARY_NAME_{subject:03d}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(people.chips[row])).save(folder / f"image{row}.png")
    return root


@pytest.fixture
def experiment(people_folder: Path) -> Experiment:
    """Three sites, an untrained small network, three rounds, epsilon 4: a second or two."""
    return Experiment(
        data=people_folder,
        shift=("none",),
        sites=3,
        persons=12,
        rounds=3,
        local_steps=1,
        epsilon=4.0,
        delta=1e-4,
        sample_rate=1.0,
        trust="local",
        train_set="adapter",
        loss="public-negatives",
        backbone="lenet",
        weights=None,
        aggregator="mean",
        engine="inprocess",
        seed=0,
        seeded_noise=False,
        aligned=True,
        cache=None,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; of one module, because its driver keeps an event loop in the test's own thread."""
    from tests.browser_rig import chromium

    with chromium() as opened:
        yield opened
