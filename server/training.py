"""One training run of real sites: public faces from a folder, rounds, the model; resumable."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.backbones.base import Backbone
from common.backbones.registry import create
from common.backbones.weights import save_model
from common.chip_cache import ChipCache
from common.config import to_json
from common.dataset import images_of, list_subjects, load_chips
from common.detection import DlibDetector
from common.embedding import Rows
from common.errors import InputError
from common.parameters import assign
from common.software import record_software
from common.storage import make_private_directory
from common.terms import TrainingConfig
from server.checkpoint import Checkpoint
from server.masked_rounds import Parties
from server.public_faces import PublicFaces, SeenFaces, apart
from server.report.utility import PUBLIC_SCORES, RECOMMENDED, write_utility
from server.rounds import Federation, Observer, run_rounds
from server.setup import PublicBank, cut, prepare
from server.stages import PublicTest


@dataclass(frozen=True)
class RunConfig:
    """What a run needs to know; what `federation.toml` holds.

    Attributes:
        run_id: names the run; running again with the same one goes on where it stopped.
        out: folder for checkpoint and model.
        public: folder of public faces, one folder a person.
        test: folder of other public faces, on which the model of every round is measured.
        aligned: the public faces are aligned chips already.
    """

    run_id: str
    out: Path
    public: Path
    backbone: str
    training: TrainingConfig
    weights: Path | None = None
    aligned: bool = False
    cache: Path | None = None
    test: Path | None = None


@dataclass(frozen=True)
class Ready:
    """A run before its first round."""

    config: RunConfig
    rows: Rows
    federation: Federation
    test: PublicTest | None


def make_ready(config: RunConfig) -> Ready:
    """Read the public faces, cut the backbone, and train on the public faces alone."""
    if config.training.epsilon is None:
        raise InputError("a deployment states its epsilon: training.epsilon is missing")
    backbone = create(config.backbone, weights=config.weights)
    faces = _faces(config, config.public, backbone)
    rows, bank = cut(backbone, config.training.train_set, faces, mirror=config.training.mirror)
    untrained = copy.deepcopy(rows.split.trainable)
    seen, judges = _tested(config, rows)
    rows, federation = prepare(config.training, config.run_id, rows, bank, judges)
    test = None if seen is None else PublicTest(rows, seen, judges, untrained)
    return Ready(config, rows, federation, test)


def _tested(config: RunConfig, rows: Rows) -> tuple[SeenFaces | None, SeenFaces | None]:
    """Return test persons, and judges apart from them, as far as there are any."""
    if config.test is None:
        return None, None
    faces = _faces(config, config.test, rows.backbone)
    one_camera = np.zeros(len(faces.persons), np.int64)
    test, judges = apart(PublicFaces(faces.chips, faces.persons, one_camera))
    return SeenFaces(rows, test), None if judges is None else SeenFaces(rows, judges)


def train(
    grid: Grid, ready: Ready, observer: Observer, parties: Parties | None = None
) -> Checkpoint:
    """Run the rounds that are left and write the model, and what it is worth on test faces.

    `parties` are needed for secure aggregation only.
    """
    out = make_private_directory(ready.config.out)
    record_software(out)

    def evaluate(round_: int, parameters: NDArray[np.float32]) -> dict[str, float]:
        if ready.test is None:
            return {}
        rates = ready.test.rates(ready.test.under(parameters))
        return {name: 1.0 - rate for name, rate in zip(PUBLIC_SCORES, rates, strict=True)}

    checkpoint = out / "checkpoint.safetensors"
    done = run_rounds(grid, ready.federation, checkpoint, evaluate, observer, parties)
    recommended = None
    if (test := ready.test) is not None:
        after = test.under(done.state.released())
        utility = test.utility(ready.federation.initial, after)
        write_utility(out, utility)
        recommended = utility.recommended
    _save(ready, done.state.released(), out / "model.safetensors")
    if recommended == "public":
        _save(ready, ready.federation.initial, out / RECOMMENDED)
    return done


def _save(ready: Ready, parameters: NDArray[np.float32], path: Path) -> None:
    trainable = ready.rows.split.trainable
    assign(trainable, torch.from_numpy(parameters))
    save_model(
        path,
        backbone=ready.config.backbone,
        train_set=ready.config.training.train_set,
        state=dict(trainable.state_dict()),
        meta={"run_id": ready.config.run_id, "contract": to_json(ready.federation.contract)},
    )


def _faces(config: RunConfig, folder: Path, backbone: Backbone) -> PublicBank:
    with ChipCache.open(config.cache) as cache:
        subjects = list_subjects(folder, at_least=2)
        loaded = load_chips(
            images_of(subjects),
            spec=backbone.chip,
            detector=DlibDetector(),
            cache=cache,
            aligned=config.aligned,
        )
    return PublicBank(torch.from_numpy(loaded.chips), loaded.labels(subjects))
