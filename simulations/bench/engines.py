"""`veilface bench simulation`: 100 sites x 5 rounds x 1M parameters, in-process beside Ray.

Training is trivial (add one), so what is timed is the engine: making, carrying and answering
messages. Each engine runs in its own process; the peak memory is that of the process tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from common.npy import from_npy, to_npy
from simulations.bench.timing import Case, case
from simulations.federation import run_ray
from simulations.inprocess import run_in_process

SITES, ROUNDS, PARAMETERS = 100, 5, 1_000_000


def _vector(message: Message) -> NDArray[np.float32]:
    return from_npy(message.content.array_records["model"]["vector"].data).astype(
        np.float32, copy=False
    )


def apps() -> tuple[ServerApp, ClientApp]:
    """Return apps whose sites add one and whose server averages; it checks the sum it gets."""
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        vector = _vector(message)
        content = RecordDict({"model": ArrayRecord({"vector": Array(*to_npy(vector + 1.0))})})
        return Message(content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < SITES:
            time.sleep(0.1)
        vector = np.zeros(PARAMETERS, dtype=np.float32)
        for _ in range(ROUNDS):
            content = RecordDict({"model": ArrayRecord({"vector": Array(*to_npy(vector))})})
            asked = (Message(content, node, "train") for node in grid.get_node_ids())
            total, answers = np.zeros(PARAMETERS, dtype=np.float64), 0
            for reply in grid.send_and_receive(asked):
                total += _vector(reply)
                answers += 1
            if answers != SITES:
                raise RuntimeError(f"{answers} of {SITES} sites answered")
            vector = (total / SITES).astype(np.float32)
        if not np.all(vector == ROUNDS):
            raise RuntimeError("the engine lost an update")

    return server, client


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds and peak megabytes of one engine's process tree."""

    seconds: float
    peak_mb: float


def run_engine(engine: str) -> float:
    """Run the workload in this process and return its seconds, start-up of the engine included."""
    server, client = apps()
    started = time.perf_counter()
    if engine == "inprocess":
        run_in_process(server, client, SITES)
    else:
        run_ray(server, client, SITES)
    return time.perf_counter() - started


def measure(engine: str) -> Measured:
    """Run one engine in a fresh process and watch the memory of it and its children."""
    code = (
        "import json, sys; from simulations.bench.engines import run_engine; "
        f"print(json.dumps(run_engine({engine!r})), file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
    )
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        tree = psutil.Process(process.pid)
        while not done.wait(0.1):
            try:
                used = sum(p.memory_info().rss for p in [tree, *tree.children(recursive=True)])
            except psutil.Error:
                continue  # a child ended between the two calls
            peak[0] = max(peak[0], used / 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _, errors = process.communicate()
    done.set()
    if process.returncode != 0:
        raise RuntimeError(f"the engine {engine} failed: {errors[-2000:]}")
    return Measured(float(json.loads(errors.strip().splitlines()[-1])), peak[0])


def simulation(runs: int) -> list[Case]:
    """Return time and peak memory of the in-process engine over Flower's Ray engine."""
    ours, peer = [], []
    for _ in range(runs):
        ours.append(measure("inprocess"))
        peer.append(measure("ray"))
    name = f"{SITES}x{ROUNDS}x1M"

    def middle(values: list[float]) -> float:
        return float(np.median(values))

    return [
        case(
            f"{name}/ray",
            middle([m.seconds for m in ours]),
            middle([m.seconds for m in peer]),
            runs,
        ),
        case(
            f"{name}/ray-memory",
            middle([m.peak_mb for m in ours]),
            middle([m.peak_mb for m in peer]),
            runs,
            "MB",
        ),
    ]
