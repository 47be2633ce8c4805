"""Real sites and a real server as processes: killed, late, silent, unwilling, added, revoked."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from client.consent import SitePolicy
from common.app_bundle import app_hash
from common.backbones.weights import load_model
from common.bundle import Bundle
from common.ledger import verify
from common.liveness import DROP_AFTER
from common.recipe import recommended
from common.spending import spent
from server.aggregation import Weighted, weighted_mean
from server.deployment.folder import RunFolder
from server.optimizer import OptimizerConfig, advance
from server.provisioning.request import Passphrases
from tests.deployment_rig import Rig, command, training, until
from tests.deployment_runs import Witness, accepted, committed, moments, records, takes_part
from tests.process_rig import BIN, code_copy, listens
from tests.provisioning_rig import private_value

ROUNDS, EPSILON, DELTA = 40, 4.0, 1e-4
OPTIMIZER = OptimizerConfig(
    "sgd", 1.0, momentum=0.0, average_from=recommended("adapter").average_from
)
WIDE = SitePolicy(
    backbones=("lenet",), epsilon=100.0, delta=DELTA, epsilon_per_run=EPSILON, rounds_per_run=1000,
    trust=("local",), survivors=0, colluders=0, code=(app_hash(),),
)  # fmt: skip


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
    people_folder: Path, tmp_path: Path, seed: int
) -> None:
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
        until(lambda: server.parts().get("coordinator"), server.said)
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
            until(lambda now=moment: now() or run.ended, f"{part} at {names[number % 3]}")  # type: ignore[misc]
            assert not run.ended, rig.status()
            party.kill(part)
            if part == "supervisor":
                party.start()
            takes_part(rig, run, "a", "b")
        assert_no_secret_is_about(rig, secret)
        for party, part in rng.sample([one for one in victims if one[1] != "supervisor"], 3):
            time.sleep(rng.uniform(0.0, 1.5))  # at random moments, one upon the other
            party.kill(part)
        until(lambda: run.ended, f"the end: {rig.status()}\n{rig.logs()}")
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


@pytest.fixture(scope="module")
def shared(people_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A server without terms of its own, and the sites `a` and `b`, which allow much."""
    rig = Rig(
        tmp_path_factory.mktemp("shared"), people_folder,
        ("a", "b", "late", "full", "backbone", "delta", "per-run", "rounds", "trust", "budget",
         "code", "blind"),
    )  # fmt: skip
    policy = rig.file("wide.toml", WIDE.to_toml())
    rig.server().start()
    for site, data in (("a", "one"), ("b", "two")):
        rig.site(site, "--policy", policy, data=data).start()
    try:
        until(lambda: listens("127.0.0.1", rig.page), "the server is up")
        until(lambda: {"a", "b"} <= rig.online(), "a and b are there")
        yield rig
    finally:
        rig.stop()


@contextmanager
def endless(rig: Rig, run_id: str, *options: object) -> Iterator[RunFolder]:
    """A run that goes on until it is cancelled."""
    config = rig.file(
        "endless.toml", training(rounds=1000, local_steps=5, epsilon=EPSILON, minimum_sites=2)
    )
    run = rig.ask(run_id, "--config", config, *options)
    try:
        until(lambda: records(run), f"the first round: {rig.status()}\n{rig.logs()}")
        yield run
    finally:
        assert command("server", "cancel", "--state", rig.folder.path, run_id).code == 0
        until(lambda: rig.status()[run_id]["state"] == "cancelled", "it is cancelled")


def test_a_late_site_joins_and_one_that_leaves_or_dies_is_soon_not_waited_for(shared: Rig) -> None:
    with endless(shared, "comings") as run:
        takes_part(shared, run, "a", "b")
        late = shared.node("late", WIDE).start()
        takes_part(shared, run, "a", "b", "late")
        assert late.stop() == 0
        left = time.monotonic()
        takes_part(shared, run, "a", "b")
        assert time.monotonic() - left < DROP_AFTER, "who says goodbye is not waited for"
        late.start()
        takes_part(shared, run, "a", "b", "late")
        assert late.process is not None
        late.process.kill()
        died = time.monotonic()
        until(lambda: accepted(shared, records(run)[-1]) == {"a", "b"}, "late is dropped")
        assert time.monotonic() - died < 2 * DROP_AFTER, "half of what Flower takes"
        assert late.process.wait() == -signal.SIGKILL


def test_with_too_few_sites_a_run_waits_says_why_and_goes_on(shared: Rig) -> None:
    b = shared.parties["b"]
    with endless(shared, "few") as run:
        assert b.stop() == 0
        said = until(
            lambda: (why := str(shared.status()["few"]["why"])) and "sites are here" in why and why,
            f"it says why it waits: {shared.status()}",
        )
        assert said == "1 of at least 2 sites are here (a)"
        assert shared.status()["few"]["state"] == "waiting"
        done = len(records(run))
        assert (
            "1 of at least 2 sites"
            in command("server", "status", "--state", shared.folder.path).out
        )
        b.start()
        takes_part(shared, run, "a", "b")
        assert len(records(run)) > done
        assert shared.status()["few"] | {"state": "running", "why": ""} == shared.status()["few"]


def test_every_clause_of_a_policy_is_kept_and_who_refuses_is_named(shared: Rig) -> None:
    """The others go on; a site whose images cannot be read answers as any other."""
    rounds = 8
    (shared.root / "junk" / "somebody").mkdir(parents=True)
    (shared.root / "junk" / "somebody" / "face.png").write_bytes(b"no picture")
    other = code_copy(shared.root)
    with (other / "client" / "node.py").open("a") as file:
        file.write("# one line more\n")
    elsewhere = {**shared.environment, "PYTHONPATH": str(other)}
    told = subprocess.run(
        [BIN / "python", "-P", "-c", "from common.app_bundle import app_hash; print(app_hash())"],
        env=elsewhere, check=True, capture_output=True, text=True,
    )  # fmt: skip
    policies = {
        "backbone": dataclasses.replace(WIDE, backbones=("alexnet",)),
        "delta": dataclasses.replace(WIDE, delta=1e-5),
        "per-run": dataclasses.replace(WIDE, epsilon_per_run=0.9 * EPSILON),
        "rounds": dataclasses.replace(WIDE, rounds_per_run=rounds - 1),
        "trust": dataclasses.replace(WIDE, trust=("secagg",), survivors=3, colluders=1),
        "code": dataclasses.replace(WIDE, code=(told.stdout.strip(),)),
        "budget": dataclasses.replace(WIDE, epsilon=EPSILON / 2),
        "blind": WIDE,
    }
    parties = {}
    for name, policy in policies.items():
        party = shared.node(name, policy, data="junk" if name == "blind" else "one")
        party.environment = elsewhere if name == "code" else party.environment
        parties[name] = party.start()
    try:
        until(lambda: {*policies} <= shared.online(), "all are there")
        terms = training(rounds=rounds, local_steps=5, epsilon=EPSILON, minimum_sites=2)
        run = shared.ask("policies", "--config", shared.file("policies.toml", terms))
        until(lambda: run.ended, f"it ends: {shared.status()}\n{shared.logs()}")
        progress = run.progress()
    finally:
        assert {party.stop() for party in parties.values()} == {0}
    assert progress is not None and progress.state == "finished"
    sites = {site.site: site for site in progress.sites}
    for name in ("a", "b", "blind"):
        assert (sites[name].accepted, sites[name].refused) == (rounds, "")
    for name, clause in (
        ("backbone", "allows no backbone 'lenet'"), ("delta", "the policy at 1e-05"),
        ("per-run", "allows 3.6 a run"), ("rounds", "the policy allows 7"),
        ("trust", "no run of trust 'local'"),
    ):  # fmt: skip
        assert (sites[name].asked, sites[name].refused) == (0, "refused: contract")
        assert clause in parties[name].said
    assert "does not list the code" in sites["code"].refused and sites["code"].asked == 0
    assert 0 < sites["budget"].accepted < rounds
    assert sites["budget"].refused == "refused: budget"
    shown = command("server", "status", "--state", shared.folder.path).out
    for name in policies:
        assert f"\n  {name}: {sites[name].accepted} of {sites[name].asked} rounds used" in shown
        report = verify(shared.state(name))
        assert (
            len(committed(report, "policies")) == sites[name].accepted == len(report.reservations)
        )
    assert spent(verify(shared.state("budget")).reservations, DELTA) <= EPSILON / 2


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def _said(run: RunFolder, site: str) -> str:
    """Why a site's last answer was not used; progress is told just after a round is recorded."""
    progress = run.progress()
    sites = progress.sites if progress else ()
    return next((said.refused for said in sites if said.site == site), "")


def test_a_site_whose_disk_is_full_releases_nothing_says_so_and_comes_back(shared: Rig) -> None:
    state = shared.state("full")
    state.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", state], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    party = shared.site("full", "--policy", shared.file("wide.toml", WIDE.to_toml()))
    try:
        party.start()
        with endless(shared, "full") as run:
            takes_part(shared, run, "a", "b", "full")
            fill(state / "ballast")
            until(lambda: _said(run, "full") == "refused: storage", "it says why")
            party.kill("node")
            takes_part(shared, run, "a", "b")
            (state / "ballast").unlink()
            takes_part(shared, run, "a", "b", "full")
        used = {r.round for r in records(run) if "full" in accepted(shared, r)}
        assert used <= {*committed(verify(state), "full")}
    finally:
        party.stop()
        subprocess.run(["umount", state], check=True)


def test_the_roster_is_followed_while_the_server_runs_and_an_old_one_is_refused(
    shared: Rig,
) -> None:
    fed, state = shared.root / "fed", shared.folder.path
    old = shared.file("old.roster", (fed / "current" / "roster").read_text())
    assert command("provision", "--out", fed, "--add-site", "new").code == 0
    new = shared.node("new", WIDE).start()
    with endless(shared, "roster", "--drop-after", 3600) as run:
        until(lambda: "again in" in new.said, "it is not let in before the server knows it")
        done = command("server", "roster", "--state", state, fed / "current" / "roster")
        assert (done.code, "new" in done.out) == (0, True)
        takes_part(shared, run, "a", "b", "new")
        stopped = new.pid
        until(moments(shared, run, "new")["computes"], "new computes")
        os.kill(stopped, signal.SIGSTOP)
        assert command("provision", "--out", fed, "--revoke-site", "new").code == 0
        assert command("server", "roster", "--state", state, fed / "current" / "roster").code == 0
        asked = time.monotonic()
        try:
            done_before = len(records(run))
            until(lambda: len(records(run)) > done_before + 1, "the round goes on without it")
            assert time.monotonic() - asked < DROP_AFTER, "it is not waited for, though it could be"
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert accepted(shared, records(run)[-1]) == {"a", "b"}
        until(lambda: "is this site on the server's roster?" in new.said.rpartition("joined")[2],
              "it is turned away")  # fmt: skip
        progress = run.progress()
        assert progress is not None and "new" in {site.site for site in progress.sites}
    new.stop()
    refused = command("server", "roster", "--state", state, old)
    assert (refused.code, "older" in refused.err) == (3, True)
