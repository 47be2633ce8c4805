"""The evidence of a run: from the server's folder, its bundle, and what sites handed in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.backbones.weights import SavedModel, load_model
from common.bundle import ROSTER, Bundle
from common.config import digest, from_json
from common.contract import Contract
from common.errors import InputError, Refused
from common.roster import Roster
from common.software import SOFTWARE_FILE, Software
from common.statement import Evidence
from common.vault_facts import VaultFacts
from server.audit.facts import Facts, Refusal, Round
from server.audit.ledgers import check_statement, ledger_of
from server.audit.rates import Group, GroupRate, Groups, Scores, WorstGroup
from server.checkpoint import RoundRecord, load
from server.report.run_record import read_run
from server.report.utility import PUBLIC_SCORES, Utility, read_utility

# Where a simulated run leaves its evidence, see `simulations.evidence`.
AUDIT, FEDERATION, STATEMENTS = "audit", "federation", "statements"


@dataclass(frozen=True)
class Sources:
    """Where everything lies.

    Attributes:
        run: the server's folder of a run: model, checkpoint, in a simulation also `run.json`.
        bundle: the server's own, unlocked.
        roster: the newest roster; None takes the bundle's.
        statements: what each site handed in.
        evaluation: what `veilface evaluate --groups --json` printed.
        vault_facts: what `veilface audit vault-facts` wrote at sites.
    """

    run: Path
    bundle: Bundle
    roster: Path | None
    statements: tuple[Path, ...]
    evaluation: Path | None
    vault_facts: tuple[Path, ...]


def left_by_simulation(run: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the server's bundle and the statements that a simulated run left, if it did."""
    bundles = sorted((run / AUDIT / FEDERATION / "current" / "bundles").glob("*-server.tar.gz"))
    statements = sorted((run / AUDIT / STATEMENTS).glob("*.json"))
    return (bundles[0] if bundles else None), tuple(statements)


def collect(sources: Sources) -> Facts:
    """Return the facts of a run; evidence that does not hold is refused, by name."""
    saved = load_model(sources.run / "model.safetensors")
    contract = _contract(saved)
    history = load(sources.run / "checkpoint.safetensors", digest(contract)).history
    document = _read(sources.roster) if sources.roster else sources.bundle.file(ROSTER)
    roster = Roster.read(document, sources.bundle.roster_key)
    software = sources.run / SOFTWARE_FILE
    line = sources.bundle.roster_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    utility = _utility(sources.run, contract)
    return Facts(
        run_id=contract.run_id,
        model=saved.model_id,
        trust=contract.trust,
        contract=contract,
        roster=document.decode(),
        roster_key=line.decode(),
        sites=_evidence(sources.statements, roster),
        rounds=tuple(Round(one.round, one.accepted) for one in history),
        refusals=tuple(
            Refusal(one.round, str(node), reason)
            for one in history
            for node, reason in sorted(one.rejected)
        ),
        software=_software(software) if software.exists() else None,
        utility=utility,
        groups=_groups(sources.evaluation) if sources.evaluation else None,
        vaults=tuple(_vault(path) for path in sources.vault_facts),
        scores=_scores(history) if utility is None else (),
    )


def _scores(history: Sequence[RoundRecord]) -> tuple[Scores, ...]:
    """The first and the last round that the server scored on public test faces, if it did."""
    found = [
        Scores(one.round, *(one.scores[name] for name in PUBLIC_SCORES))
        for one in history
        if one.scores.keys() >= set(PUBLIC_SCORES)
    ]
    return (found[0], *found[-1:]) if len(found) > 1 else tuple(found)


def _contract(saved: SavedModel) -> Contract:
    """The run's public constants, which the released model carries."""
    try:
        text = saved.meta["contract"]
    except KeyError as error:
        raise InputError("the model does not say which run it is of") from error
    return from_json(Contract, text, where="the model's contract")


def _evidence(paths: Sequence[Path], roster: Roster) -> tuple[Evidence, ...]:
    """What the sites handed in, by name; each signed by the key that the roster names."""
    found: dict[str, Evidence] = {}
    for path in paths:
        evidence = Evidence.read(_read(path), str(path))
        try:
            statement = check_statement(evidence, roster)
            ledger_of(evidence, statement)
        except Refused as error:
            raise Refused(f"{path}: {error.message}", hint="ask the site for it again") from error
        if statement.site in found:
            raise InputError(f"{path}: a second statement of {statement.site}")
        found[statement.site] = evidence
    if not found:
        raise InputError(
            "no site's statement is there", hint="--statement FILE, of 'veilface audit statement'"
        )
    return tuple(found[site] for site in sorted(found))


def _utility(run: Path, contract: Contract) -> Utility | None:
    """What the server measured on public test faces, if it had any."""
    if not (run / "run.json").exists():
        return read_utility(run)
    record = read_run(run)
    if record.run_id != contract.run_id:
        raise InputError(f"{run / 'run.json'} is of run {record.run_id}, not {contract.run_id}")
    return record.utility  # what is not noised stays in the simulation


def _groups(path: Path) -> Groups:
    """The `groups` object of an evaluation."""
    try:
        found = json.loads(_read(path))["groups"]
        return Groups(
            threshold=float(found["threshold"]),
            worst=_worst(found["worst"], found["ratio"]),
            worst_missed=_worst(found.get("fnmr_worst"), found.get("fnmr_ratio")),
            groups=tuple(
                Group(
                    str(row["group"]),
                    int(row["pairs"]),
                    GroupRate(float(row["fmr"]), *map(float, row["ci"])),
                    _missed(row.get("fnmr"), row.get("fnmr_ci")),
                )
                for row in found["groups"]
            ),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} holds no groups", hint="name what 'veilface evaluate --groups --json' printed"
        ) from error


def _worst(group: object, ratio: float | None) -> WorstGroup | None:
    return None if ratio is None else WorstGroup(str(group), float(ratio))


def _missed(rate: float | None, ends: list[float] | None) -> GroupRate | None:
    return None if rate is None or ends is None else GroupRate(float(rate), *map(float, ends))


def _software(path: Path) -> Software:
    return from_json(Software, _read(path).decode(errors="replace"), where=path.name)


def _vault(path: Path) -> str:
    document = _read(path).decode(errors="replace")
    VaultFacts.read(document)
    return document


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
