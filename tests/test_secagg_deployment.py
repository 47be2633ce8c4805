"""Secure aggregation in a deployment: real processes, of which each kind is killed in mid-run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open

from client.consent import SitePolicy
from common.bundle import CONTRACT, Bundle
from common.ledger import verify
from common.spending import spent
from common.terms import Terms
from tests.deployment_rig import Rig, training
from tests.deployment_runs import records
from tests.process_rig import until

SITES = {"north": "one", "south": "two", "west": "three"}
ROUNDS = 6


def test_a_deployed_run_with_secure_aggregation_outlives_every_process(
    people_folder: Path, tmp_path: Path
) -> None:
    terms = training(rounds=ROUNDS, trust="secagg", colluders=0)
    rig = Rig(tmp_path, people_folder, tuple(SITES), terms=terms)
    server = rig.server().start()
    rig.site("south", "--accept-terms", data=SITES["south"]).start()
    agreed = SitePolicy.accepting(Terms.read(Bundle.read(rig.bundle("south")).file(CONTRACT)))
    for site in ("north", "west"):
        rig.node(site, agreed, data=SITES[site]).start()
    try:
        until(lambda: server.parts().get("coordinator"), lambda: server.said)
        run = rig.ask("one")
        for done, party, part in (
            (1, rig.parties["south"], "node"),
            (2, server, "coordinator"),
            (4, server, "superlink"),
        ):
            until(lambda least=done: len(records(run)) >= least, rig.logs)  # type: ignore[misc]
            assert not run.ended, "it must not end before everything was killed"
            party.kill(part)
        until(lambda: run.ended, lambda: f"the end: {rig.status()}\n{rig.logs()}")
    finally:
        rig.stop()
    progress = run.progress()
    assert progress is not None
    assert (progress.state, progress.round) == ("finished", ROUNDS), progress.why
    assert progress.epsilon <= 2.0
    with safe_open(str(run.checkpoint), framework="numpy") as file:
        assert np.isfinite(file.get_tensor("parameters")).all()
        assert np.abs(file.get_tensor("first")).max() < 5, "a wrong sum is in the hundreds"
    for site in SITES:
        report = verify(rig.state(site))
        assert report.ok
        assert {(r.mechanism, r.shares) for r in report.reservations} == {("discrete-shared", 2)}
        assert len({r.round for r in report.reservations}) == len(report.reservations)
        assert spent(report.reservations, 1e-4) <= 2.0
        assert not list(rig.state(site).glob("masking/*/run.key"))
