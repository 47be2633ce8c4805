"""What the tests of the audit report share: run folders made by the real parts, without training.

The ledgers, bundles, statements, checkpoint, model and run record are real; only the gradients are
missing, and nothing in a report depends on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.accounting import noise_multiplier_for
from common.backbones.weights import save_model
from common.bundle import Bundle
from common.config import digest, to_json
from common.contract import Contract, Masking, Privacy
from common.ledger import Genesis, Ledger, Reservation
from common.masking import Terms
from common.masking import calibrate as calibrate_shares
from common.metrics import RATES as RATE_NAMES
from common.metrics import Interval, Intervals, Verification
from common.paired import Change, Difference
from common.plan import calibrate
from common.storage import make_private_directory, write_private
from server.audit.build import build_report
from server.audit.collect import Sources, left_by_simulation
from server.audit.facts import Facts, Findings, Report, digest_of
from server.audit.seal import Signer
from server.audit.verify import check_text
from server.checkpoint import Checkpoint, RoundRecord, save
from server.optimizer import OptimizerState
from server.report.run_record import PrivacyRecord, RunRecord, write_run
from server.report.utility import DetPoints, mean_tmr
from simulations.evidence import leave_evidence

DELTA = 1e-4
REJECTED = "refused: budget <b>&"
RATES = Verification(
    eer=0.16, tmr_at_fmr_1e2=0.48, tmr_at_fmr_1e3=0.28, mated=1440, non_mated=257_400,
    ci=Intervals(Interval(0.14, 0.18), Interval(0.44, 0.52), Interval(0.24, 0.32)),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run to make: `spends` is epsilon of the run, of a larger `budget` where that is given.

    With a `minimum` its noise is shared; `survivors` are those of each round, 0 where it is lost.
    A `scored` run is one of a deployment, without `run.json`.
    """

    sites: int = 2
    rounds: int = 3
    spends: float | None = 4.0
    budget: float | None = None
    sample_rate: float = 1.0
    accepted: int | None = None
    minimum: int | None = None
    colluders: int = 0
    survivors: tuple[int, ...] = ()
    scored: bool = False


def make_run(folder: Path, case: Case = Case()) -> Path:
    """Make a finished run's folder, with evidence, and return it."""
    make_private_directory(folder)
    agreed = _contract(case)
    for index in range(case.sites):
        _spend(folder / "sites" / f"site-{index:03d}", agreed, case)
    write_private(make_private_directory(folder / "public") / f"{digest(agreed)}.safetensors", b"")
    weights = torch.zeros(3)
    save_model(
        folder / "model.safetensors",
        backbone=agreed.backbone,
        train_set=agreed.train_set,
        state={"weight": weights},
        meta={"run_id": agreed.run_id, "contract": to_json(agreed)},
    )
    accepted = case.sites if case.accepted is None else case.accepted
    counts = case.survivors or (accepted,) * case.rounds
    history = tuple(
        RoundRecord(n, count, ((7, REJECTED),) if n == 2 else (), 1.0, _scores(case, n))
        for n, count in enumerate(counts, start=1)
    )
    state = replace(OptimizerState.start(np.zeros(3, np.float32)), round=case.rounds)
    save(folder / "checkpoint.safetensors", Checkpoint(digest(agreed), state, history))
    if not case.scored:
        write_run(_record(agreed), folder)
    leave_evidence(folder, agreed.run_id)
    return folder


def _scores(case: Case, round_: int) -> dict[str, float]:
    rates = {"fnmr_at_fmr_1e-2": 0.5 - 0.07 * round_, "fnmr_at_fmr_1e-3": 0.7 - 0.07 * round_}
    return rates if case.scored else {}


def sources(run: Path) -> Sources:
    """Return what a simulated run left."""
    bundle, statements = left_by_simulation(run)
    assert bundle is not None
    return Sources(run, Bundle.read(bundle), None, statements, None, ())


def report_of(run: Path) -> Report:
    """Return the signed report of a run."""
    found = sources(run)
    return build_report(found, Signer.of(found.bundle))


def signed_again(report: Report, facts: Facts, findings: Findings, run: Path) -> Report:
    """Return what a lying server makes of a report: other content, properly signed by it."""
    sha256 = digest_of(facts, findings, report.veilface, report.created)
    seal = Signer.of(sources(run).bundle).seal(sha256)
    return replace(report, facts=facts, findings=findings, seal=seal)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every number in nested dataclasses and tuples."""
    if isinstance(value, tuple):
        for index, entry in enumerate(value):
            yield from leaves(entry, (*path, index))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, int | float):
        yield path


def changed(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """The same with one leaf replaced by `by(leaf)`."""
    if not path:
        return by(value)
    head, *rest = path
    if isinstance(head, int):
        inner = changed(value[head], tuple(rest), by)
        return (*value[:head], inner, *value[head + 1 :])
    return replace(value, **{head: changed(getattr(value, head), tuple(rest), by)})


def less(value: Any) -> Any:
    """A little lower: by more than the six places to which shares are rounded."""
    if isinstance(value, bool):
        return not value
    return (
        value - 1
        if isinstance(value, int) or value == 0
        else value - max(abs(value) * 0.002, 3e-6 if value > 1e-3 else 0)
    )


def wrong(report: Report) -> list[str]:
    """What fails in a report."""
    return [c.what for c in check_text(report.to_text())[1] if c.outcome == "FAILS"]


def _contract(case: Case) -> Contract:
    privacy = Privacy(None, DELTA, 0.0, 0.5, case.sample_rate, 100.0 * case.sample_rate)
    if case.spends is not None:
        privacy = calibrate(
            epsilon=case.spends,
            delta=DELTA,
            rounds=case.rounds,
            local_steps=1,
            max_grad_norm=0.5,
            sample_rate=case.sample_rate,
            public_denominator=100.0 * case.sample_rate,
        )
    masking = None
    if case.minimum is not None:
        masking, privacy = _shared(case, privacy)
    return Contract(
        run_id="run-1",
        backbone="dlib-resnet",
        train_set="adapter",
        frozen_id="0" * 64,
        images_per_person=4,
        public_negatives=500,
        rounds=case.rounds,
        local_steps=1,
        local_learning_rate=1.0,
        local_momentum=0.0,
        privacy=privacy,
        masking=masking,
    )


def _shared(case: Case, privacy: Privacy) -> tuple[Masking, Privacy]:
    """The same with noise that `minimum` - `colluders` sites share, in 1,000 coordinates."""
    terms = Terms(case.minimum or 0, case.colluders)
    masking = Masking(terms.minimum, terms.colluders, 1000, 0.0)
    if case.spends is None:
        return masking, privacy
    noise = calibrate_shares(
        epsilon=case.spends, delta=DELTA, rounds=case.rounds, dimension=1000,
        max_grad_norm=privacy.max_grad_norm, honest=terms.honest,
    )  # fmt: skip
    charged = noise_multiplier_for(case.spends, DELTA, case.rounds, concentrated=True)
    return replace(masking, sigma=noise.sigma), replace(privacy, noise_multiplier=charged)


def _spend(state: Path, agreed: Contract, case: Case) -> None:
    """Write a site's ledger as its rounds do."""
    budget = case.spends if case.budget is None else case.budget
    Ledger.create(state, Genesis(delta=DELTA, epsilon=budget or 0.0))
    with Ledger.open(state) as ledger:
        for number in range(1, case.rounds + 1):
            reservation = ledger.reserve(
                run_id=agreed.run_id,
                round=number,
                noise_multiplier=agreed.privacy.noise_multiplier,
                sample_rate=agreed.privacy.sample_rate,
                steps=1,
                max_grad_norm=agreed.privacy.max_grad_norm,
                request_digest="a" * 64,
                private=case.spends is not None,
                mechanism=agreed.mechanism,
                shares=1 if agreed.masking is None else agreed.masking.terms.honest,
                check=_no_check,
            )
            ledger.commit(reservation, "b" * 64)


def _no_check(reservations: tuple[Reservation, ...]) -> None:
    """The plan's check is the subject of other tests."""


def _record(agreed: Contract) -> RunRecord:
    curve = DetPoints((0.001, 0.01, 0.1, 0.4), (0.7, 0.5, 0.2, 0.05))
    return RunRecord(
        run_id=agreed.run_id,
        created="2026-11-24T12:00:00+00:00",
        model="m",
        before=RATES,
        after=replace(RATES, eer=0.08),
        privacy=PrivacyRecord("person", "add or remove", DELTA),
        seconds=1.0,
        peak_mb=1.0,
        det_before=curve,
        det_after=curve,
        rounds=(),
        public_only=replace(RATES, eer=0.09),
        det_public=curve,
        difference=gained(replace(RATES, eer=0.08), RATES),
        recommended="after",
        judges=30,
    )


def gained(after: Verification, start: Verification) -> Difference:
    """Return what `after` is more than `start`, give or take a point."""

    def changed(value: float) -> Change:
        return Change(value, value - 0.01, value + 0.01)

    eer, wide, strict = (
        changed(getattr(after, name) - getattr(start, name)) for name in RATE_NAMES
    )
    return Difference(eer, wide, strict, changed(mean_tmr(after) - mean_tmr(start)))
