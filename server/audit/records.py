"""The sections that show the evidence: accesses, mechanism, consents, vaults, software."""

from __future__ import annotations

from collections import Counter, defaultdict
from html import escape

from common.config import digest
from common.software import Software
from common.vault_facts import VaultFacts
from server.audit.facts import digest_of
from server.audit.sharing import rounds as masked_rounds
from server.audit.sharing import spans
from server.audit.view import View

_ARTICLES = ("art5", "art9", "art17", "art30", "art32", "art35", "nist2", "nist3", "nist4")


def access(view: View) -> str:
    """Every round that read private pictures, charged before it did."""
    w = view.w
    rows = []
    for names, one in view.alike:
        released = sum(row.released for row in one.rounds)
        unreleased = len(one.rounds) - released
        rows.append((names, str(len(one.rounds)), str(released), str(unreleased), "0"))
    heads = [
        f"access.{name}" for name in ("site", "charged", "released", "unreleased", "uncharged")
    ]
    free = "" if view.bounded else view.plain("access.simulated_free")
    return view.section(
        "access",
        view.plain("access.plain"),
        view.table(w("access.caption"), heads, rows),
        view.quiet("access.test"),
        free,
    )


def mechanism(view: View) -> str:
    """Mechanism, sampler, noise, clip, accountants: as the contract says."""
    w, contract = view.w, view.facts.contract
    privacy, found = contract.privacy, view.findings.meaning
    masking, full = contract.masking, privacy.sample_rate == 1.0
    sampler = (
        w("mechanism.sampler_full")
        if full
        else w("mechanism.sampler_poisson", rate=f"{privacy.sample_rate:g}")
    )
    secret = all(row.private for one in view.findings.spending for row in one.rounds)
    generator = "generator_shared" if masking else "generator_value"
    rows = [
        ("mechanism", w(f"mechanism.mechanism_{'shared' if masking else 'value'}")),
        ("clip", f"{privacy.max_grad_norm:g}"),
        ("multiplier", f"{privacy.noise_multiplier:g}"),
        ("sampler", sampler),
        ("generator", w(f"mechanism.{generator if secret else 'generator_none'}")),
        ("denominator", f"{privacy.public_denominator:g}"),
        ("rounds", f"{contract.rounds}, {contract.local_steps}"),
        ("loss", escape(contract.loss.name)),
        ("backbone", escape(f"{contract.backbone}, {contract.train_set}")),
    ]
    if masking is not None:
        rows += [
            ("terms", f"{masking.minimum}, {masking.colluders}"),
            ("share", f"{masking.sigma:.6g}"),
            ("dimension", f"{masking.dimension:,}"),
            ("masks", w("mechanism.masks_value")),
        ]
    if found is not None:
        third = "mechanism.third_shared" if view.shared else "mechanism.third_value"
        rows += [
            ("accountant", _said(view, found.accountant, view.worst.spent)),
            ("second", _said(view, found.second_accountant, found.second)),
            ("third", w(third)),
        ]
    rows += [
        ("digest", _code(digest(contract))),
        ("model", _code(view.facts.model)),
    ]
    return view.section("mechanism", view.plain("mechanism.plain"), view.terms("mechanism", rows))


def _said(view: View, accountant: str, epsilon: float | None) -> str:
    software = view.facts.software or view.statements[0].software
    versions = {one.name: one.version for one in software.packages}
    name = view.w(
        f"mechanism.{accountant}",
        scipy=versions.get("scipy", ""),
        dp=versions.get("dp-accounting", ""),
        opacus=versions.get("opacus", ""),
    )
    stated = view.w.epsilon(None) if epsilon is None else f"{epsilon:.6f}"
    return view.w("mechanism.said", accountant="\0", epsilon=stated).replace("\0", name)


def gaps(view: View) -> str:
    """What the promise does not say."""
    w = view.w
    noise = w("gaps.exact" if view.facts.contract.masking else "gaps.grid")
    several = w("gaps.several_shared" if view.shared else "gaps.several_local")
    listed = w.items("gaps.items", noise=noise, several=several)
    listed += w.items("gaps.shared") if view.shared else []
    items = "".join(f"<li>{item}</li>" for item in listed)
    return view.section("gaps", view.plain("gaps.plain"), f"<ul>{items}</ul>")


def consent(view: View) -> str:
    """What each site agreed to, as it signed."""
    w = view.w
    budgets = {one.site: f"{one.budget:g}" for one in view.findings.spending}
    rows = []
    for one in view.statements:
        agreed = one.consent
        limits = (w("consent.own_budget"), *[w("number.none")] * 3)
        if agreed is not None:
            trust = escape(", ".join(agreed.trust))
            if "secagg" in agreed.trust:
                terms = (agreed.survivors, agreed.colluders)
                trust += f" ({w('consent.terms', survivors=terms[0], colluders=terms[1])})"
            run, rounds = f"{agreed.epsilon_per_run:g}", str(agreed.rounds_per_run)
            limits = (run, rounds, trust, _codes(agreed.code))
        rows.append((one.site, escape(one.issued[:10]), budgets[one.site], *limits))
    heads = [f"consent.{n}" for n in ("site", "signed", "budget", "run", "rounds", "trust", "code")]
    return view.section(
        "consent", view.plain("consent.plain"), view.table(w("consent.caption"), heads, rows)
    )


def _codes(hashes: tuple[str, ...]) -> str:
    return ", ".join(_code(one[:12]) for one in hashes)


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def refusals(view: View) -> str:
    """Answers that were not used."""
    w, found = view.w, view.facts.refusals
    masked = masked_rounds(view) if view.shared else []
    if not found:
        none = view.plain("refusals.none", rounds=len(view.facts.rounds))
        return view.section("refusals", none, *masked)
    counts = Counter(one.reason for one in found)
    rounds = defaultdict(set)
    for one in found:
        rounds[one.reason].add(one.round)
    rows = [
        (escape(reason), spans(sorted(rounds[reason])), str(count))
        for reason, count in sorted(counts.items())
    ]
    heads = ("refusals.reason", "refusals.rounds", "refusals.count")
    table = view.table(w("refusals.caption"), heads, rows)
    return view.section("refusals", view.plain("refusals.plain"), table, *masked)


def vaults(view: View) -> str:
    """What vaults signed about themselves."""
    w = view.w
    if not view.facts.vaults:
        return view.section("vaults", view.plain("vaults.plain"), view.quiet("vaults.none"))

    def days(found: tuple[str, ...]) -> str:
        return w("vaults.last", count=len(found), day=found[-1]) if found else "0"

    tables = []
    for document in view.facts.vaults:
        one = VaultFacts.read(document)
        rows = [
            ("vault", _code(one.vault)),
            ("held", f"{one.subjects:,}, {one.templates:,}"),
            ("encryption", escape(", ".join((one.encryption, *one.key_locks)))),
            ("rotations", days(one.rotations)),
            ("renewals", days(one.renewals)),
            ("erasures", days(one.erasures)),
            ("log", f"{one.log_entries:,}"),
        ]
        heads = ("exact.what", "exact.value")
        named = [(w(f"vaults.{name}"), value) for name, value in rows]
        tables.append(view.table(w("vaults.caption"), heads, named, "wordy"))
    return view.section("vaults", view.plain("vaults.plain"), *tables)


def software(view: View) -> str:
    """What each party had installed; parties with the same share a column."""
    w = view.w
    parties: dict[Software, list[str]] = defaultdict(list)
    if view.facts.software is not None:
        parties[view.facts.software].append(w("software.server"))
    for one in view.statements:
        parties[one.software].append(one.site)
    heads = [w("software.what"), *(_party(view, names) for names in parties.values())]
    rows = [
        (w("software.code"), *(_code(one.code[:16]) for one in parties)),
        (w("software.python"), *(escape(one.python) for one in parties)),
    ]
    versions = [{one.name: one.version for one in found.packages} for found in parties]
    for name in dict.fromkeys(name for found in versions for name in found):
        rows.append((escape(name), *(escape(found.get(name, "")) for found in versions)))
    unrecorded = view.quiet("software.unrecorded") if view.facts.software is None else ""
    table = view.raw_table(w("software.caption"), heads, rows)
    return view.section("software", view.plain("software.plain"), unrecorded, table)


def _party(view: View, names: list[str]) -> str:
    """Who has the same software; the server, where it is among them, stands first."""
    if names[0] != view.w("software.server") or len(names) == 1:
        return view.names(names)
    return view.w("number.parties", count=len(names) - 1)


def mapping(view: View) -> str:
    """Which law and guideline asks for what, and where the evidence is."""
    w = view.w
    rows = [(w(f"mapping.{name}"), w(f"mapping.{name}_where")) for name in _ARTICLES]
    heads = ("mapping.what", "mapping.where")
    return view.section(
        "mapping",
        f"<p><strong>{w('mapping.advice')}</strong></p>",
        view.table(w("mapping.caption"), heads, rows, "wordy"),
        refs=False,
    )


def check(view: View) -> str:
    """How to check all of it."""
    report = view.report
    sha256 = digest_of(
        report.facts, report.findings, report.veilface, report.created, report.format
    )
    command = f"veilface audit verify report.json --fingerprint {view.fingerprint}"
    return view.section(
        "check",
        view.plain("check.plain"),
        f"<pre><code>{command}</code></pre>",
        view.quiet("check.fingerprint"),
        f"<p>{_code(view.fingerprint)}</p>",
        view.quiet("check.sha256"),
        f"<p>{_code(sha256)}</p>",
        refs=False,
    )
