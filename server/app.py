"""The ServerApp of a deployment: settings from a TOML file, a folder of public faces, rounds.

flwr run . deployment --run-config 'config="/path/to/federation.toml"'
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from common.backbones.registry import create
from common.backbones.weights import save_model
from common.chip_cache import ChipCache
from common.config import from_toml, to_json
from common.dataset import images_of, list_subjects, load_chips
from common.detection import DlibDetector
from common.errors import InputError
from common.parameters import assign
from common.plan import epsilon_after
from common.storage import make_private_directory
from common.terms import TrainingConfig
from server.checkpoint import RoundRecord
from server.rounds import run_rounds
from server.setup import PublicBank, cut, prepare

log = logging.getLogger("veilface.server")
app = ServerApp()


@dataclass(frozen=True)
class DeploymentConfig:
    """What `federation.toml` holds.

    Attributes:
        run_id: names the run; running again with the same one goes on where it stopped.
        out: folder for checkpoint and model.
        public: folder of public faces, one folder a person.
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


class LogObserver:
    """Writes each round to the log."""

    def __init__(self, config: DeploymentConfig) -> None:
        self._rounds = config.training.rounds

    def round_started(self, round_: int, sites: int) -> None:
        log.info("round %d of %d asks %d sites", round_, self._rounds, sites)

    def round_finished(self, record: RoundRecord) -> None:
        log.info("round %d: %d updates in %.1f s", record.round, record.accepted, record.seconds)
        for node, reason in record.rejected:
            log.warning("round %d: node %d not used: %s", record.round, node, reason)


def _not_evaluated(round_: int, parameters: NDArray[np.float32]) -> dict[str, float]:
    return {}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds and write `model.safetensors`; a killed run goes on from its checkpoint."""
    path = context.run_config.get("config")
    if not isinstance(path, str) or not path:
        raise InputError("the run configuration names no config file", hint='config="FILE.toml"')
    config = from_toml(DeploymentConfig, Path(path))
    if config.training.epsilon is None:
        raise InputError("a deployment states its epsilon: training.epsilon is missing")
    backbone = create(config.backbone, weights=config.weights)
    with ChipCache.open(config.cache) as cache:
        subjects = list_subjects(config.public, at_least=2)
        public = load_chips(
            images_of(subjects),
            spec=backbone.chip,
            detector=DlibDetector(),
            cache=cache,
            aligned=config.aligned,
        )
    faces = PublicBank(torch.from_numpy(public.chips), public.labels(subjects))
    rows, bank = cut(backbone, config.training.train_set, faces)
    federation = prepare(config.training, config.run_id, rows, bank)
    out = make_private_directory(config.out)
    done = run_rounds(
        grid, federation, out / "checkpoint.safetensors", _not_evaluated, LogObserver(config)
    )
    assign(rows.split.trainable, torch.from_numpy(done.state.released()))
    name = save_model(
        out / "model.safetensors",
        backbone=config.backbone,
        train_set=config.training.train_set,
        state=dict(rows.split.trainable.state_dict()),
        meta={"run_id": config.run_id, "contract": to_json(federation.contract)},
    )
    epsilon = epsilon_after(federation.contract, done.state.round)
    log.info("model %s, epsilon %.4g at delta %g", name, epsilon, config.training.delta)
