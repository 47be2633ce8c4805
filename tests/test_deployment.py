"""The same apps under `flwr run`: a real SuperLink, two real SuperNodes, and a tap on the wire."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.app_bundle import app_hash
from common.backbones.weights import load_model
from common.ledger import verify
from common.spending import spent
from server.checkpoint import history
from server.report.utility import public_scores, read_utility
from simulations.small_training import SMALL, training_toml
from tests.process_rig import BIN, PATIENCE, code_copy, free_port, processes, until, wait_for

ROUNDS = 2

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
    config.write_text(
        training_toml(
            replace(SMALL, rounds=ROUNDS, timeout=120.0),
            run_id="deployed",
            out=tmp_path / "out",
            public=tmp_path / "public",
            test=tmp_path / "public",
            aligned=True,
        )
    )
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
        wait_for(link)
        started = subprocess.run(
            [
                str(BIN / "flwr"),
                *("run", str(code_copy(tmp_path)), "deployment"),
                *("--run-config", f'config="{config}"'),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        until(
            lambda: model.exists() or any(process.poll() is not None for process in running),
            lambda: started.stdout + started.stderr + _logs(log),
        )
    tap.close()
    assert model.exists(), started.stdout + started.stderr + _logs(log)

    utility, last = (
        read_utility(tmp_path / "out"),
        history(tmp_path / "out" / "checkpoint.safetensors")[-1],
    )
    # Eight persons are too few to choose a public start on: there is none.
    assert utility is not None and utility.public_only is None and utility.judges == 0
    assert utility.before.mated == utility.after.mated > 0 and utility.after.ci is not None
    assert public_scores(utility.after) == last.scores
    assert utility.after != utility.before

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


def _logs(folder: Path) -> str:
    return "\n".join(
        f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in folder.iterdir()
    )


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
