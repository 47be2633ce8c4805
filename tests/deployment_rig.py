"""A federation of real processes: provisioned, started, killed part by part, and looked at."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest

from client.consent import SitePolicy
from common.cli import main
from common.terms import read_terms
from server.deployment.folder import RunFolder, ServerFolder
from server.provisioning.federation import create
from server.provisioning.request import Endpoint, Passphrases, Settings
from simulations.small_training import SMALL, training_toml
from tests.process_rig import BIN, free_port, until
from tests.provisioning_rig import OPEN, archive
from tests.warm_rig import Forked, WarmNodes

_NODE: Final = (str(BIN / "python"), "-P", "-m", "client.up")
_PARTS: Final = {
    "flower-superlink": "superlink",
    "server.deployment.front": "front",
    "server.deployment.page": "page",
    "server.deployment.coordinator": "coordinator",
    "client.up": "node",
}


def training(**changes: Any) -> str:
    """A `training.toml`: small models, quick rounds, and as many persons as a rig's sites have."""
    return training_toml(replace(SMALL, persons_per_site=6.0, **changes))


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(*arguments: object) -> Said:
    """Run `veilface` in this process: for commands that look and end, which are many."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    return Said(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@dataclass
class Party:
    """The supervisor of a server or site, or one bare part, and what it printed.

    A bare node is forked from a `warm` process where there is one.
    """

    words: tuple[str, ...]
    log: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | Forked | None = None
    warm: WarmNodes | None = None

    def start(self) -> Party:
        assert not self.runs
        if self.warm is not None:
            self.process = self.warm.fork(self.log, self.words[len(_NODE) :])
            return self
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=self.environment, start_new_session=True,
            )  # fmt: skip
        return self

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def parts(self) -> dict[str, int]:
        """Process ids of the supervisor's living children by name."""
        return {name: pid for pid, name in _children(self.pid)}

    def part(self, name: str) -> int:
        return until(lambda: self.parts().get(name), lambda: f"{name} runs: {self.said[-3000:]}")

    def kill(self, name: str) -> None:
        """kill -9 one part, or the `supervisor`, which must not leave a part behind."""
        if name != "supervisor":
            os.kill(self.part(name), signal.SIGKILL)
            return
        left = list(self.parts().values())
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        until(lambda: not any(map(_lives, left)), "a killed supervisor's parts end", 30.0)

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            for pid in (*self.parts().values(), self.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise


def _children(parent: int) -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            its = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            words = (folder / "cmdline").read_text().split("\0") if its == parent else ()
        except (OSError, ValueError):
            continue  # it has just ended
        for mark, name in _PARTS.items():
            if any(word.endswith(mark) for word in words):
                yield int(folder.name), name


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@dataclass
class Rig:
    """A federation on this machine; `wrap` puts a party's command into a place of its own."""

    root: Path
    people: Path
    sites: tuple[str, ...]
    host: str = "127.0.0.1"
    terms: str | None = None
    passphrases: Passphrases = OPEN
    options: tuple[str, ...] = ()
    wrap: Callable[[str], tuple[str, ...]] = lambda _: ()
    parties: dict[str, Party] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    page: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        contract = None if self.terms is None else self.file("terms.toml", self.terms)
        create(
            self.root / "fed", Settings("fed", Endpoint(self.host, self.port)), self.sites,
            self.passphrases,
            contract=None if contract is None else read_terms(contract).to_bytes(),
        )  # fmt: skip
        folders = sorted(self.people.iterdir())
        for name, chosen in (
            ("one", folders[:6]),
            ("two", folders[6:12]),
            ("three", folders[12:18]),
            ("public", folders[18:]),
        ):
            for folder in chosen:
                shutil.copytree(folder, self.root / name / folder.name)
        (self.root / "log").mkdir()

    def file(self, name: str, text: str) -> Path:
        """A file of this text in the rig's folder."""
        path = self.root / name
        path.write_text(text)
        return path

    @cached_property
    def environment(self) -> dict[str, str]:
        own = {name: str(self.root / name) for name in ("VEILFACE_CACHE", "XDG_DATA_HOME")}
        return {**os.environ, **own, "OMP_NUM_THREADS": "1"}

    @property
    def folder(self) -> ServerFolder:
        return ServerFolder(self.root / "server")

    def state(self, site: str) -> Path:
        return self.root / "sites" / site

    def bundle(self, party: str) -> Path:
        return archive(self.root / "fed", party)

    def party(self, name: str, *words: object) -> Party:
        """A party with a command; the same name again is a new command of the same party."""
        told = (*self.wrap(name), *(str(word) for word in words))
        self.parties[name] = Party(told, self.root / "log" / name, self.environment)
        return self.parties[name]

    def server(self) -> Party:
        """`veilface server up`, not started yet."""
        return self.party(
            "server", BIN / "veilface", "--verbose", "server", "up", *self.options,
            "--bundle", self.bundle("server"), "--state", self.root / "server",
            "--listen", f"{self.host}:{self.port}", "--page", f"127.0.0.1:{self.page}",
        )  # fmt: skip

    def site(self, name: str, *options: object, data: str = "one") -> Party:
        """`veilface site up`, not started yet."""
        return self.party(
            name, BIN / "veilface", "--verbose", "site", "up", *self.options,
            "--bundle", self.bundle(name), "--state", self.state(name),
            "--data", self.root / data, "--aligned", "--odometer", self.odometer(name), *options,
            *(("--epsilon-total", 8) if "--accept-terms" in options else ()),
        )  # fmt: skip

    def odometer(self, name: str) -> Path:
        """Where a site's machine counts what its faces have spent: each has one of its own."""
        return self.root / "odometers" / name

    @cached_property
    def warm(self) -> WarmNodes:
        return WarmNodes(self.root / "ended", self.environment)

    def node(
        self, name: str, policy: SitePolicy, data: str = "one", code: Path | None = None
    ) -> Party:
        """The node of a site alone, as its supervisor starts it, under a policy; not started.

        It runs the installed code, or that of a folder.
        """
        self.state(name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.state(name) / "policy.toml").write_text(policy.to_toml())
        party = self.party(
            name, *_NODE, "--verbose", "--aligned", "--bundle", self.bundle(name),
            "--state", self.state(name), "--data", self.root / data,
            "--odometer", self.odometer(name),
        )  # fmt: skip
        if code is None:
            party.warm = self.warm
        else:
            party.environment = {**self.environment, "PYTHONPATH": str(code)}
        return party

    def ask(self, run_id: str, *options: object) -> RunFolder:
        """`veilface server run --detach`."""
        done = command(
            "server", "run", "--state", self.folder.path, "--public", self.root / "public",
            "--aligned", "--run-id", run_id, "--detach", *options,
        )  # fmt: skip
        assert done.code == 0, done.err
        return self.folder.run(run_id)

    def status(self) -> dict[str, dict[str, object]]:
        """`veilface server status --json`: its runs."""
        done = command("server", "status", "--state", self.folder.path, "--json")
        assert done.code == 0, done.err
        runs: dict[str, dict[str, object]] = json.loads(done.out)["runs"]
        return runs

    def online(self) -> set[str]:
        """The sites that the server has heard of lately."""
        contacts = self.folder.contacts() if self.folder.path.exists() else None
        return {c.site for c in contacts.sites if c.state == "online"} if contacts else set()

    def names(self) -> dict[int, str]:
        """The sites by node id."""
        contacts = self.folder.contacts()
        return {} if contacts is None else {c.node: c.site for c in contacts.sites}

    def logs(self) -> str:
        return "\n".join(f"== {name}\n{party.said[-4000:]}" for name, party in self.parties.items())

    def stop(self) -> None:
        """End whatever runs, the server last; each in order and with exit code 0."""
        with ExitStack() as all_of_them:
            if "warm" in self.__dict__:
                all_of_them.callback(self.warm.close)
            for name, party in self.parties.items():
                if party.runs:
                    all_of_them.callback(self._stop, name, party)

    def _stop(self, name: str, party: Party) -> None:
        code = party.stop()
        assert code == 0, f"{name} ended with {code}\n{self.logs()}"
