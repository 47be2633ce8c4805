"""What reads, checks, supervises or shows starts light: torch is for what trains or recognises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from client.start import settle_policy
from client.vault import Vault
from common.bundle import Bundle
from common.bundle_options import OpenedBundle
from common.ledger import Genesis, Ledger
from common.sealing import KeyFileLock
from common.terms import read_terms
from server.deployment.up import install
from server.provisioning.federation import create
from server.provisioning.request import Endpoint, Settings
from tests.provisioning_rig import OPEN, archive
from tests.test_vocabulary import TOML

TRAINING: Final = ("torch", "torchvision", "opacus", "ray")
REPORT: Final = Path(__file__).parent / "vectors" / "audit-format-1.json"
# One process takes all steps, so what any of them loads is found at that step.
PROBE: Final = """
import contextlib, importlib, json, sys
from common.cli import veilface
for step in json.loads(sys.argv[2]):
    if isinstance(step, str):
        importlib.import_module(step)
    else:
        with contextlib.redirect_stdout(sys.stderr):
            veilface.main(step, standalone_mode=False)
    loaded = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
    if loaded:
        sys.exit(f"{step} loads {', '.join(loaded)}")
"""

Step = str | list[str]


def first_heavy(heavy: tuple[str, ...], steps: list[Step]) -> str:
    """Take the steps in a new process; return the first that loads what is heavy, or nothing."""
    told = (json.dumps(heavy), json.dumps(steps))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *told], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or " loads " in done.stderr, done.stderr
    return done.stderr.splitlines()[-1] if done.returncode else ""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation with terms, its server's folder, a site with policy and ledger, and a vault."""
    place = tmp_path_factory.mktemp("light")
    (place / "training.toml").write_text(TOML)
    terms = read_terms(place / "training.toml").to_bytes()
    settings = Settings("fed", Endpoint("127.0.0.1", 8443))
    create(place / "fed", settings, ("a", "b"), OPEN, contract=terms)
    bundle = archive(place / "fed", "server")
    install(OpenedBundle(Bundle.read(bundle), bundle, None), place / "server")
    settle_policy(
        Bundle.read(archive(place / "fed", "a")), place / "site", None, accept=True, total=4.0
    )
    Ledger.create(place / "site", Genesis(delta=1e-4, epsilon=2.0))
    lock = KeyFileLock.create(place / "key")
    Vault.create(str(place / "vault.db"), lock, model_id="0" * 64, dim=8).close()
    return place


def test_what_neither_trains_nor_recognises_loads_no_torch_and_no_flower(place: Path) -> None:
    vault = ["--vault", str(place / "vault.db"), "--key-file", str(place / "key")]
    site = str(archive(place / "fed", "a"))
    new = ["--name", "f", "--server", "h:443", "--site", "a", "--site", "b"]
    terms = ["--config", str(place / "training.toml")]
    steps: list[Step] = [
        "common.vocabulary",
        "common.supervisor",
        "common.contract",
        "common.terms",
        "client.start",
        "server.deployment.folder",
        "server.deployment.page",
        ["ledger", "show", str(place / "site")],
        ["ledger", "verify", str(place / "site")],
        ["site", "policy", "--bundle", site],
        ["site", "status", "--state", str(place / "site")],
        ["provision", *new, *terms, "--out", str(place / "new")],
        ["template", "list", *vault],
        ["template", "log", *vault],
        ["template", "token", "list", *vault],
        ["audit", "verify", str(REPORT)],
        ["audit", "vault-facts", *vault, "--out", str(place / "facts.json")],
    ]
    assert first_heavy((*TRAINING, "flwr"), steps) == ""


def test_what_speaks_to_flower_or_only_helps_loads_no_torch(place: Path) -> None:
    steps: list[Step] = [
        "client.node",
        "server.deployment.journal",
        "server.deployment.front",
        ["server", "status", "--state", str(place / "server")],
        ["--help"],
        *([name, "--help"] for name in ("site", "server", "template", "serve", "simulate")),
    ]
    assert first_heavy(TRAINING, steps) == ""


def test_what_trains_is_found_to_load_torch() -> None:
    found = first_heavy(TRAINING, ["common.terms", "common.losses", "client.start"])
    assert found == "common.losses loads torch"
