"""N sites in one process (or under Ray) through the real ClientApp and ServerApp."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray
from torch import nn

from client.app import OpenSite, make_app
from client.masked_site import Identity, MaskedSite
from client.preparation import PublicPart, rows_of
from client.site import RoundKey, SecretRoundKey, Site
from common.contract import Contract
from common.embedding import Rows
from common.errors import InputError, Refused
from common.persons import Persons, person_code
from common.plan import PrivacyPlan
from common.randomness import derive_key, experiment_key
from common.terms import TrainingConfig
from server.checkpoint import Checkpoint
from server.public_faces import PublicFaces, SeenFaces
from server.rounds import Federation, Observer, run_rounds
from server.setup import CODEBOOK_SIZE, PublicBank, cut, frozen_id, prepare
from simulations.evidence import bundle_of, leave_evidence, parties_of
from simulations.experiment import Experiment
from simulations.faces import Faces
from simulations.inprocess import run_in_process
from simulations.material import Material, gather


class SeededRoundKey:
    """The key of a round from the experiment's seed: repeatable, and so never private."""

    private = False

    def __init__(self, seed: int, site: int) -> None:
        self._key = derive_key(experiment_key(seed), "site", str(site))

    def __call__(self, contract: Contract, round_: int) -> bytes:
        return derive_key(self._key, "round", str(round_))


class SitePersons:
    """The persons of every site with their frozen rows, made when they are asked for and kept."""

    def __init__(self, material: Material, rows: Rows, seed: int) -> None:
        self._material, self._rows = material, rows
        self._key = derive_key(experiment_key(seed), "codes")
        self._persons: dict[int, Persons] = {}

    def of(self, index: int) -> Persons:
        """Return the persons of site `index`."""
        if index not in self._persons:
            faces = self._material.sites[index]
            self._persons[index] = Persons.group(
                self._rows.of(faces.chips),
                faces.index.tolist(),
                [person_code(name, self._key, CODEBOOK_SIZE) for name in faces.subjects],
                self._rows.prepare,
            )
        return self._persons[index]


@dataclass(frozen=True)
class Simulation:
    """An experiment made ready: what the server holds, and how to build each site.

    `untrained` is the trainable part before the training on public images, from whose result,
    `federation.initial`, the private one starts; `judges` are who that was chosen on.
    """

    experiment: Experiment
    material: Material
    rows: Rows
    untrained: nn.Module
    judges: SeenFaces | None
    persons: SitePersons
    federation: Federation
    directory: Path


def build(experiment: Experiment, run_id: str, directory: Path, material: Material) -> Simulation:
    """Return the simulation of an experiment: model, contract and public bank."""
    config = TrainingConfig(
        train_set=experiment.train_set,
        loss=experiment.loss,
        rounds=experiment.rounds,
        local_steps=experiment.local_steps,
        epsilon=experiment.epsilon,
        delta=experiment.delta,
        sample_rate=experiment.sample_rate,
        persons_per_site=material.declared / experiment.sites,
        aggregator=experiment.aggregator,
        seed=experiment.seed,
        minimum_sites=experiment.least_sites,
        trust=experiment.trust,
        colluders=None if experiment.trust == "local" else experiment.colluders or 0,
        sites=experiment.sites,
        recipe=experiment.recipe,
    )
    rows, bank = cut(
        material.backbone,
        experiment.train_set,
        public_bank(experiment, material),
        mirror=config.mirror,
    )
    untrained = copy.deepcopy(rows.split.trainable)
    judges = seen(material.judges, rows) if len(material.judges.chips) else None
    rows, federation = prepare(config, run_id, rows, bank, judges)
    persons = SitePersons(material, rows, experiment.seed)
    return Simulation(experiment, material, rows, untrained, judges, persons, federation, directory)


def seen(faces: Faces, rows: Rows) -> SeenFaces:
    """Return public faces with their frozen rows, to measure models on."""
    return SeenFaces(rows, PublicFaces(faces.chips, faces.index, faces.camera))


def public_bank(experiment: Experiment, material: Material) -> PublicBank:
    """Return the experiment's public faces as the server takes them."""
    views = None
    if experiment.train_set == "statistics":
        first, second = material.bank_views
        views = first.chips, second.chips
    return PublicBank(material.bank.chips, material.bank.index, views)


@dataclass(frozen=True)
class _Shared:
    """What all simulated sites of one process have in common."""

    rows: Rows
    persons: SitePersons
    frozen_id: str


@lru_cache(maxsize=1)
def _gathered_again(experiment: Experiment) -> Material:
    """In a process of Ray's, which serves many sites and many rounds."""
    return gather(experiment)


def _anything(contract: Contract) -> None:
    """Whoever simulates sites is the sites."""


class SimulatedSites:
    """Opens a simulated site from a node's partition id; everything heavy is kept in memory.

    It can be pickled to another process (Ray), which gathers the faces again, once.
    """

    def __init__(self, experiment: Experiment, directory: Path, run_id: str) -> None:
        self._experiment = experiment
        self._directory = directory
        self._run_id = run_id
        self._shared: _Shared | None = None
        self._masking: dict[int, MaskedSite] = {}

    def __getstate__(self) -> dict[str, object]:
        names = ("_experiment", "_directory", "_run_id")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _shared=None, _masking={})

    def share(self, rows: Rows, persons: SitePersons) -> None:
        """Use what was built in this process; the digest is computed once for all sites."""
        self._shared = _Shared(rows, persons, frozen_id(rows))

    def __call__(self, context: Context) -> OpenSite:
        index = int(context.node_config[PARTITION_ID_KEY])
        experiment = self._experiment
        plan = PrivacyPlan(
            epsilon=experiment.epsilon or 0.0,
            delta=experiment.delta,
            allow_not_private=experiment.epsilon is None or experiment.seeded_noise,
        )
        key: RoundKey = (
            SeededRoundKey(experiment.seed, index) if experiment.seeded_noise else SecretRoundKey()
        )
        site = Site.open(site_directory(self._directory, index), plan, key)
        return OpenSite(
            site=site,
            public_directory=self._directory / "public",
            model=self._model,
            persons=lambda part: self._ready(part).persons.of(index),
            consent=_anything,
            masking=self._masked(index, site) if experiment.trust == "secagg" else None,
        )

    def _masked(self, index: int, site: Site) -> MaskedSite:
        if index not in self._masking:
            bundle = bundle_of(self._directory, self._run_id, site_name(index))
            self._masking[index] = MaskedSite(Identity.of(bundle, site.directory), site)
        return self._masking[index]

    def _ready(self, part: PublicPart) -> _Shared:
        if self._shared is None:
            material = _gathered_again(self._experiment)
            rows = rows_of(part, material.backbone)
            persons = SitePersons(material, rows, self._experiment.seed)
            self._shared = _Shared(rows, persons, frozen_id(rows))
        return self._shared

    def _model(self, part: PublicPart) -> nn.Module:
        shared = self._ready(part)
        if shared.frozen_id != part.contract.frozen_id:
            raise Refused("the frozen part of the model differs from the agreed one")
        trainable = shared.rows.split.trainable
        trainable.load_state_dict(dict(part.state))
        return trainable


def site_directory(run: Path, index: int) -> Path:
    """Return where simulated site `index` keeps its state."""
    return run / "sites" / site_name(index)


def site_name(index: int) -> str:
    """Return what simulated site `index` is called on the roster."""
    return f"site-{index:03d}"


def run(
    simulation: Simulation,
    checkpoint: Path,
    evaluate: Callable[[int, NDArray[np.float32]], dict[str, float]],
    observer: Observer,
    on_reply: Callable[[Message], None] = lambda reply: None,
) -> Checkpoint:
    """Run the federation on the experiment's engine and return the last checkpoint.

    The sites' ledgers are signed at the end, for `veilface audit report`.
    """
    experiment, run_id = simulation.experiment, simulation.federation.contract.run_id
    sites = SimulatedSites(experiment, simulation.directory, run_id)
    parties = None
    if experiment.trust == "secagg":
        names = [site_name(index) for index in range(experiment.sites)]
        numbered = experiment.engine == "inprocess"
        parties = parties_of(simulation.directory, run_id, names, numbered=numbered)
    result: list[Checkpoint] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        federation = simulation.federation
        result.append(run_rounds(grid, federation, checkpoint, evaluate, observer, parties))

    client: ClientApp = make_app(sites)
    if experiment.engine == "inprocess":
        sites.share(simulation.rows, simulation.persons)
        run_in_process(server, client, experiment.sites, on_reply)
    else:
        run_ray(server, client, experiment.sites)
    leave_evidence(simulation.directory, run_id)
    return result[0]


def run_ray(server: ServerApp, client: ClientApp, sites: int) -> None:
    """Flower's own simulation engine, told to contact nobody."""
    os.environ.update(
        {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
    )
    try:
        from flwr.simulation import run_simulation  # Ray is an optional extra
    except ImportError as error:
        raise InputError(
            "--engine ray needs Ray", hint="pip install 'veilface[sim]', or use inprocess"
        ) from error
    run_simulation(
        server,
        client,
        num_supernodes=sites,
        backend_config={
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False},
        },
    )
