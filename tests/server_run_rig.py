"""Runs as a coordinator leaves them: real checkpoint and journal, but nobody has trained."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.config import digest
from common.contract import Contract
from common.terms import Terms, TrainingConfig
from server.checkpoint import Checkpoint, RoundRecord, save
from server.deployment.folder import Contacts, RunFolder, RunRequest, ServerFolder, SiteContact
from server.deployment.journal import Journal
from server.exchange import APP_FAILED, FOREIGN_CODE, SILENT
from server.optimizer import OptimizerState

NORTH, SOUTH = 11, 12
REASONS = (SILENT, "refused: data", FOREIGN_CODE, f"{APP_FAILED} (code 2)", "no header")


RATES = ((2, 0.31), (3, 0.6))


def record(round_: int, *, scored: bool = True) -> RoundRecord:
    """A round whose model gets better; site b is not used in every fifth, each time for another
    reason, and the seventh is a masked round without a sum."""
    lost = round_ == 7
    rejected = () if round_ % 5 else ((SOUTH, REASONS[round_ // 5 % len(REASONS)]),)
    rates = {f"fnmr_at_fmr_1e-{n}": base * (0.6 + 0.4 * 0.98**round_) for n, base in RATES}
    return RoundRecord(
        round=round_,
        accepted=0 if lost else 2 - len(rejected),
        rejected=rejected,
        seconds=2.0 + 0.01 * (round_ % 9),
        scores=rates if scored else {},
        asked=(NORTH, SOUTH),
        model=hashlib.sha256(str(round_ - lost).encode()).hexdigest(),
    )


def terms(rounds: int) -> Terms:
    training = TrainingConfig(
        "adapter", "public-negatives", rounds, 1, 4.0, 1e-5, 1.0, 300.0, "mean", 0, 2, 60.0
    )
    return Terms("dlib-resnet", training, 4, training.privacy())


def contract(run_id: str, agreed: Terms) -> Contract:
    training = agreed.training
    return Contract(
        run_id, agreed.backbone, training.train_set, "0" * 64, 4, 500, training.rounds, 1, 1.0, 0.0,
        agreed.privacy,
    )  # fmt: skip


def ask(folder: ServerFolder, run_id: str, rounds: int, asked: str) -> RunFolder:
    nowhere = Path("/nowhere")
    return folder.ask(
        RunRequest(run_id, terms(rounds), nowhere, nowhere, False, None, None, 12.0, asked)
    )


def meet(folder: ServerFolder) -> None:
    """Sites a, which is here, and b, which is not."""
    heard = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3))
    contacts = (SiteContact("a", "online", heard, NORTH), SiteContact("b", "offline", heard, SOUTH))
    folder.keep_contacts(Contacts(heard, contacts))


def carry(folder: ServerFolder, run: RunFolder, records: Iterable[RoundRecord]) -> Journal:
    """Leave the checkpoint of these rounds, and what the coordinator tells of them."""
    agreed = contract(run.name, run.request().terms)
    history, nothing = tuple(records), OptimizerState.start(np.zeros(3, np.float32))
    save(run.checkpoint, Checkpoint(digest(agreed), nothing, history))
    journal = Journal(folder, run)
    journal.begin(agreed)
    if len(history) == agreed.rounds:
        journal.end("finished", "")
    return journal
