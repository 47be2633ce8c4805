"""A federation in real processes, sealed, chatty and watched; and a site that is an attacker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from common.terms import read_terms
from server.deployment.folder import Progress, ServerFolder
from server.provisioning.federation import create
from server.provisioning.request import Endpoint, Passphrase, Passphrases, Settings
from simulations.small_training import SMALL, training_toml
from tests.process_rig import ROOT, free_port, wait_for
from tests.provisioning_rig import archive

PASSPHRASE: Final = "correct-horse-battery-staple"
SEALED: Final = Passphrases((Passphrase("", PASSPHRASE),))
# What the trace of a process tree must hold of every connection.
_STRACE: Final = ("strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg")


def few_terms(rounds: int) -> str:
    """A `training.toml` that one site is enough for, and that waits for nobody for long."""
    return training_toml(replace(SMALL, rounds=rounds, epsilon=8.0, minimum_sites=1, timeout=20.0))


@dataclass
class Federated:
    """Sites a and b; the server and a run as their commands do, b is for the test to play."""

    root: Path
    port: int
    page: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def folder(self) -> ServerFolder:
        return ServerFolder(self.root / "server")

    def bundle(self, party: str) -> Path:
        return archive(self.root / "fed", party)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "common.cli", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """The least, with Flower's telemetry and update check as they are when nobody is asked."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = {"HOME": str(self.root / "home"), "TMPDIR": str(self.root / "tmp")}
        cache = {"VEILFACE_CACHE_KEY": str(self.root / "cache.key")}
        return {**kept, **own, **cache, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run a command that stays, its connections traced where strace is installed."""
        trace = [*_STRACE, "-o", str(self.root / f"{name}.trace")] if shutil.which("strace") else []
        with (self.root / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*trace, *self.command("--verbose", *arguments)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**self.environment, "VEILFACE_BUNDLE_PASSPHRASE": PASSPHRASE},
            )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True,
            timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.logs()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ask(self, run_id: str) -> None:
        """Put a training run on the server's list."""
        self.run(
            "server", "run", "--state", str(self.folder.path), "--public",
            str(self.root / "public"), "--aligned", "--run-id", run_id, "--detach", "--json",
        )  # fmt: skip

    def progress(self, run_id: str) -> Progress | None:
        return self.folder.run(run_id).progress()

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        return self.log("server") + self.log("a")

    def processes(self) -> list[psutil.Process]:
        """Every living process of ours."""
        found = []
        for process in self.running:
            one = psutil.Process(process.pid)
            found.extend([one, *one.children(recursive=True)])
        return found

    def superlink_port(self) -> int:
        """The SuperLink's port, as any user of the machine can see it."""
        for process in self.processes():
            line = process.cmdline()
            if any(part.endswith("flower-superlink") for part in line):
                return int(line[line.index("--port") + 1])
        raise AssertionError("no SuperLink runs")


@contextmanager
def federated(root: Path, people: Path, rounds: int) -> Iterator[Federated]:
    """Provision, start the server and site a, and stop both at the end."""
    made = Federated(root, free_port(), free_port())
    for name in ("home", "tmp"):
        (root / name).mkdir(mode=0o700)
    folders = sorted(people.iterdir())
    for name, chosen in (("a", folders[:8]), ("public", folders[8:20])):
        for folder in chosen:
            shutil.copytree(folder, root / name / folder.name)
    config = root / "training.toml"
    config.write_text(few_terms(rounds))
    settings = Settings("fed", Endpoint("127.0.0.1", made.port), sealed=True)
    now = datetime.now(UTC)
    contract = read_terms(config).to_bytes()
    create(root / "fed", settings, ("a", "b"), SEALED, contract=contract, now=now)
    try:
        made.start(
            "server", "server", "up", "--bundle", str(made.bundle("server")),
            "--state", str(root / "server"), "--page", f"127.0.0.1:{made.page}",
            "--listen", f"127.0.0.1:{made.port}",
        )  # fmt: skip
        made.start(
            "a", "site", "up", "--bundle", str(made.bundle("a")), "--data", str(root / "a"),
            "--state", str(root / "a.state"), "--cache", str(root / "a.cache"), "--aligned",
            "--odometer", str(root / "a.odometer"), "--accept-terms", "--epsilon-total", "8",
        )  # fmt: skip
        wait_for(made.port)
        yield made
    finally:
        for process in made.running:
            process.terminate()
        for process in made.running:
            process.wait(60)
