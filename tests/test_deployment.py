"""The same apps under `flwr run`: a real SuperLink, two real SuperNodes, and a tap on the wire."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from common.app_bundle import app_hash
from common.backbones.weights import load_model
from common.ledger import verify
from common.spending import spent

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ROUNDS = 2
PATIENCE = 180.0

TOML = """
run_id = "deployed"
out = "{out}"
public = "{public}"
backbone = "lenet"
aligned = true

[training]
train_set = "adapter"
loss = "public-negatives"
rounds = {rounds}
local_steps = 1
epsilon = 2.0
delta = 1e-4
sample_rate = 1.0
persons_per_site = 8.0
aggregator = "mean"
seed = 0
minimum_sites = 2
timeout = 120.0
"""

POLICY = """
backbones = ["lenet"]
epsilon = 2.0
delta = 1e-4
epsilon_per_run = 2.0
rounds_per_run = 10
trust = ["local"]
survivors = 0
colluders = 0
code = ["{code}"]
"""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, deadline: float) -> None:
    """Wait until something listens on a loopback port: `flwr run` does not try twice."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.2)


class Tap:
    """A TCP relay on loopback that keeps every byte that a site sends."""

    def __init__(self, target: int) -> None:
        self._target, self.sent = target, bytearray()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                site, _ = self._server.accept()
            except OSError:
                return  # closed
            try:
                link = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                site.close()  # the SuperLink is not up yet; the SuperNode tries again
                continue
            for source, sink, record in ((site, link, True), (link, site, False)):
                threading.Thread(
                    target=self._pump, args=(source, sink, record), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, record: bool) -> None:
        with closing(source), closing(sink):
            try:
                while data := source.recv(65536):
                    if record:
                        self.sent += data
                    sink.sendall(data)
            except OSError:
                return  # the other direction ended first

    def close(self) -> None:
        self._server.close()


@contextmanager
def processes(
    *commands: tuple[list[str], Path, dict[str, str]],
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run commands in their own process groups, output to a file each, until the block ends."""
    running = []
    try:
        for command, log, environment in commands:
            with log.open("wb") as output:
                running.append(
                    subprocess.Popen(
                        command,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )
        yield running
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def bundle(tmp_path: Path) -> Path:
    """A copy of what the app bundle holds, so that the checkout's own folders stay out of it."""
    app = tmp_path / "app"
    for room in ("common", "client", "server"):
        shutil.copytree(ROOT / room, app / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, app / name)
    return app


def test_flwr_run_trains_across_two_sites_and_no_canary_is_on_the_wire(
    people_folder: Path, tmp_path: Path
) -> None:
    folders = sorted(people_folder.iterdir())
    for name, chosen in (
        ("a", folders[:8]),
        ("b", folders[8:16]),
        ("public", folders[16:]),
    ):
        for folder in chosen:
            shutil.copytree(folder, tmp_path / name / folder.name)
    config = tmp_path / "federation.toml"
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(code=app_hash()))
    config.write_text(TOML.format(out=tmp_path / "out", public=tmp_path / "public", rounds=ROUNDS))
    link, front = free_port(), tmp_path / "flwr-home"
    tap = Tap(link)
    environment = {
        **os.environ,
        "FLWR_HOME": str(front),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    front.mkdir()
    (front / "config.toml").write_text(
        f'[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\n'
        f'address = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    superlink = [
        str(BIN / "flower-superlink"),
        *("--insecure", "--host", "127.0.0.1", "--port", str(link)),
        "--disable-runtime-dependency-installation",
    ]

    def supernode(name: str) -> list[str]:
        settings = (
            f'data-dir="{tmp_path / name}" state-dir="{tmp_path / "state" / name}" '
            f'cache-dir="{tmp_path / "cache"}" aligned=true policy="{policy}"'
        )
        return [
            str(BIN / "flower-supernode"),
            *("--insecure", "--superlink", f"127.0.0.1:{tap.port}", "--port", str(free_port())),
            *("--node-config", settings),
        ]

    model = tmp_path / "out" / "model.safetensors"
    log = tmp_path / "log"
    log.mkdir()
    with processes(
        (superlink, log / "superlink", environment),
        (supernode("a"), log / "a", environment),
        (supernode("b"), log / "b", environment),
    ) as running:
        deadline = time.monotonic() + PATIENCE
        wait_for(link, deadline)
        started = subprocess.run(
            [
                str(BIN / "flwr"),
                *("run", str(bundle(tmp_path)), "deployment"),
                *("--run-config", f'config="{config}"'),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        while not model.exists() and time.monotonic() < deadline:
            if any(process.poll() is not None for process in running):
                break
            time.sleep(0.5)
    logs = "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in log.iterdir())
    tap.close()
    assert model.exists(), started.stdout + started.stderr + logs

    delta_bytes = sum(t.numel() * 4 for n, t in load_model(model).state.items() if "adapter" in n)
    for name in ("a", "b"):
        report = verify(tmp_path / "state" / name)
        assert report.ok
        assert [r.round for r in report.reservations] == list(range(1, ROUNDS + 1))
        assert all(r.private for r in report.reservations)
        assert spent(report.reservations, 1e-4) <= 2.0
    sent = bytes(tap.sent)
    assert len(sent) > 2 * ROUNDS * delta_bytes, "the tap must have seen the updates"
    assert b"CANARY" not in sent
    assert b"model_id" in sent, "the tap must see plain records, or it proves nothing"
    from PIL import Image

    for path in [*(tmp_path / "a").rglob("*.png"), *(tmp_path / "b").rglob("*.png")]:
        assert path.name.encode() not in sent
        assert path.read_bytes()[-200:-100] not in sent
        assert np.asarray(Image.open(path))[56].tobytes() not in sent


@pytest.mark.parametrize("missing", ["data-dir", "state-dir", "policy"])
def test_a_site_without_a_stated_policy_or_folder_is_refused(missing: str, tmp_path: Path) -> None:
    from flwr.app import Context, RecordDict

    from client.deployment import open_folder_site
    from common.errors import InputError

    settings: dict[str, str] = {
        "data-dir": str(tmp_path),
        "state-dir": str(tmp_path / "s"),
        "policy": str(tmp_path / "policy.toml"),
    }
    del settings[missing]
    context = Context(1, 1, dict(settings), RecordDict(), {})
    with pytest.raises(InputError, match=missing):
        open_folder_site(context)
