"""What a site hands in: its own signed ledger and vault facts, and nobody's name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from client import statement_cli
from client.consent import SitePolicy
from client.start import default_state, policy_path
from client.vault.facts import facts_of
from common.app_bundle import app_hash
from common.backbones.weights import load_model
from common.bundle import Bundle
from common.config import from_json
from common.contract import Contract
from common.errors import InputError, LedgerError, Refused, VeilfaceError
from common.ledger import Ledger
from common.sealing import KeyFileLock
from common.signing import fingerprint
from common.statement import Evidence, Statement
from common.vault_facts import VaultFacts
from server.audit.build import build_report
from server.audit.cli import report as report_command
from server.audit.collect import Sources
from server.audit.page import render
from server.audit.seal import Signer
from server.audit.verify import check_text, failed
from server.deployment.folder import ServerFolder
from server.deployment.journal import Journal
from server.deployment.page import create_page
from server.deployment.status import versions
from server.deployment.tokens import create_token
from server.provisioning.request import Passphrase, Passphrases
from tests.audit_rig import Case, make_run
from tests.deployment_rig import command
from tests.front_rig import federation as server_with_sites
from tests.provisioning_rig import archive, make
from tests.server_run_rig import ask
from tests.serving_rig import served
from tests.vault_cases import MODEL, Place, unit_rows

POLICY = SitePolicy(
    backbones=("dlib-resnet",), epsilon=4.0, delta=1e-4, epsilon_per_run=3.5, rounds_per_run=77,
    trust=("local",), survivors=0, colluders=0, code=(app_hash(),),
)  # fmt: skip


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("audit") / "run")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fed") / "fed"
    make(out)
    return out


def deployed(run: Path, federation: Path, folder: Path) -> tuple[Path, ...]:
    """What sites a and b of a real federation hand in for the ledgers of a run."""
    found = []
    for site, index in (("a", 0), ("b", 1)):
        state = run / "sites" / f"site-00{index}"
        public = state / "public"
        if not public.exists():
            public.symlink_to(run / "public")
        policy, out = folder / "policy.toml", folder / f"{site}.json"
        policy.write_text(POLICY.to_toml())
        arguments = ("--bundle", archive(federation, site), "--policy", policy, "--out", out)
        result = invoke(statement_cli.statement, state, *arguments)
        assert result.exit_code == 0, result.exception
        found.append(out)
    return tuple(found)


def test_a_deployments_report_holds_without_any_key_of_a_site(
    run: Path, federation: Path, tmp_path: Path
) -> None:
    handed_in = deployed(run, federation, tmp_path)
    server = Bundle.read(archive(federation, "server"))
    report = build_report(Sources(run, server, None, handed_in, None, ()), Signer.of(server))
    checks = check_text(report.to_text(), fingerprint(server.roster_key))[1]
    assert not failed(checks), checks
    assert not any("simulation" in check.what for check in checks)
    page = render(report, "en")
    for text in ("3.5", "77", app_hash()[:12]):
        assert f">{text}<" in page
    assert "This run is a simulation" not in page


def test_a_site_cannot_sign_a_server_s_report(federation: Path) -> None:
    with pytest.raises(InputError, match="bundle is of a"):
        Signer.of(Bundle.read(archive(federation, "a")))


def test_a_sealed_bundle_needs_its_passphrase(run: Path, tmp_path: Path) -> None:
    sealed = Passphrases((Passphrase("", "correct horse"),))
    make(tmp_path / "fed", passphrases=sealed)
    state, out = run / "sites" / "site-000", tmp_path / "a.json"
    arguments = (state, "--bundle", archive(tmp_path / "fed", "a"), "--out", out)
    refused = invoke(statement_cli.statement, *arguments)
    assert isinstance(refused.exception, InputError) and "sealed" in str(refused.exception)
    assert not out.exists()
    (tmp_path / "pass").write_text("correct horse\n")
    given = invoke(statement_cli.statement, *arguments, "--passphrase-file", tmp_path / "pass")
    assert given.exit_code == 0 and out.exists()
    foreign = invoke(statement_cli.statement, *arguments, "--fingerprint", "SHA256:other")
    assert isinstance(foreign.exception, Refused)


def test_a_damaged_ledger_is_not_signed(tmp_path: Path, federation: Path) -> None:
    run = make_run(tmp_path / "run")
    ledger = run / "sites" / "site-000" / Ledger.FILE_NAME
    ledger.write_text(ledger.read_text().replace('"round":2', '"round":8', 1))
    arguments = ("--bundle", archive(federation, "a"), "--out", tmp_path / "a.json")
    result = invoke(statement_cli.statement, run / "sites" / "site-000", *arguments)
    assert isinstance(result.exception, LedgerError)


def test_a_statement_holds_limits_and_versions_and_no_path_or_count(
    run: Path, federation: Path, tmp_path: Path
) -> None:
    path = deployed(run, federation, tmp_path)[0]
    evidence = Evidence.read(path.read_bytes(), "a.json")
    told = Statement.unverified(evidence.statement)
    assert told.consent is not None and told.consent.rounds_per_run == 77
    assert set(json.loads(evidence.statement.partition("\n")[0])) == {
        "federation", "site", "issued", "ledger_seq", "ledger_head", "contracts", "software",
        "consent", "simulated",
    }  # fmt: skip
    assert str(run) not in path.read_text()


def test_a_statement_is_of_the_state_and_policy_that_site_up_keeps(
    run: Path, federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    bundle = archive(federation, "a")
    arguments = ("--bundle", bundle, "--out", tmp_path / "a.json")
    nowhere = invoke(statement_cli.statement, *arguments)
    assert isinstance(nowhere.exception, InputError) and "is not there" in str(nowhere.exception)
    state = default_state(Bundle.read(bundle))
    shutil.copytree(run / "sites" / "site-000", state, ignore=shutil.ignore_patterns("public"))
    silent = invoke(statement_cli.statement, *arguments)
    assert silent.exit_code == 0 and "no policy is stated" in silent.stderr
    policy_path(state).write_text(POLICY.to_toml())
    assert invoke(statement_cli.statement, *arguments).stderr == ""
    evidence = Evidence.read((tmp_path / "a.json").read_bytes(), "a.json")
    consent = Statement.unverified(evidence.statement).consent
    assert consent is not None and consent.rounds_per_run == POLICY.rounds_per_run
    policy_path(state).write_text("epsilon = 9")
    (tmp_path / "a.json").unlink()
    damaged = invoke(statement_cli.statement, *arguments)
    assert isinstance(damaged.exception, InputError) and not (tmp_path / "a.json").exists()


@pytest.fixture
def vault_facts(tmp_path: Path) -> tuple[str, list[str]]:
    """The facts of a vault with two people, a third erased and the key rotated; and all names."""
    place = Place(tmp_path)
    address = place.address()
    from client.vault import Vault

    with Vault.create(address, place.lock, model_id=MODEL, dim=16) as vault:
        names = ["Ada Lovelace", "Bob", "Eve Example"]
        pseudonyms = [vault.enrol(name, unit_rows(2), model_id=MODEL) for name in names]
        vault.erase("Eve Example")
        new = KeyFileLock.create(tmp_path / "new.key")
        vault.rotate_key(new)
    return facts_of(address, new), [*names, *pseudonyms]


def test_vault_facts_count_and_name_nobody(vault_facts: tuple[str, list[str]]) -> None:
    document, names = vault_facts
    facts = VaultFacts.read(document)
    assert (facts.subjects, facts.templates, facts.models) == (2, 4, 1)
    assert (len(facts.erasures), len(facts.rotations), len(facts.renewals)) == (1, 1, 0)
    assert facts.key_locks == ("key-file",) and facts.log_entries >= 5
    assert not any(name in document for name in names)


def test_changed_vault_facts_are_refused(vault_facts: tuple[str, list[str]], run: Path) -> None:
    document, _ = vault_facts
    for old, new in (('"subjects":2', '"subjects":1'), ('"erasures":["', '"erasures":["1')):
        with pytest.raises(VeilfaceError):
            VaultFacts.read(document.replace(old, new))


def test_vault_facts_stand_in_the_report(
    vault_facts: tuple[str, list[str]], run: Path, federation: Path, tmp_path: Path
) -> None:
    (tmp_path / "vault").write_text(vault_facts[0])
    handed_in = deployed(run, federation, tmp_path)
    server = Bundle.read(archive(federation, "server"))
    sources = Sources(run, server, None, handed_in, None, (tmp_path / "vault",))
    report = build_report(sources, Signer.of(server))
    assert not failed(check_text(report.to_text())[1])
    page = render(report, "en")
    assert "2, 4" in page and VaultFacts.read(vault_facts[0]).vault in page
    lie = replace(report.facts, vaults=(vault_facts[0].replace('"templates":4', '"templates":5'),))
    checks = check_text(replace(report, facts=lie).to_text())[1]
    assert [c.what for c in checks if c.outcome == "FAILS" and "vault" in c.what]


def test_the_server_s_sealed_bundle_opens_with_its_passphrase(tmp_path: Path) -> None:
    make(tmp_path / "fed", passphrases=Passphrases((Passphrase("", "correct horse"),)))
    run = make_run(tmp_path / "run")
    secret = tmp_path / "pass"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    state, out = run / "sites" / "site-000", tmp_path / "a.json"
    (state / "public").symlink_to(run / "public")
    sealed = ("--passphrase-file", secret)
    asked = (state, "--bundle", archive(tmp_path / "fed", "a"), "--out", out, *sealed)
    assert invoke(statement_cli.statement, *asked).exit_code == 0
    arguments = (
        run, "--out", tmp_path / "out", "--no-pdf", "--statement", out,
        "--bundle", archive(tmp_path / "fed", "server"),
    )  # fmt: skip
    refused = invoke(report_command, *arguments)
    assert isinstance(refused.exception, InputError) and "sealed" in str(refused.exception)
    assert invoke(report_command, *arguments, *sealed).exit_code == 0
    assert (tmp_path / "out" / "report.json").exists()


def test_a_report_written_into_the_run_s_folder_is_offered_by_the_page_and_changes_nothing_else(
    tmp_path: Path,
) -> None:
    made = server_with_sites(tmp_path)
    folder = ServerFolder(made.folder)
    evidence = make_run(tmp_path / "run", Case(scored=True))
    run = ask(folder, "run-1", 3, "2026-11-24T10:00:00Z")
    for name in ("model.safetensors", "checkpoint.safetensors"):
        (run.path / name).write_bytes((evidence / name).read_bytes())
    journal = Journal(folder, run)
    journal.begin(from_json(Contract, load_model(run.model).meta["contract"]))
    journal.end("finished", "")
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert {"request.json", "progress.json", "model.safetensors"} < set(before)
    bearer = {"Authorization": f"Bearer {create_token(folder.path, ('view',), None)[0]}"}
    with (
        served(create_page(folder)) as port,
        httpx.Client(base_url=f"http://localhost:{port}", headers=bearer) as client,
    ):
        shown = client.get("/v1/runs/run-1").json()
        assert (shown["model"], shown["report"]) == (True, False)
        assert client.get("/v1/runs/run-1/report").status_code == 404
        handed_in = deployed(evidence, tmp_path / "fed", tmp_path)
        done = command(
            "audit", "report", run.path, "--out", run.path, "--no-pdf", "--bundle", made.server,
            *(word for path in handed_in for word in ("--statement", path)),
        )  # fmt: skip
        assert done.code == 0, done.err
        after = {path.name: path.read_bytes() for path in run.path.iterdir()}
        assert {name: after[name] for name in before} == before
        assert set(after) - set(before) == {"report.json", "report.html"}
        assert client.get("/v1/runs/run-1").json() == {**shown, "report": True}
        downloaded = tmp_path / "downloaded.html"
        downloaded.write_bytes(client.get("/v1/runs/run-1/report").content)
    assert downloaded.read_bytes() == after["report.html"]
    assert command("audit", "verify", downloaded).code == 0
    progress = run.progress()
    assert progress is not None and progress.state == "finished" and len(versions(run)) == 3
