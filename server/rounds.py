"""The round loop: ask the sites, check their answers, aggregate, step, checkpoint; resumable.

It needs nothing of Flower but a Grid, so it is the same in one process, under Ray and in a
deployment. `Strategy.start` of Flower has no start round and is not used (docs/decisions).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn, Protocol

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.weights import model_id
from common.config import digest, to_json
from common.contract import Contract
from common.errors import InputError, Refused, UpdateRejected, VeilfaceError
from common.layout import Layout
from common.npy import from_npy, to_npy
from common.parameters import pieces
from common.roster import Roster
from common.terms import check_masked
from common.update import (
    Expected,
    check_arrays,
    check_header,
    check_ready,
    model_id_of,
)
from server.aggregation import AGGREGATORS, Weighted
from server.checkpoint import Checkpoint, RoundRecord, load, save
from server.exchange import LOST, exchange, header_of, records_of
from server.masked_rounds import Collected, MaskedRounds, Parties
from server.optimizer import OptimizerConfig, OptimizerState, advance

_CONNECT_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.5
# What a site says that will say the same again until somebody changes its policy.
_NO: Final = ("refused: budget", "refused: contract")
UNDER_WAY: Final = "masked-round.json"
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
        settle: what parameters [d] the mean delta [d] of so many sites says, where that is more
            than a step; None: the optimiser takes it as it is.
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
    settle: Callable[[NDArray[np.float32], int], NDArray[np.float32]] | None = None


class Observer(Protocol):
    """Who watches a run; called from the loop: what it raises stops the run."""

    def round_started(self, round_: int, nodes: Collection[int]) -> None:
        """Take note of who may be asked, before anyone is."""

    def round_finished(self, record: RoundRecord) -> None: ...


class RoundFailed(VeilfaceError):  # noqa: N818 - names what happened
    """Too few usable answers; the checkpoint of the last good round stays."""


def run_rounds(
    grid: Grid,
    federation: Federation,
    checkpoint_path: Path,
    evaluate: Evaluate,
    observer: Observer,
    parties: Parties | None = None,
) -> Checkpoint:
    """Run all rounds that the checkpoint does not hold yet, and return the last checkpoint.

    `parties` are needed for secure aggregation only.
    """
    contract = federation.contract
    name = digest(contract)
    if checkpoint_path.exists():
        done = load(checkpoint_path, name)
    else:
        # Kept before the first round: a start that is computed again may differ in its last digits,
        # and sites answer only the request of a round that they have answered before.
        done = Checkpoint(name, OptimizerState.start(federation.initial), ())
        save(checkpoint_path, done)
    masked = _masked(grid, federation, parties, checkpoint_path.with_name(UNDER_WAY))
    prepared: set[int] = set()
    for round_ in range(done.state.round + 1, contract.rounds + 1):
        started = time.monotonic()
        nodes = _connected(grid, federation)
        if masked is not None and masked.renew():
            prepared.clear()
        new = [node for node in nodes if node not in prepared]
        unready = _prepare(grid, federation, new, masked) if new else {}
        ready = [node for node in nodes if node not in unready]
        parameters = done.state.global_parameters()
        under_way = masked is not None and masked.under_way(round_, parameters)
        if len(ready) < federation.minimum_sites and not under_way:
            _too_few(round_, nodes, unready, federation.minimum_sites, parties)
        observer.round_started(round_, ready)
        if masked is None:
            found = _collect(grid, federation, parameters, round_, ready)
        else:
            found = masked.collect(round_, parameters, ready)
        prepared = {node for node in ready if (node, LOST) not in found.rejected}
        rejected = sorted([*unready.items(), *found.rejected])
        if found.delta is not None:
            delta = found.delta
            if federation.settle is not None:
                delta = federation.settle(delta, found.accepted)
            state = advance(done.state, delta, federation.optimizer, contract.rounds)
        elif found.lost:
            state = replace(done.state, round=round_)
        else:
            _stop(round_, found, rejected, federation.minimum_sites)
        if not np.isfinite(state.global_parameters()).all():
            raise RoundFailed(
                f"round {round_} would leave the model with numbers that are not finite",
                hint="a site may be hostile: go on from the last round with --aggregator median",
            )
        released = state.released()
        scores, model = evaluate(round_, released), _version(federation, released)
        seconds = time.monotonic() - started
        record = RoundRecord(
            round_, found.accepted, tuple(rejected), seconds, scores, found.asked, model, found.used
        )
        done = Checkpoint(name, state, (*done.history, record))
        save(checkpoint_path, done)
        observer.round_finished(record)
    if masked is not None:
        masked.end(grid.get_node_ids())
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


def _version(federation: Federation, released: NDArray[np.float32]) -> str:
    """Return the id that a model file with these trainable parameters [d] has."""
    trained = pieces(torch.from_numpy(released), federation.layout)
    return model_id({**federation.state, **trained})


def _masked(
    grid: Grid, federation: Federation, parties: Parties | None, path: Path
) -> MaskedRounds | None:
    """Return what collects masked rounds, where the run was agreed with secure aggregation."""
    if federation.contract.masking is None:
        return None
    if parties is None:
        raise InputError(
            "secure aggregation needs a roster of the sites",
            hint="veilface server up, or trust local",
        )
    check_masked(federation.aggregator, federation.contract.local_steps, 1.0)
    if federation.weights:
        raise InputError("a masked sum has no weights", hint="trust local, or no weights")
    return MaskedRounds(grid, federation.contract, parties, federation.timeout, path)


def _too_few(
    round_: int,
    nodes: list[int],
    unready: Mapping[int, str],
    minimum: int,
    parties: Parties | None,
) -> NoReturn:
    """Stop before anyone is asked for an update; a run that has not begun and that too many sites
    said no to is Refused, since it would only wait for them for ever."""
    names = {node: (parties and parties.name_of(node)) or f"node {node}" for node in unready}
    reasons = "; ".join(sorted(f"{names[node]}: {reason}" for node, reason in unready.items()))
    message = f"{len(nodes) - len(unready)} sites can take part, {minimum} are needed: {reasons}"
    members = len(nodes)
    if parties is not None:
        members = max(members, len(Roster.read(parties.roster(), parties.key).sites))
    no = sum(reason in _NO for reason in unready.values())
    if round_ == 1 and members - no < minimum:
        raise Refused(
            f"too few sites say yes to this run, and nobody has spent anything on it: {message}",
            hint="each site's own log says why it said no",
        )
    if unready and all(reason == "refused: budget" for reason in unready.values()):
        raise Refused(f"round {round_}: {message}", hint="the sites' privacy budget is spent")
    raise RoundFailed(
        f"round {round_}: {message}", hint="each site's own log says why; mend it, then resume"
    )


def _stop(round_: int, found: Collected, rejected: list[tuple[int, str]], minimum: int) -> NoReturn:
    reasons = "; ".join(sorted({*(reason for _, reason in rejected), found.why} - {""}))
    message = (
        f"round {round_}: {found.accepted} usable updates, {minimum} needed: "
        f"{reasons or 'no site answered'}"
    )
    if rejected and all(reason == "refused: budget" for _, reason in rejected):
        raise Refused(message, hint="the sites' privacy budget is spent")
    hint = "each site's own log says why; the last finished round is kept: mend it, then resume"
    raise RoundFailed(message, hint=hint if rejected else "resume when sites are back")


def _prepare(
    grid: Grid, federation: Federation, nodes: list[int], masked: MaskedRounds | None
) -> dict[int, str]:
    """Send the public part of the run to sites that do not have it from this process yet.

    Returns why a site is not ready, by node id: it is not asked for an update, and spends nothing.
    """
    state = {name: Array(*to_npy(value.numpy())) for name, value in federation.state.items()}
    content = RecordDict(
        {
            "request": ConfigRecord({"contract": to_json(federation.contract)}),
            "state": ArrayRecord(state),
            "public": ArrayRecord({"inputs": Array(*to_npy(federation.public_inputs.numpy()))}),
        }
    )

    def ready(node: int, reply: Message) -> None:
        check_ready(header_of(reply), digest(federation.contract))

    if masked is not None:
        content["masking"] = masked.invitation()
    read = ready if masked is None else masked.admit
    questions = dict.fromkeys(nodes, content)
    unready = exchange(grid, "query.prepare", questions, read, timeout=federation.timeout)
    return {node: reason for node, reason in unready if node in nodes}


def _collect(
    grid: Grid,
    federation: Federation,
    parameters: NDArray[np.float32],
    round_: int,
    nodes: list[int],
) -> Collected:
    """Ask all sites for their update; return what the usable ones give, and the others' reasons."""
    contract = federation.contract
    start = model_id_of(contract.run_id, parameters)
    expected = Expected(contract.run_id, start, round_, federation.layout)
    content = RecordDict(
        {
            "request": ConfigRecord({"contract_digest": digest(contract), "round": round_}),
            "parameters": ArrayRecord({"vector": Array(*to_npy(parameters))}),
        }
    )
    accepted: dict[int, Weighted] = {}

    def read(node: int, reply: Message) -> None:
        delta = read_update(reply, expected)
        accepted[node] = Weighted(delta, federation.weights.get(node, 1.0))

    questions = dict.fromkeys(nodes, content)
    rejected = exchange(
        grid, "train", questions, read, timeout=federation.timeout, group=str(round_)
    )
    enough = len(accepted) >= federation.minimum_sites
    updates = list(accepted.values())
    delta = AGGREGATORS[federation.aggregator](updates) if enough else None
    return Collected(delta, len(accepted), rejected, tuple(nodes), tuple(sorted(accepted)))


def read_update(reply: Message, expected: Expected) -> NDArray[np.float32]:
    """Return the flat delta of a reply that is on the whitelist; else raise UpdateRejected."""
    header = header_of(reply)
    update = records_of(reply, "header", "update").array_records.get("update")
    if update is None:
        raise UpdateRejected("the update is not a record of arrays")
    check_header(header, expected)
    return check_arrays(_decode(update, expected.layout), expected.layout)


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
