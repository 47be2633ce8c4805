"""What a site hands in: its own signed ledger and vault facts, and nobody's name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from client import statement_cli
from client.consent import SitePolicy
from client.vault.facts import facts_of
from common.app_bundle import app_hash
from common.bundle import Bundle
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
from server.provisioning.request import Passphrase, Passphrases
from tests.audit_rig import make_run
from tests.provisioning_rig import archive, make
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
