"""The addresses of the server's page: read-only, thin, each a look at the server's folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.responses import FileResponse, PlainTextResponse

from common.errors import InputError
from common.web import metrics as web_metrics
from common.web.answers import Declined, lacks_scope
from common.web.journal import Journal
from common.web.limits import Buckets, Workers
from common.web.me import BEARER, Me, me, token_of
from common.web.metrics import Metrics
from common.web.tokens import Tokens
from server.deployment import metrics
from server.deployment.folder import RunFolder, ServerFolder
from server.deployment.front_counts import front_counts
from server.deployment.status import REPORT, RunDetails, Status, run_details, status

LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")
router = APIRouter()


@dataclass(frozen=True)
class Settings:
    """Limits of the page; `timeout` leaves room for the download of a model."""

    hosts: tuple[str, ...] = LOCAL
    tls: bool = False
    max_body: int = 1024
    max_held: int = 1 << 20
    timeout: float = 600.0


@dataclass(frozen=True)
class Page:
    """The parts of a running page."""

    folder: ServerFolder
    settings: Settings
    tokens: Tokens
    journal: Journal
    metrics: Metrics
    storage: Workers
    requests: Buckets
    failures: Buckets
    visitors: Buckets


@dataclass(frozen=True)
class Health:
    """That the page answers."""

    status: str = "ok"


def _needs(*scopes: str) -> Any:
    async def check(request: Request, _: Annotated[Any, Security(BEARER)]) -> None:
        if scopes and not any(token_of(request).allows(scope) for scope in scopes):
            raise lacks_scope(scopes, "veilface server token")

    return Depends(check)


_ANY: Final = _needs()
_VIEW: Final = _needs("view")


@router.get("/v1/health", summary="Is the page up? Needs no token.")
async def health() -> Health:
    return Health()


@router.get("/v1/token", summary="What this token may do.", dependencies=[_ANY])
async def token(request: Request) -> Me:
    return me(request)


@router.get("/v1/status", summary="Sites and runs. Scope: view.", dependencies=[_VIEW])
async def everything(request: Request) -> Status:
    page = page_of(request)
    return await page.storage.run(partial(status, page.folder))


@router.get(
    "/v1/runs/{run_id}", summary="One run and its models. Scope: view.", dependencies=[_VIEW]
)
async def one(request: Request, run_id: str) -> RunDetails:
    page = page_of(request)
    return await page.storage.run(lambda: run_details(_run(page, run_id)))


@router.get(
    "/v1/runs/{run_id}/model", summary="Its newest model, safetensors. Scope: view.",
    response_class=Response, dependencies=[_VIEW],
)  # fmt: skip
async def model(request: Request, run_id: str) -> Response:
    run = _run(page_of(request), run_id)
    return _file(run.model, f"{run_id}.safetensors", "application/octet-stream")


@router.get(
    "/v1/runs/{run_id}/report", summary="Its report, HTML. Scope: view.",
    response_class=Response, dependencies=[_VIEW],
)  # fmt: skip
async def report(request: Request, run_id: str) -> Response:
    run = _run(page_of(request), run_id)
    return _file(run.path / REPORT, f"{run_id}.html", "text/html; charset=utf-8")


@router.get(
    "/metrics", summary="For Prometheus. Scope: metrics or view.",
    response_class=PlainTextResponse, dependencies=[_needs("metrics", "view")],
)  # fmt: skip
async def counters(request: Request) -> Response:
    page = page_of(request)
    found = await page.storage.run(lambda: _metrics(page))
    return Response(found, media_type=web_metrics.CONTENT_TYPE)


def page_of(request: Request) -> Page:
    page: Page = request.app.state.page
    return page


def _run(page: Page, run_id: str) -> RunFolder:
    """The run of a name; a name that is none leads nowhere."""
    try:
        run = page.folder.run(run_id)
    except InputError as error:
        raise Declined(404, "there is no such run") from error
    if not run.exists:
        raise Declined(404, "there is no such run")
    return run


def _file(path: Path, name: str, media_type: str) -> Response:
    """A download: a browser never shows it as a page of this origin."""
    if not path.is_file():
        raise Declined(404, "it is not there yet", hint="it comes with the run's end")
    return FileResponse(path, filename=name, media_type=media_type)


def _metrics(page: Page) -> str:
    seen = metrics.text(status(page.folder), front_counts(page.folder.path))
    return seen + page.metrics.text()
