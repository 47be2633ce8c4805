"""The ServerApp for Flower's own way of running: settings from a TOML file.

    flwr run . deployment --run-config 'config="/path/to/federation.toml"'

`veilface server up` does not use it: its coordinator runs the installed code.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import from_toml
from common.errors import InputError
from common.plan import epsilon_after
from server.checkpoint import RoundRecord
from server.training import RunConfig, make_ready, train

log = logging.getLogger("veilface.server")
app = ServerApp()


class LogObserver:
    """Writes each round to the log."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def round_started(self, round_: int, nodes: Collection[int]) -> None:
        log.info("round %d of %d asks %d sites", round_, self._rounds, len(nodes))

    def round_finished(self, record: RoundRecord) -> None:
        log.info("round %d: %d updates in %.1f s", record.round, record.accepted, record.seconds)
        for node, reason in record.rejected:
            log.warning("round %d: node %d not used: %s", record.round, node, reason)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds and write `model.safetensors`; a killed run goes on from its checkpoint."""
    path = context.run_config.get("config")
    if not isinstance(path, str) or not path:
        raise InputError("the run configuration names no config file", hint='config="FILE.toml"')
    ready = make_ready(from_toml(RunConfig, Path(path)))
    contract = ready.federation.contract
    done = train(grid, ready, LogObserver(contract.rounds))
    epsilon = epsilon_after(contract, done.state.round)
    log.info("epsilon %.4g at delta %g", epsilon, contract.privacy.delta)
