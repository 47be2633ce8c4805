"""One simulated federation from options to run folder: faces, rounds, scores, report."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message
from numpy.typing import NDArray

from client.gradients import choose_engine, engine_name
from common.backbones.weights import save_model
from common.config import to_json
from common.errors import InputError
from common.intervals import verification_of
from common.ledger import Ledger
from common.metrics import PairScores, Verification, all_pairs, det_curve
from common.parameters import assign
from common.plan import spent
from common.randomness import fresh_key
from common.storage import make_private_directory, write_private
from server.checkpoint import Checkpoint
from server.report.run_record import (
    Adversary,
    DetPoints,
    PrivacyRecord,
    RoundPoint,
    RunRecord,
    Setting,
    SiteSpending,
    Skipped,
)
from simulations.experiment import Experiment, gather
from simulations.federation import (
    Simulation,
    build,
    evaluator,
    public_embeddings,
    run,
    site_directory,
)
from simulations.progress import LiveProgress

_DET_POINTS = 200
_UNIT = "person: all images of one person at one site together"
_ADJACENCY = "add or remove one person at one site"


@dataclass(frozen=True)
class RunFolder:
    """Where a run is kept; `settings.json` says what it was started with."""

    path: Path
    run_id: str

    @staticmethod
    def start(path: Path | None, experiment: Experiment) -> RunFolder:
        """Create a new run folder; one that already holds something is an InputError."""
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{fresh_key()[:3].hex()}"
        folder = path if path is not None else Path("runs") / run_id
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} already exists and is not empty",
                hint="choose another --out, or add --resume to go on with that run",
            )
        make_private_directory(folder)
        settings = {"run_id": run_id, "experiment": json.loads(to_json(experiment))}
        write_private(folder / "settings.json", json.dumps(settings, indent=2).encode())
        return RunFolder(folder, run_id)

    @staticmethod
    def resume(path: Path | None, experiment: Experiment) -> RunFolder:
        """Open a run folder to go on with; other options than it was started with are refused."""
        if path is None or not (path / "settings.json").is_file():
            raise InputError("--resume needs --out with the folder of a run that was started")
        try:
            settings = json.loads((path / "settings.json").read_text(encoding="utf-8"))
            run_id, started = str(settings["run_id"]), settings["experiment"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path / 'settings.json'} cannot be read: {error}") from error
        asked = json.loads(to_json(experiment))
        for name in sorted(set(started) | set(asked)):
            if started.get(name) != asked.get(name):
                raise InputError(
                    f"the run was started with {name} = {started.get(name)!r}, "
                    f"not {asked.get(name)!r}",
                    hint="resume with the same options",
                )
        return RunFolder(path, run_id)


def simulate(
    experiment: Experiment,
    folder: RunFolder,
    progress: LiveProgress,
    on_reply: Callable[[Message], None] = lambda reply: None,
) -> RunRecord:
    """Run an experiment to its end, keep model and checkpoint, and return what its report shows."""
    material = gather(experiment, _stage(progress, "faces"))
    simulation = build(experiment, folder.run_id, folder.path, material)
    embeddings = evaluator(simulation)
    subjects = material.test.index
    before_scores = _best_public(simulation, embeddings)

    def evaluate(round_: int, parameters: NDArray[np.float32]) -> dict[str, float]:
        if not _is_evaluated(round_, experiment):
            return {}
        result = verification_of(all_pairs(embeddings(parameters), subjects), ci=False)
        return {"tmr_1e2": result.tmr_at_fmr_1e2, "tmr_1e3": result.tmr_at_fmr_1e3}

    def seen(reply: Message) -> None:
        progress.site_answered(reply)
        on_reply(reply)

    progress.begin(simulation.federation.contract)
    done = run(simulation, folder.path / "checkpoint.safetensors", evaluate, progress, seen)
    after_scores = all_pairs(embeddings(done.state.released()), subjects)
    model = _save(simulation, done)
    return _record(simulation, folder, progress, done, before_scores, after_scores, model)


def _stage(progress: LiveProgress, name: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        progress.stage(name, done, total)

    return show


def _is_evaluated(round_: int, experiment: Experiment) -> bool:
    """Every round for the adapter, whose test is cheap; else about ten times in a run."""
    every = 1 if experiment.train_set == "adapter" else max(1, experiment.rounds // 10)
    return round_ % every == 0 or round_ == experiment.rounds


def _best_public(
    simulation: Simulation, embeddings: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> PairScores:
    """The public model at its best: plain cosine, or the start of training if that is better.

    Choosing on the test set favours `before`, so a gain is never overstated by this choice.
    """
    subjects = simulation.material.test.index
    candidates = [
        all_pairs(public_embeddings(simulation), subjects),
        all_pairs(embeddings(simulation.federation.initial), subjects),
    ]

    def quality(scores: PairScores) -> float:
        result = verification_of(scores, ci=False)
        return result.tmr_at_fmr_1e2 + result.tmr_at_fmr_1e3

    return max(candidates, key=quality)


def _save(simulation: Simulation, done: Checkpoint) -> str:
    """Write model.safetensors and return its model id."""
    trainable = simulation.rows.split.trainable
    assign(trainable, torch.from_numpy(done.state.released()))
    contract = simulation.federation.contract
    return save_model(
        simulation.directory / "model.safetensors",
        backbone=contract.backbone,
        train_set=contract.train_set,
        state=dict(trainable.state_dict()),
        meta={"run_id": contract.run_id, "contract": to_json(contract)},
    )


def _spending(simulation: Simulation) -> tuple[SiteSpending, ...]:
    """Read every site's ledger: what it spent is what stands there, not what was planned."""
    experiment = simulation.experiment
    found = []
    for index in range(experiment.sites):
        with Ledger.open(site_directory(simulation.directory, index)) as ledger:
            reservations = ledger.reservations
        epsilon = spent(reservations, experiment.delta)
        found.append(
            SiteSpending(
                site=f"site-{index:03d}",
                epsilon=epsilon if np.isfinite(epsilon) else None,
                budget=experiment.epsilon,
                noise_multiplier=simulation.federation.contract.privacy.noise_multiplier,
                steps=sum(r.steps for r in reservations),
            )
        )
    return tuple(found)


def _epsilon_by_round(simulation: Simulation) -> list[tuple[float | None, ...]]:
    """What each site had spent after each round, from the ledgers; [rounds][sites]."""
    experiment = simulation.experiment
    columns = []
    for index in range(experiment.sites):
        with Ledger.open(site_directory(simulation.directory, index)) as ledger:
            reservations = ledger.reservations
        column: list[float | None] = []
        for round_ in range(1, experiment.rounds + 1):
            so_far = [r for r in reservations if r.round <= round_]
            epsilon = spent(so_far, experiment.delta)
            column.append(epsilon if np.isfinite(epsilon) else None)
        columns.append(column)
    return [tuple(values) for values in zip(*columns, strict=True)]


def _privacy(simulation: Simulation) -> PrivacyRecord:
    experiment = simulation.experiment
    not_private = ""
    if experiment.epsilon is None:
        not_private = "no noise was added (--no-privacy)"
    elif experiment.seeded_noise:
        not_private = "the noise came from a public seed (--insecure-seeded-noise)"
    spending = _spending(simulation)
    worst = None
    if not not_private:
        worst = max(site.epsilon for site in spending if site.epsilon is not None)
    return PrivacyRecord(
        unit=_UNIT,
        adjacency=_ADJACENCY,
        delta=experiment.delta,
        not_private=not_private,
        adversaries=(
            Adversary("the server, which sees every site's noised update", worst),
            Adversary("anyone who holds the released model", worst),
        ),
        per_site=spending,
    )


def _record(
    simulation: Simulation,
    folder: RunFolder,
    progress: LiveProgress,
    done: Checkpoint,
    before: PairScores,
    after: PairScores,
    model: str,
) -> RunRecord:
    material = simulation.material
    privacy = _privacy(simulation)
    by_round = _epsilon_by_round(simulation)
    rounds = tuple(
        RoundPoint(
            record.round,
            record.scores["tmr_1e2"],
            record.scores["tmr_1e3"],
            by_round[record.round - 1],
        )
        for record in done.history
        if record.scores
    )
    skipped = Counter(entry.reason for entry in material.skipped)
    return RunRecord(
        run_id=folder.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        before=verification_of(before),
        after=verification_of(after),
        privacy=privacy,
        seconds=round(time.monotonic() - progress.started, 1),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        det_before=DetPoints.of(det_curve(before, _DET_POINTS)),
        det_after=DetPoints.of(det_curve(after, _DET_POINTS)),
        rounds=rounds,
        settings=_settings(simulation),
        skipped=tuple(Skipped(reason, count) for reason, count in sorted(skipped.items())),
        warnings=(*_warnings(simulation, done), *verification_of(after, ci=False).shortages),
        files=("model.safetensors", "run.json", "checkpoint.safetensors", "sites/*/ledger.jsonl"),
    )


def _settings(simulation: Simulation) -> tuple[Setting, ...]:
    experiment, material = simulation.experiment, simulation.material
    contract = simulation.federation.contract
    values = {
        name: str(value)
        for name, value in dataclasses.asdict(experiment).items()
        if name not in ("cache", "data") and value is not None
    }
    values |= {
        "data": "synthetic" if experiment.data is None else experiment.data.name,
        "private persons": str(len(material.split.private)),
        "public persons": str(len(material.split.bank)),
        "test persons": str(len(material.split.test)),
        "test images": str(len(material.test.chips)),
        "trainable parameters": str(simulation.federation.layout.dimension),
        "gradient engine": engine_name(choose_engine(simulation.rows.split.trainable)),
        "noise_multiplier": f"{contract.privacy.noise_multiplier:.6g}",
        "max_grad_norm": f"{contract.privacy.max_grad_norm:g}",
        "public_denominator": f"{contract.privacy.public_denominator:g}",
        "images_per_person": str(contract.images_per_person),
        "temperature": f"{contract.loss.temperature:g}",
        "server learning_rate": f"{simulation.federation.optimizer.learning_rate:g}",
        "server momentum": f"{simulation.federation.optimizer.momentum:g}",
    }
    return tuple(Setting(name, value) for name, value in sorted(values.items()))


def _warnings(simulation: Simulation, done: Checkpoint) -> tuple[str, ...]:
    rejected = Counter(reason for record in done.history for _, reason in record.rejected)
    found = [f"{count} answers of sites were not used: {why}" for why, count in rejected.items()]
    epsilon = simulation.experiment.epsilon
    if epsilon is not None and epsilon > 10:
        found.append(f"epsilon {epsilon:g} is a weak promise; 10 and less is usually asked for")
    return tuple(found)


def gain(before: Verification, after: Verification) -> float:
    """Return TMR@FMR 1e-2 plus TMR@FMR 1e-3, after minus before."""
    return (
        after.tmr_at_fmr_1e2 + after.tmr_at_fmr_1e3 - before.tmr_at_fmr_1e2 - before.tmr_at_fmr_1e3
    )
