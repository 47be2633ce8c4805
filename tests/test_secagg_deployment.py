"""Secure aggregation in a deployment: real processes, of which each kind is killed in mid-run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors import safe_open

from common.ledger import verify
from common.spending import spent
from server.deployment.folder import RunFolder

BIN = Path(sys.executable).parent
SITES = ("north", "south", "west")
ROUNDS = 8
PATIENCE = 150.0

TRAINING = f"""
backbone = "lenet"

[training]
trust = "secagg"
colluders = 0
minimum_sites = 2
train_set = "adapter"
loss = "public-negatives"
rounds = {ROUNDS}
local_steps = 1
epsilon = 2.0
delta = 1e-4
sample_rate = 1.0
persons_per_site = 6.0
aggregator = "mean"
seed = 0
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "FLWR_HOME": str(tmp_path / "home"),
        "VEILFACE_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def process(
    command: Sequence[str], log: Path, environment: dict[str, str]
) -> Iterator[psutil.Process]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield psutil.Process(started.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def kill(parent: psutil.Process, word: str) -> None:
    """Kill -9 the one part of a supervisor whose command line holds a word."""
    for part in parent.children(recursive=True):
        with suppress(psutil.Error):
            if any(word in argument for argument in part.cmdline()):
                part.kill()
                return
    raise AssertionError(f"no process of {word}")


def wait_until(holds: Callable[[], bool], logs: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            texts = (f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs.glob("*.log"))
            raise AssertionError("\n".join(texts))
        time.sleep(0.1)


def test_a_deployed_run_with_secure_aggregation_outlives_every_process(
    people_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    folders = sorted(people_folder.iterdir())
    parts = {name: folders[6 * i : 6 * i + 6] for i, name in enumerate((*SITES, "public"))}
    for name, chosen in parts.items():
        for folder in chosen:
            shutil.copytree(folder, tmp_path / "data" / name / folder.name)
    (tmp_path / "training.toml").write_text(TRAINING)
    veilface, port = str(BIN / "veilface"), free_port()

    def do(*command: str) -> None:
        done = subprocess.run(
            [veilface, *command], env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr

    do(
        *("provision", "--name", "fed", "--server", f"127.0.0.1:{port}"),
        *[part for name in SITES for part in ("--site", name)],
        *("--config", str(tmp_path / "training.toml"), "--out", str(tmp_path / "fed")),
    )
    bundles = tmp_path / "fed" / "current" / "bundles"
    state = tmp_path / "server"
    server = [
        *(veilface, "server", "up", "--bundle", str(bundles / "fed-server.tar.gz")),
        *("--state", str(state), "--page", f"127.0.0.1:{free_port()}"),
    ]
    run = RunFolder(state / "runs" / "one")

    def reached(round_: int) -> bool:
        progress = run.progress() if run.exists else None
        return progress is not None and progress.round >= round_

    with ExitStack() as running:
        up = running.enter_context(process(server, tmp_path / "server.log", environment))
        sites = {}
        for name in SITES:
            site = [
                *(veilface, "site", "up", "--bundle", str(bundles / f"fed-{name}.tar.gz")),
                *("--data", str(tmp_path / "data" / name), "--state", str(tmp_path / name)),
                *("--accept-terms", "--aligned"),
            ]
            log = tmp_path / f"{name}.log"
            sites[name] = running.enter_context(process(site, log, environment))
        wait_until(lambda: (state / "roster").exists(), tmp_path)
        do(
            *("server", "run", "--state", str(state), "--public", str(tmp_path / "data/public")),
            *("--aligned", "--run-id", "one", "--detach"),
        )
        for done, parent, word in (
            (1, sites["south"], "client.up"),
            (3, up, "server.deployment.coordinator"),
            (5, up, "flower-superlink"),
        ):
            wait_until(partial(reached, done), tmp_path)
            kill(parent, word)
        wait_until(lambda: run.ended, tmp_path)
    progress = run.progress()
    assert progress is not None
    assert (progress.state, progress.round) == ("finished", ROUNDS), progress.why
    assert progress.epsilon <= 2.0
    with safe_open(str(run.checkpoint), framework="numpy") as file:
        assert np.isfinite(file.get_tensor("parameters")).all()
        assert np.abs(file.get_tensor("first")).max() < 5, "a wrong sum is in the hundreds"
    for name in SITES:
        report = verify(tmp_path / name)
        assert report.ok
        assert {(r.mechanism, r.shares) for r in report.reservations} == {("discrete-shared", 2)}
        assert len({r.round for r in report.reservations}) == len(report.reservations)
        assert spent(report.reservations, 1e-4) <= 2.0
        assert not list((tmp_path / name).glob("masking/*/run.key"))
