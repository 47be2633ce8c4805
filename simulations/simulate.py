"""One simulated federation from options to run folder: faces, rounds, scores, report."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from flwr.app import Message
from numpy.typing import NDArray

from client.gradients import choose_engine, engine_name
from common.backbones.split import HEADS
from common.backbones.weights import save_model
from common.config import digest, to_json
from common.ledger import Ledger, Reservation
from common.paired import Measured
from common.parameters import assign
from common.spending import spent
from server.checkpoint import Checkpoint, load
from server.report.collusion import masked_adversaries
from server.report.run_record import (
    Adversary,
    PerRound,
    PrivacyRecord,
    RoundPoint,
    RunRecord,
    Setting,
    SiteSpending,
    Skipped,
    Unreleased,
)
from server.report.utility import RECOMMENDED, Utility
from server.stages import PublicTest
from simulations.alone import unreleased
from simulations.evidence import check_ledgers
from simulations.experiment import Experiment
from simulations.federation import (
    Simulation,
    build,
    run,
    seen,
    site_directory,
    site_name,
)
from simulations.material import Material
from simulations.progress import LiveProgress
from simulations.run_folder import RunFolder

# Where something lies on this machine is nobody's business, or told by its name alone.
_NAMED = ("cache", "data", "public", "test", "yunet", "shift")
_UNIT = "person: all images of one person at one site together"
_ADJACENCY = "add or remove one person at one site"


def simulate(
    experiment: Experiment,
    folder: RunFolder,
    material: Material,
    progress: LiveProgress,
    on_reply: Callable[[Message], None] = lambda reply: None,
) -> RunRecord:
    """Run an experiment to its end, keep model and checkpoint, and return what its report shows."""
    folder.keep_people(material.people)
    simulation = build(experiment, folder.run_id, folder.path, material)
    test = _test(simulation)

    def evaluate(round_: int, parameters: NDArray[np.float32]) -> dict[str, float]:
        if not _is_evaluated(round_, experiment):
            return {}
        wide, strict = test.rates(test.under(parameters))
        return {"tmr_1e2": wide, "tmr_1e3": strict}

    sent: list[int] = []
    updates = 0

    def seen(reply: Message) -> None:
        nonlocal updates
        kind = reply.metadata.message_type
        updates += kind.startswith("train")
        if kind != "query.prepare" and reply.has_content():
            sent.append(sum(record.count_bytes() for record in reply.content.values()))
        progress.site_answered(reply)
        on_reply(reply)

    progress.begin(simulation.federation.contract)
    checkpoint, contract = folder.path / "checkpoint.safetensors", simulation.federation.contract
    if checkpoint.exists():
        check_ledgers(folder.path, folder.run_id, load(checkpoint, digest(contract)).history)
    done = run(simulation, checkpoint, evaluate, progress, seen)
    check_ledgers(folder.path, folder.run_id, done.history)
    after = test.under(done.state.released())
    measured = test.measure(after)
    utility = test.utility(simulation.federation.initial, after, measured)
    more = _unreleased(simulation, done, test, measured)
    model = _save(simulation, done, utility)
    record = _record(simulation, folder, progress, done, utility, model)
    per_round = None
    if updates:  # Ray's answers are not seen
        seconds = statistics.median(entry.seconds for entry in done.history)
        per_round = PerRound(round(seconds, 3), round(sum(sent) / updates, 1))
    return dataclasses.replace(record, per_round=per_round, unreleased=more)


def _is_evaluated(round_: int, experiment: Experiment) -> bool:
    """Every round for a head, whose test is cheap; else about ten times in a run."""
    every = 1 if experiment.train_set in HEADS else max(1, experiment.rounds // 10)
    return round_ % every == 0 or round_ == experiment.rounds


def _test(simulation: Simulation) -> PublicTest:
    """Return the experiment's test persons and judges, with their frozen rows."""
    test = seen(simulation.material.test, simulation.rows)
    return PublicTest(simulation.rows, test, simulation.judges, simulation.untrained)


def _unreleased(
    simulation: Simulation, done: Checkpoint, test: PublicTest, released: Measured
) -> Unreleased | None:
    sites = range(simulation.experiment.sites)
    return unreleased(
        simulation.rows.split.trainable,
        simulation.federation.initial,
        done.state.released(),
        [partial(simulation.persons.of, site) for site in sites],
        simulation.material.site_cameras,
        [site_name(site) for site in sites],
        test,
        released,
    )


def _save(simulation: Simulation, done: Checkpoint, utility: Utility) -> str:
    """Write the trained model and, if it is another, the recommended; return the former's id."""
    if utility.recommended == "public":
        _save_as(simulation, simulation.federation.initial, RECOMMENDED)
    return _save_as(simulation, done.state.released(), "model.safetensors")


def _save_as(simulation: Simulation, parameters: NDArray[np.float32], name: str) -> str:
    trainable = simulation.rows.split.trainable
    assign(trainable, torch.from_numpy(parameters))
    contract = simulation.federation.contract
    return save_model(
        simulation.directory / name,
        backbone=contract.backbone,
        train_set=contract.train_set,
        state=dict(trainable.state_dict()),
        meta={
            "run_id": contract.run_id,
            "contract": to_json(contract),
            "backbone_seed": str(simulation.experiment.seed),
        },
    )


def _reservations(simulation: Simulation) -> list[tuple[Reservation, ...]]:
    """Read every site's ledger: what it spent is what stands there, not what was planned."""
    found = []
    for index in range(simulation.experiment.sites):
        with Ledger.open(site_directory(simulation.directory, index)) as ledger:
            found.append(ledger.reservations)
    return found


def _stated(reservations: Sequence[Reservation], delta: float) -> float | None:
    """Epsilon as a record states it: None where there is no bound."""
    epsilon = spent(reservations, delta)
    return epsilon if np.isfinite(epsilon) else None


def _spending(
    simulation: Simulation, ledgers: list[tuple[Reservation, ...]]
) -> tuple[SiteSpending, ...]:
    return tuple(
        SiteSpending(
            site=f"site-{index:03d}",
            epsilon=_stated(reservations, simulation.experiment.delta),
            budget=simulation.experiment.epsilon,
            noise_multiplier=simulation.federation.contract.privacy.noise_multiplier,
            steps=sum(r.steps for r in reservations),
        )
        for index, reservations in enumerate(ledgers)
    )


def _privacy(
    simulation: Simulation, ledgers: list[tuple[Reservation, ...]], done: Checkpoint
) -> PrivacyRecord:
    experiment = simulation.experiment
    not_private = ""
    if experiment.epsilon is None:
        not_private = "no noise was added (--no-privacy)"
    elif experiment.seeded_noise:
        not_private = "the noise came from a public seed (--insecure-seeded-noise)"
    spending = _spending(simulation, ledgers)
    stated = [site.epsilon for site in spending if site.epsilon is not None]
    # One site without a bound leaves its persons without one.
    worst = None if not_private or len(stated) < len(spending) else max(stated)
    promised = None
    adversaries: tuple[Adversary, ...] = (
        Adversary("the server, which sees every site's noised update", worst),
        Adversary("anyone who holds the released model", worst),
    )
    if experiment.trust == "secagg":
        promised, adversaries = masked_adversaries(
            simulation.federation.contract, done.history, private=not not_private
        )
    return PrivacyRecord(
        unit=_UNIT,
        adjacency=_ADJACENCY,
        delta=experiment.delta,
        not_private=not_private,
        adversaries=adversaries,
        per_site=spending,
        promised=promised,
    )


def _record(
    simulation: Simulation,
    folder: RunFolder,
    progress: LiveProgress,
    done: Checkpoint,
    utility: Utility,
    model: str,
) -> RunRecord:
    material = simulation.material
    ledgers = _reservations(simulation)
    delta = simulation.experiment.delta
    rounds = tuple(
        RoundPoint(
            record.round,
            record.scores["tmr_1e2"],
            record.scores["tmr_1e3"],
            tuple(_stated([r for r in site if r.round <= record.round], delta) for site in ledgers),
        )
        for record in done.history
        if record.scores
    )
    skipped = Counter(entry.reason for entry in material.skipped)
    return RunRecord(
        run_id=folder.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        before=utility.before,
        public_only=utility.public_only,
        after=utility.after,
        privacy=_privacy(simulation, ledgers, done),
        seconds=round(time.monotonic() - progress.started, 1),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        det_before=utility.det_before,
        det_after=utility.det_after,
        det_public=utility.det_public,
        difference=utility.difference,
        recommended=utility.recommended,
        judges=utility.judges,
        rounds=rounds,
        settings=_settings(simulation),
        skipped=tuple(Skipped(reason, count) for reason, count in sorted(skipped.items())),
        warnings=(*_warnings(simulation, done), *utility.after.shortages),
        files=(
            *(["model.safetensors"] + [RECOMMENDED] * (utility.recommended == "public")),
            *("run.json", "checkpoint.safetensors", "sites/*/ledger.jsonl"),
        ),
    )


def _settings(simulation: Simulation) -> tuple[Setting, ...]:
    experiment, material = simulation.experiment, simulation.material
    contract = simulation.federation.contract
    values = {
        name: str(value)
        for name, value in dataclasses.asdict(experiment).items()
        if name not in _NAMED and value is not None
    }
    values |= {
        "data": "synthetic" if experiment.data is None else experiment.data.name,
        "shift": ",".join(experiment.shift),
        "detector": "dlib" if experiment.yunet is None else "yunet",
        "private persons": str(material.declared),
        "public persons": str(len(material.split.bank)),
        "test persons": str(len(material.split.test)),
        "judge persons": str(len(material.split.judges)),
        "test images": str(len(material.test.chips)),
        "trainable parameters": str(simulation.federation.layout.dimension),
        "gradient engine": engine_name(
            choose_engine(simulation.rows.split.trainable, contract.train_set)
        ),
        "noise_multiplier": f"{contract.privacy.noise_multiplier:.6g}",
        "max_grad_norm": f"{contract.privacy.max_grad_norm:g}",
        "public_denominator": f"{contract.privacy.public_denominator:g}",
        "images_per_person": str(contract.images_per_person),
        "recipe": "recommended" if experiment.recipe is None else experiment.recipe.told(),
        "temperature": f"{contract.loss.temperature:g}",
        "margin": f"{contract.loss.margin:g}",
        "public_negatives": str(contract.public_negatives),
        "local learning_rate": f"{contract.local_learning_rate:g}",
        "local momentum": f"{contract.local_momentum:g}",
        "server learning_rate": f"{simulation.federation.optimizer.learning_rate:g}",
        "server momentum": f"{simulation.federation.optimizer.momentum:g}",
    }
    if contract.moments is not None:
        told = dataclasses.asdict(contract.moments)
        values |= {f"moments {name}": f"{value:g}" for name, value in told.items()}
    for name, folder in (("public", experiment.public), ("test", experiment.test)):
        values[name] = "data" if folder is None else folder.name
    return tuple(Setting(name, value) for name, value in sorted(values.items()))


def _warnings(simulation: Simulation, done: Checkpoint) -> tuple[str, ...]:
    rejected = Counter(reason for record in done.history for _, reason in record.rejected)
    found = [f"{count} answers of sites were not used: {why}" for why, count in rejected.items()]
    epsilon = simulation.experiment.epsilon
    if epsilon is not None and epsilon > 10:
        found.append(f"epsilon {epsilon:g} is a weak promise; 10 and less is usually asked for")
    delta, persons = simulation.experiment.delta, simulation.material.declared
    if epsilon is not None and delta * persons > 1:
        found.append(
            f"delta {delta:g} is more than one over the {persons} private persons: with so large a "
            "delta whole persons may be given away"
        )
    return tuple(found)
