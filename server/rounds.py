"""The round loop: ask the sites, check their answers, aggregate, step, checkpoint; resumable.

It needs nothing of Flower but a Grid, so it is the same in one process, under Ray and in a
deployment. `Strategy.start` of Flower has no start round and is not used (docs/decisions).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from common.config import digest, to_json
from common.contract import Contract
from common.errors import InputError, Refused, UpdateRejected, VeilfaceError
from common.npy import from_npy, to_npy
from common.parameters import Layout
from common.update import (
    Expected,
    check_arrays,
    check_header,
    check_ready,
    check_refusal,
    model_id_of,
)
from server.aggregation import AGGREGATORS, Weighted
from server.checkpoint import Checkpoint, RoundRecord, load, save
from server.optimizer import OptimizerConfig, OptimizerState, advance

_CONNECT_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.5
_SILENT: Final = "no answer in time"
_LOST: Final = "refused: unprepared"
Evaluate = Callable[[int, NDArray[np.float32]], dict[str, float]]


@dataclass(frozen=True)
class Federation:
    """What the server holds before the first round; all of it is public.

    Attributes:
        contract: the constants agreed with the sites.
        layout: names and shapes of the trainable parameters.
        state: state of the trainable part (parameters and public buffers).
        public_inputs: the public bank as the trainable part takes it, [N, ...].
        optimizer, aggregator: how updates become the next model.
        minimum_sites: a round with fewer accepted updates stops the run.
        timeout: seconds that a round waits for answers; None waits for all.
        weights: public weight by node id; a site that is not named weighs 1.
    """

    contract: Contract
    layout: Layout
    state: Mapping[str, Tensor]
    public_inputs: Tensor
    initial: NDArray[np.float32]
    optimizer: OptimizerConfig
    aggregator: str
    minimum_sites: int
    timeout: float | None
    weights: Mapping[int, float]


class Observer(Protocol):
    """Who watches a run; called from the loop, must not raise."""

    def round_started(self, round_: int, sites: int) -> None: ...

    def round_finished(self, record: RoundRecord) -> None: ...


class RoundFailed(VeilfaceError):  # noqa: N818 - names what happened
    """Too few usable answers; the checkpoint of the last good round stays."""


def run_rounds(
    grid: Grid,
    federation: Federation,
    checkpoint_path: Path,
    evaluate: Evaluate,
    observer: Observer,
) -> Checkpoint:
    """Run all rounds that the checkpoint does not hold yet, and return the last checkpoint."""
    contract = federation.contract
    name = digest(contract)
    if checkpoint_path.exists():
        done = load(checkpoint_path, name)
    else:
        # Kept before the first round: a start that is computed again may differ in its last digits,
        # and sites answer only the request of a round that they have answered before.
        done = Checkpoint(name, OptimizerState.start(federation.initial), ())
        save(checkpoint_path, done)
    prepared: set[int] = set()
    for round_ in range(done.state.round + 1, contract.rounds + 1):
        started = time.monotonic()
        nodes = _connected(grid, federation)
        observer.round_started(round_, len(nodes))
        unready = _prepare(grid, federation, [node for node in nodes if node not in prepared])
        asked = [node for node in nodes if node not in unready]
        accepted, refused = _ask(grid, federation, done.state, round_, asked)
        prepared = {node for node in asked if (node, _LOST) not in refused}
        rejected = sorted([*unready.items(), *refused])
        if len(accepted) < federation.minimum_sites:
            _stop(round_, accepted, rejected, federation.minimum_sites)
        delta = AGGREGATORS[federation.aggregator](accepted)
        state = advance(done.state, delta, federation.optimizer, contract.rounds)
        if not np.isfinite(state.global_parameters()).all():
            raise RoundFailed(
                f"round {round_} would leave the model with numbers that are not finite",
                hint="a site may be hostile: go on from the last round with --aggregator median",
            )
        scores = evaluate(round_, state.released())
        seconds = time.monotonic() - started
        record = RoundRecord(round_, len(accepted), tuple(rejected), seconds, scores, tuple(asked))
        done = Checkpoint(name, state, (*done.history, record))
        save(checkpoint_path, done)
        observer.round_finished(record)
    return done


def _connected(grid: Grid, federation: Federation) -> list[int]:
    """Return the connected sites, after waiting for as many as a round needs."""
    patience = _CONNECT_SECONDS if federation.timeout is None else federation.timeout
    deadline = time.monotonic() + patience
    while len(nodes := sorted(grid.get_node_ids())) < federation.minimum_sites:
        if time.monotonic() > deadline:
            raise RoundFailed(
                f"{len(nodes)} sites are connected, {federation.minimum_sites} are needed",
                hint="start the sites and run again: it goes on from the last finished round",
            )
        time.sleep(_POLL_SECONDS)
    return nodes


def _stop(
    round_: int, accepted: list[Weighted], rejected: list[tuple[int, str]], minimum: int
) -> None:
    reasons = "; ".join(sorted({reason for _, reason in rejected})) or "no site answered"
    message = f"round {round_}: {len(accepted)} usable updates, {minimum} needed: {reasons}"
    if rejected and all(reason == "refused: budget" for _, reason in rejected):
        raise Refused(message, hint="the sites' privacy budget is spent")
    hint = "each site's own log says why; the last finished round is kept: mend it, then resume"
    raise RoundFailed(message, hint=hint if rejected else "resume when sites are back")


def _send(grid: Grid, messages: Iterable[Message], timeout: float | None) -> list[Message]:
    # Some grids go through the messages twice, so a generator would arrive empty.
    return list(grid.send_and_receive(list(messages), timeout=timeout))


def _prepare(grid: Grid, federation: Federation, nodes: list[int]) -> dict[int, str]:
    """Send the public part of the run to sites that do not have it from this process yet.

    Returns why a site is not ready, by node id: it is not asked for an update, and spends nothing.
    """
    if not nodes:
        return {}
    state = {name: Array(*to_npy(value.numpy())) for name, value in federation.state.items()}
    content = RecordDict(
        {
            "request": ConfigRecord({"contract": to_json(federation.contract)}),
            "state": ArrayRecord(state),
            "public": ArrayRecord({"inputs": Array(*to_npy(federation.public_inputs.numpy()))}),
        }
    )
    messages = (Message(content, node, "query.prepare") for node in nodes)
    unready = dict.fromkeys(nodes, _SILENT)
    for reply in _send(grid, messages, federation.timeout):
        node = reply.metadata.src_node_id
        try:
            check_ready(_header(reply), digest(federation.contract))
        except UpdateRejected as error:
            unready[node] = error.message
        else:
            unready.pop(node, None)
    return {node: reason for node, reason in unready.items() if node in nodes}


def _ask(
    grid: Grid, federation: Federation, state: OptimizerState, round_: int, nodes: list[int]
) -> tuple[list[Weighted], list[tuple[int, str]]]:
    """Ask all sites for their update; return the usable ones and why the others are not."""
    contract = federation.contract
    parameters = state.global_parameters()
    model_id = model_id_of(contract.run_id, parameters)
    expected = Expected(contract.run_id, model_id, round_, federation.layout)
    content = RecordDict(
        {
            "request": ConfigRecord({"contract_digest": digest(contract), "round": round_}),
            "parameters": ArrayRecord({"vector": Array(*to_npy(parameters))}),
        }
    )
    messages = (Message(content, node, "train", group_id=str(round_)) for node in nodes)
    accepted: dict[int, Weighted] = {}
    rejected: list[tuple[int, str]] = []
    for reply in _send(grid, messages, federation.timeout):
        node = reply.metadata.src_node_id
        try:
            if node not in nodes:
                raise UpdateRejected("an answer from a site that was not asked")
            if node in accepted:
                raise UpdateRejected("a second answer in the same round")
            delta = read_update(reply, expected)
        except UpdateRejected as error:
            rejected.append((node, error.message))
        else:
            accepted[node] = Weighted(delta, federation.weights.get(node, 1.0))
    silent = set(nodes) - set(accepted) - {node for node, _ in rejected}
    rejected.extend((node, _SILENT) for node in sorted(silent))
    return list(accepted.values()), rejected


def read_update(reply: Message, expected: Expected) -> NDArray[np.float32]:
    """Return the flat delta of a reply that is on the whitelist; else raise UpdateRejected."""
    header = _header(reply)
    content = reply.content
    if set(content) == {"header"} and "refusal" in header:
        raise UpdateRejected(f"refused: {check_refusal(header)}")
    if set(content) != {"header", "update"} or "update" not in content.array_records:
        odd = [name[:80] for name in sorted(content)[:3]]
        raise UpdateRejected(f"records {odd} are not on the whitelist")
    check_header(header, expected)
    return check_arrays(_decode(content.array_records["update"], expected.layout), expected.layout)


def _header(reply: Message) -> Mapping[str, object]:
    if reply.has_error():
        if reply.error.code == ErrorCode.INVALID_FAB:
            raise UpdateRejected("the site's policy does not list the code that this server runs")
        raise UpdateRejected(f"the site's app failed (code {reply.error.code})")
    header = reply.content.config_records.get("header")
    if header is None:
        raise UpdateRejected("no header")
    return header


# What numpy's own file header may add to an array's bytes.
_NPY_HEADER = 1024


def _decode(record: ArrayRecord, layout: Layout) -> dict[str, NDArray[np.generic]]:
    """Decode arrays after checking their sizes, so that an oversized one is never unpacked."""
    limit = 4 * layout.dimension + _NPY_HEADER * len(layout.names)
    if len(record) > len(layout.names) or record.count_bytes() > limit:
        raise UpdateRejected(f"the update is larger than the {limit} bytes it can have")
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, array in record.items():
        try:
            arrays[name] = from_npy(array.data)
        except InputError as error:
            raise UpdateRejected(f"{name[:80]!r} cannot be decoded: {error.message}") from error
    return arrays
