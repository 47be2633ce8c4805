"""What a person watches while a run goes on: one live line on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from types import TracebackType

from flwr.app import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from common.contract import Contract
from common.plan import epsilon_after
from server.checkpoint import RoundRecord
from server.report.wording import epsilon as epsilon_in_words


class LiveProgress:
    """Round, site, seconds left and epsilon spent; nothing at all when `quiet`.

    It is an Observer of the round loop, and counts sites by the replies that it sees.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet,
            transient=True,
        )
        self._contract: Contract | None = None
        self._task: TaskID | None = None
        self._stage: TaskID | None = None
        self._stage_name = ""
        self._sites = 0
        self._answered = 0
        self._round = 0
        self.started = time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def stage(self, name: str, done: int, total: int) -> None:
        """Show how far a preparation stage is, such as detecting faces."""
        if self._stage is None or name != self._stage_name:
            self.end_stage()
            self._stage = self._progress.add_task(name, total=total, detail="")
            self._stage_name = name
        self._progress.update(self._stage, completed=done, total=total, detail=f"{done}/{total}")

    def end_stage(self) -> None:
        """Take the preparation stage off the screen."""
        if self._stage is not None:
            self._progress.remove_task(self._stage)
            self._stage = None

    def begin(self, contract: Contract) -> None:
        """Show the rounds of a contract."""
        self.end_stage()
        self._contract = contract
        self._task = self._progress.add_task("training", total=contract.rounds, detail="")

    def site_answered(self, reply: Message) -> None:
        """Count one site's reply."""
        if reply.metadata.message_type == "train":
            self._answered += 1
            self._show()

    def round_started(self, round_: int, nodes: Collection[int]) -> None:
        self._round, self._sites, self._answered = round_, len(nodes), 0
        self._show()

    def round_finished(self, record: RoundRecord) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=record.round)

    def _show(self) -> None:
        if self._task is None or self._contract is None:
            return
        spent = epsilon_after(self._contract, self._round)
        shown = spent if math.isfinite(spent) else None
        text = f"round {self._round}/{self._contract.rounds}  site {self._answered}/{self._sites}"
        delta = self._contract.privacy.delta
        self._progress.update(
            self._task, detail=f"{text}  epsilon {epsilon_in_words(shown)} (delta {delta:g})"
        )
