"""`veilface bench round`: what a round costs beside its training, with three sites on loopback.

Ours is `veilface server up` and three `veilface site up` under the TLS front, as deployed. The peer
is Flower's default way with the same apps, model and people: `flower-superlink`, three
`flower-supernode` and `flwr run`, without TLS. Both run for real, one after the other, in turns;
what is timed is a round from the first question to its checkpoint, as the server notes it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
from PIL import Image

from client.consent import SitePolicy
from common.app_bundle import app_bundle
from common.errors import VeilfaceError
from common.face import ChipSpec
from common.terms import read_terms
from server.deployment.superlink import QUIET
from simulations.bench.timing import Case, case
from simulations.people import generate
from simulations.small_training import SMALL, training_toml

SITES: Final = ("north", "south", "west")
ROUNDS: Final = 6
_PERSONS: Final = 8
_PATIENCE: Final = 900.0
_BIN: Final = Path(sys.executable).parent

_TRAINING: Final = replace(
    SMALL, rounds=ROUNDS, epsilon=8.0, persons_per_site=_PERSONS, minimum_sites=3, timeout=120.0
)


class BenchFailed(VeilfaceError):  # noqa: N818 - names what happened
    """A process of a benchmark did not do its part."""


def rounds(runs: int) -> list[Case]:
    """Return the median seconds of a round over Flower's; the first round of a run is not counted.

    Each turn starts everything anew and runs `ROUNDS` rounds; there are as many turns as give
    `runs` rounds of each.
    """
    turns = max(1, round(runs / (ROUNDS - 1)))
    ours: list[float] = []
    peer: list[float] = []
    with tempfile.TemporaryDirectory(prefix="veilface-bench-") as name:
        root = Path(name)
        _people(root)
        (root / "training.toml").write_text(training_toml(_TRAINING), encoding="utf-8")
        for turn in range(turns):
            ours += _ours(root, root / f"ours-{turn}")
            peer += _peer(root, root / f"peer-{turn}")
    middle = statistics.median
    return [case("3-sites/flower-default", middle(ours), middle(peer), len(ours))]


def _people(root: Path) -> None:
    people = generate(_PERSONS * (len(SITES) + 1), 3, 5, ChipSpec(112, "arcface"))
    parties = (*SITES, "public")
    for row, subject in enumerate(people.subjects.tolist()):
        folder = root / parties[subject // _PERSONS] / f"{subject:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(people.chips[row])).save(folder / f"{row}.png")


def _ours(root: Path, work: Path) -> list[float]:
    work.mkdir()
    port, page = _free_port(), _free_port()
    sites = [part for name in SITES for part in ("--site", name)]
    veilface = str(_BIN / "veilface")
    _do(
        [veilface, "provision", "--name", "bench", "--server", f"127.0.0.1:{port}", *sites,
         "--config", str(root / "training.toml"), "--out", str(work / "fed")],
        work,
    )  # fmt: skip
    bundles = work / "fed" / "current" / "bundles"
    state = work / "server"
    server = [
        *(veilface, "server", "up", "--bundle", str(bundles / "bench-server.tar.gz")),
        *("--state", str(state), "--page", f"127.0.0.1:{page}"),
    ]
    with ExitStack() as running:
        running.enter_context(_process(server, work / "server.log", work))
        _wait_for(port)
        for name in SITES:
            site = [
                *(veilface, "site", "up", "--bundle", str(bundles / f"bench-{name}.tar.gz")),
                *("--data", str(root / name), "--state", str(work / name)),
                *("--accept-terms", "--epsilon-total", "10", "--aligned"),
                *("--odometer", str(work / "odometer")),
            ]
            running.enter_context(_process(site, work / f"{name}.log", work))
        _do(
            [veilface, "server", "run", "--state", str(state), "--public", str(root / "public"),
             "--aligned", "--run-id", "bench"],
            work,
        )  # fmt: skip
    return _seconds(state / "runs" / "bench")


def _peer(root: Path, work: Path) -> list[float]:
    work.mkdir()
    link, out = _free_port(), work / "out"
    app = work / "app"
    with zipfile.ZipFile(BytesIO(app_bundle())) as bundle:
        bundle.extract("pyproject.toml", app)
    manifest = (app / "pyproject.toml").read_text(encoding="utf-8")
    (app / "pyproject.toml").write_text(f'{manifest}config = ""\n', encoding="utf-8")
    settings = work / "federation.toml"
    run = training_toml(_TRAINING, run_id="bench", out=out, public=root / "public", aligned=True)
    settings.write_text(run, encoding="utf-8")
    policy = work / "policy.toml"
    terms = SitePolicy.accepting(read_terms(root / "training.toml"))
    policy.write_text(terms.to_toml(), encoding="utf-8")
    home = work / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{link}"\n'
        "insecure = true\n",
        encoding="utf-8",
    )
    with ExitStack() as running:
        superlink = [
            *(str(_BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1"),
            *("--port", str(link), "--disable-runtime-dependency-installation"),
        ]
        running.enter_context(_process(superlink, work / "superlink.log", work))
        _wait_for(link)
        for name in SITES:
            config = (
                f'data-dir="{root / name}" state-dir="{work / name}" policy="{policy}" '
                f'odometer-dir="{work / "odometer"}" aligned=true'
            )
            node = [
                *(str(_BIN / "flower-supernode"), "--insecure"),
                *("--superlink", f"127.0.0.1:{link}", "--port", str(_free_port())),
                *("--node-config", config),
            ]
            running.enter_context(_process(node, work / f"{name}.log", work))
        command = [str(_BIN / "flwr"), "run", str(app), "bench"]
        _do([*command, "--run-config", f'config="{settings}"'], work)
        deadline = time.monotonic() + _PATIENCE
        while not (out / "model.safetensors").exists():
            if time.monotonic() > deadline:
                raise BenchFailed("Flower's run did not end", hint=f"see the logs in {work}")
            time.sleep(0.5)
    return _seconds(out)


def _seconds(run: Path) -> list[float]:
    """The seconds of all rounds but the first, which also sends the public part."""
    with safetensors.safe_open(str(run / "checkpoint.safetensors"), framework="numpy") as file:
        history = json.loads(file.metadata()["history"])
    return [float(record["seconds"]) for record in history[1:]]


def _environment(work: Path) -> dict[str, str]:
    path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
    own = {"FLWR_HOME": str(work / "home"), "OMP_NUM_THREADS": "1", "PATH": path}
    return {**os.environ, **QUIET, **own, "VEILFACE_CACHE": str(work.parent / "cache")}


def _do(command: Sequence[str], work: Path) -> None:
    done = subprocess.run(
        command, env=_environment(work), capture_output=True, text=True, timeout=_PATIENCE
    )
    if done.returncode:
        raise BenchFailed(f"{command[0]} failed: {done.stderr[-500:]}")


@contextmanager
def _process(command: Sequence[str], log: Path, work: Path) -> Iterator[None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=_environment(work), start_new_session=True
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchFailed(f"nothing listens on port {port}") from error
            time.sleep(0.2)
