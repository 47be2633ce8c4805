"""Real sites and a real server as processes, of which every one is killed, at chosen moments."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common.backbones.weights import load_model
from common.bundle import Bundle
from common.ledger import verify
from common.recipe import recommended
from common.spending import spent
from server.aggregation import Weighted, weighted_mean
from server.deployment.folder import RunFolder
from server.optimizer import OptimizerConfig, advance
from server.provisioning.request import Passphrases
from tests.deployment_rig import Rig, training
from tests.deployment_runs import Witness, accepted, committed, moments, records, takes_part
from tests.process_rig import QUICK, free_port, listens, until
from tests.provisioning_rig import private_value

ROUNDS, EPSILON, DELTA = 32, 4.0, 1e-4
OPTIMIZER = OptimizerConfig(
    "sgd", 1.0, momentum=0.0, average_from=recommended("adapter").average_from
)


def assert_whole(rig: Rig, run: RunFolder, witness: Witness) -> None:
    """Each round is there once, its model follows from what the sites' ledgers say they released.

    So whatever the server accepted is in the ledgers, and nothing was counted twice.
    """
    kept, releases = witness.checkpoints(), witness.releases()
    by_round = {checkpoint.state.round: checkpoint for checkpoint in kept}
    assert sorted(c.state.round for c in kept) == list(range(ROUNDS + 1))
    final = by_round[ROUNDS]
    assert [record.round for record in final.history] == list(range(1, ROUNDS + 1))
    digests = {}
    for site in rig.sites:
        report = verify(rig.state(site))
        digests[site] = committed(report, run.name)
        assert spent(report.reservations, DELTA) <= EPSILON
    for record in final.history:
        sites = accepted(rig, record)
        assert len(sites) == record.accepted
        used = [Weighted(releases[digests[site][record.round]]) for site in sites]
        after = advance(by_round[record.round - 1].state, weighted_mean(used), OPTIMIZER, ROUNDS)
        np.testing.assert_array_equal(after.parameters, by_round[record.round].state.parameters)
    trained = [t.flatten() for n, t in load_model(run.model).state.items() if "adapter" in n]
    np.testing.assert_array_equal(torch.cat(trained).numpy(), final.state.released())


@pytest.mark.parametrize("seed", [0])
def test_whatever_is_killed_whenever_the_run_ends_and_no_round_counts_twice(
    people_folder: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No call on this machine goes through a proxy, or nothing here would ever begin.
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    rng = random.Random(seed)
    secret = tmp_path / "passphrase"
    secret.write_text("no round counts twice\n")
    secret.chmod(0o600)
    rig = Rig(
        tmp_path, people_folder, ("a", "b"),
        terms=training(rounds=ROUNDS, local_steps=5, epsilon=EPSILON, minimum_sites=2),
        passphrases=Passphrases.read((str(secret),), ()),
        options=("--passphrase-file", str(secret)),
    )  # fmt: skip
    server = rig.server().start()
    for site, data in (("a", "one"), ("b", "two")):
        rig.site(site, "--accept-terms", data=data).start()
    try:
        until(lambda: server.parts().get("coordinator"), lambda: server.said)
        run = rig.ask("r")
        witness = Witness(rig, run)
        until(lambda: len(records(run)) >= 2, "the run begins")
        victims = [
            (server, "superlink"), (server, "coordinator"), (server, "front"), (server, "page"),
            (server, "supervisor"), (rig.parties["a"], "node"), (rig.parties["a"], "supervisor"),
        ]  # fmt: skip
        rng.shuffle(victims)
        names = rng.sample(["computes", "uploads", "between"], 3)
        for number, (party, part) in enumerate(victims):
            moment = moments(rig, run, rng.choice("ab"))[names[number % 3]]
            why = f"{part} at {names[number % 3]}"
            until(lambda now=moment: now() or run.ended, why, every=QUICK)  # type: ignore[misc]
            assert not run.ended, rig.status()
            party.kill(part)
            if part == "supervisor":
                party.start()
            takes_part(rig, run, "a", "b")
        assert_no_secret_is_about(rig, secret)
        for party, part in rng.sample([one for one in victims if one[1] != "supervisor"], 3):
            time.sleep(rng.uniform(0.0, 1.5))  # at random moments, one upon the other
            party.kill(part)
        until(lambda: run.ended, lambda: f"the end: {rig.status()}\n{rig.logs()}")
        assert rig.status()["r"]["state"] == "finished", rig.logs()
        until(lambda: len(server.parts()) == 4, "all parts are back")
        until(lambda: listens("127.0.0.1", rig.page), "the page is back")
        witness.stop()
        assert_whole(rig, run, witness)
    finally:
        rig.stop()


def assert_no_secret_is_about(rig: Rig, passphrase: Path) -> None:
    """Neither the passphrase nor a private key lies in a file, a command line or an environment."""
    told = passphrase.read_text().strip()
    secrets = {told.encode()}
    for party in ("server", *rig.sites):
        for file in Bundle.read(rig.bundle(party)).unlocked(told).keys:
            secrets |= {private_value(file.data), file.data.splitlines()[2]}
    pids = [pid for party in rig.parties.values() for pid in (party.pid, *party.parts().values())]
    assert len(pids) >= 9
    places = [Path(f"/proc/{pid}/{what}") for pid in pids for what in ("cmdline", "environ")]
    places += [
        path
        for path in (*rig.root.rglob("*"), *_scratch(rig))
        if path.is_file() and path != passphrase
    ]
    for place in places:
        try:
            content = place.read_bytes()
        except OSError:
            continue  # it has gone, or nobody may read it
        assert not [s for s in secrets if s in content], f"{place} holds a secret"


def _scratch(rig: Rig) -> Iterator[Path]:
    """What the server's parts share for as long as they run."""
    words = Path(f"/proc/{rig.parties['server'].part('front')}/cmdline").read_text().split("\0")
    yield from Path(words[words.index("--upstream-ca") + 1]).parent.rglob("*")
