"""`veilface audit report` and `verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from common.bundle import Bundle
from common.bundle_options import OpenedBundle, optional_bundle_options
from common.errors import InputError, VeilfaceError
from common.storage import make_private_directory, write_private
from server.audit.facts import Report
from server.audit.page import render, split
from server.audit.seal import Signer, check_pdf
from server.audit.verify import Check, check_text, failed, holds
from server.audit.wording import LANGUAGES, Language

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_JSON, _HTML, _PDF = "report.json", "report.html", "report.pdf"
_SIGNATURE: Final = ".sig"
_LARGEST: Final = 256 << 20


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--language", type=click.Choice(LANGUAGES), default="en", show_default=True)
@optional_bundle_options
@click.option("--roster", type=_FILE, help="The newest roster.  [default: the bundle's]")
@click.option("--statement", "statements", type=_FILE, multiple=True, help="Of a site; repeat.")
@click.option("--evaluation", type=_FILE, help="Of 'veilface evaluate --groups --json'.")
@click.option("--vault-facts", type=_FILE, multiple=True, help="Of 'veilface audit vault-facts'.")
@click.option("--no-pdf", is_flag=True, help="Write no report.pdf, which needs Pango.")
def report(
    run: Path,
    out: Path,
    language: Language,
    opened: OpenedBundle | None,
    roster: Path | None,
    statements: tuple[Path, ...],
    evaluation: Path | None,
    vault_facts: tuple[Path, ...],
    no_pdf: bool,
) -> None:
    """Write the signed audit report of RUN: report.json, report.html and report.pdf.

    RUN is the server's folder of a finished run. A simulated one holds all that is needed; in a
    deployment, name the server's bundle and what each site handed in (veilface audit statement).
    Exits 1 if the report is written but does not hold: 'veilface audit verify' says why.
    """
    from server.audit.build import build_report  # here: to verify a report needs no torch
    from server.audit.collect import Sources, left_by_simulation

    left_bundle, left_statements = left_by_simulation(run)
    if opened is not None:
        bundle = opened.bundle
    elif left_bundle is not None:
        bundle = Bundle.read(left_bundle)
    else:
        raise InputError(
            f"{run} holds no bundle to sign the report with",
            hint="--bundle of the server and --statement of each site",
        )
    handed_in = statements or left_statements
    sources = Sources(run, bundle, roster, handed_in, evaluation, vault_facts)
    signer = Signer.of(bundle)
    made = build_report(sources, signer)
    text = made.to_text()
    found = {_JSON: text.encode(), _HTML: render(made, language).encode()}
    if not no_pdf:
        from server.audit.pdf import to_pdf  # its libraries are not needed for the rest

        pdf = to_pdf(made, language)
        found |= {_PDF: pdf, _PDF + _SIGNATURE: signer.sign_pdf(text, pdf)}
    make_private_directory(out)
    for name, data in found.items():
        write_private(out / name, data)
        click.echo(str(out / name))
    checks = check_text(text)[1]
    for check in checks:
        if check.outcome == "FAILS":
            click.echo(f"{check.outcome} {check.what} ({check.detail})", err=True)
    _raise_if_failed(checks, _JSON)


@click.command()
@click.argument("file", type=_FILE)
@click.option("--fingerprint", help="Of the roster key, as the federation's operator told it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(file: Path, fingerprint: str | None, as_json: bool) -> None:
    """Recompute everything in FILE from the evidence in it; exit 1 if anything does not hold.

    FILE is a report.json, a report.html, or a report.pdf with its .sig and report.json beside it.
    """
    checks = _verified(file, fingerprint)
    if as_json:
        click.echo(json.dumps({"ok": not failed(checks), "checks": [asdict(c) for c in checks]}))
    else:
        for check in checks:
            detail = f" ({check.detail})" if check.detail else ""
            click.echo(f"{check.outcome:<6} {check.what}{detail}")
    _raise_if_failed(checks, file.name)


def _raise_if_failed(checks: tuple[Check, ...], name: str) -> None:
    if failed(checks):
        wrong = sum(check.outcome == "FAILS" for check in checks)
        raise VeilfaceError(
            f"{wrong} of {len(checks)} checks of {name} fail",
            hint="do not rely on this report",
        )


def _verified(file: Path, fingerprint: str | None) -> tuple[Check, ...]:
    data = _read(file)
    if data.startswith(b"%PDF"):
        return _verified_pdf(file, data, fingerprint)
    text = _text(file, data)
    if text.lstrip().startswith("{"):
        return check_text(text, fingerprint)[1]
    inner, language = split(text)
    made, checks = check_text(inner, fingerprint)
    if made is None:
        return checks
    return (
        *checks,
        holds("the page shows what the report says", lambda: _same(made, language, text)),
    )


def _same(made: Report, language: Language, page: str) -> None:
    """Raise InputError unless the page is letter by letter what the report renders to."""
    again = render(made, language)
    if again == page:
        return
    lines = zip(again.split("\n"), page.split("\n"), strict=False)
    number = next((n for n, (a, b) in enumerate(lines, start=1) if a != b), 0)
    raise InputError(
        f"line {number} of the page differs", hint=f"it was made by Veilface {made.veilface}"
    )


def _verified_pdf(file: Path, data: bytes, fingerprint: str | None) -> tuple[Check, ...]:
    """Check the report beside a PDF, and that the server signed the PDF as its print-out."""
    beside, signature = file.with_name(_JSON), file.with_name(file.name + _SIGNATURE)
    text = _text(beside, _read(beside))
    made, checks = check_text(text, fingerprint)
    if made is None:
        return checks
    document = _read(signature)
    what = f"the server signed this PDF as the print-out of {_JSON}"
    return (*checks, holds(what, lambda: check_pdf(made.seal, text, data, document)))


def _text(file: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a report", hint="report.json, .html or .pdf") from error


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(f"{file} is larger than a report ever is")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
