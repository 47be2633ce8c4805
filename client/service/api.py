"""The endpoints under /v1: thin, each one call of the recogniser or its vault."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.responses import PlainTextResponse

from client.calibration import Purpose, Threshold
from client.enrolment import Rights
from client.recognition import Enrolment, Identification
from client.service.state import Service
from client.service.tokens import COMMAND
from client.service.uploads import Form, read_form, subject_id
from client.vault import LogEntry, Receipt, SubjectInfo
from common.errors import InputError, Refused
from common.web import metrics
from common.web.answers import Declined, lacks_scope
from common.web.me import BEARER, Me, me, token_of

router = APIRouter()
_MAX_JSON: Final = 16_384


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def needs(*scopes: str) -> Any:
    """A dependency: the token, which the guard has found good, has one of the scopes, if any."""

    async def check(request: Request, _: Annotated[Any, Security(BEARER)]) -> None:
        token = token_of(request)
        if scopes and not any(token.allows(scope) for scope in scopes):
            service = service_of(request)
            note = partial(service.recogniser.vault.record, "refused", None, "forbidden")
            await service.storage.run(note)
            raise lacks_scope(scopes, COMMAND)

    return Depends(check)


def _multipart(*required: str, top: bool = False) -> dict[str, Any]:
    """The description of a multipart body for OpenAPI; the guard counts it while it is read."""
    binary = {"type": "string", "format": "binary"}
    kinds = {
        "subject": {"type": "string", "maxLength": 256},
        "image": binary,
        "images": {"type": "array", "items": binary, "minItems": 1, "maxItems": 10},
    }
    properties: dict[str, Any] = {name: kinds[name] for name in required}
    if top:
        properties["top"] = {"type": "integer", "minimum": 1, "maximum": 100, "default": 5}
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def _json(*required: str) -> dict[str, Any]:
    properties = {name: {"type": "string", "maxLength": 256} for name in required}
    schema = {"type": "object", "required": list(required), "properties": properties}
    return _body("application/json", schema)


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


async def form_of(request: Request) -> Form:
    """The multipart body of a request; read here, so after the token and its scope were checked."""
    limit = request.app.state.service.settings.max_images
    return await read_form(request.headers.get("content-type", ""), request.stream(), limit)


@dataclass(frozen=True)
class Health:
    """That the service answers, and for what there is a threshold."""

    status: str
    verify: bool
    identify: bool


@dataclass(frozen=True)
class Verification:
    """A verification; `score` is null for tokens that may do no more than verify.

    A score may rest on everyone in the vault, and many of them tell who is: the decision does not.
    """

    pseudonym: str
    accepted: bool
    score: float | None
    threshold: float
    fmr: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Subjects:
    """One page of the persons of the vault."""

    total: int
    subjects: tuple[SubjectInfo, ...]


@dataclass(frozen=True)
class Thresholds:
    """The calibrated thresholds; null where there is none."""

    verify: Threshold | None
    identify: Threshold | None


def _threshold(service: Service, purpose: Purpose) -> Threshold | None:
    try:
        return service.recogniser.threshold(purpose)
    except Refused:
        return None


def _thresholds(service: Service) -> Thresholds:
    return Thresholds(_threshold(service, "verify"), _threshold(service, "identify"))


@router.get("/v1/health", summary="Is the service up? Needs no token.")
async def health(request: Request) -> Health:
    service = service_of(request)
    known = await service.storage.run(partial(_thresholds, service))
    return Health("ok", known.verify is not None, known.identify is not None)


@router.get("/v1/token", summary="What this token may do. Any token.", dependencies=[needs()])
async def token(request: Request) -> Me:
    return me(request)


@router.post(
    "/v1/subjects",
    status_code=201,
    summary="Enrol a person (scope: enrol), or add images to one who is there (scope: extend).",
    dependencies=[needs("enrol", "extend")],
    openapi_extra=_multipart("subject", "images"),
)
async def enrol(request: Request) -> Enrolment:
    service, form = service_of(request), await form_of(request)
    token = token_of(request)
    rights = Rights(*(token.allows(scope) for scope in ("enrol", "extend", "identify")))
    work = partial(service.recogniser.enrol, form.person(), form.images, rights=rights)
    return await service.recognitions.run(work)


@router.get(
    "/v1/subjects",
    summary="Who is enrolled, by pseudonym. Scope: admin.",
    dependencies=[needs("admin")],
)
async def subjects(
    request: Request,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Subjects:
    service = service_of(request)
    found = await service.storage.run(service.recogniser.vault.subjects)
    return Subjects(len(found), found[offset : offset + limit])


@router.post(
    "/v1/subjects/erase",
    summary="Destroy a person's key and templates; the answer is a signed receipt. Scope: erase.",
    dependencies=[needs("erase")],
    openapi_extra=_json("subject"),
)
async def erase(request: Request) -> Receipt:
    service, subject = service_of(request), await _subject_of(request)
    return await service.storage.run(partial(service.recogniser.erase, subject))


@router.post(
    "/v1/verify",
    summary="Is this image of that person? Scope: verify; with identify or admin, the score, too.",
    dependencies=[needs("verify")],
    openapi_extra=_multipart("subject", "image"),
)
async def verify(request: Request) -> Verification:
    service, form = service_of(request), await form_of(request)
    work = partial(service.recogniser.verify, form.person(), form.picture())
    found = await service.recognitions.run(work)
    token = token_of(request)
    score = found.score if token.allows("identify") or token.allows("admin") else None
    return Verification(
        found.pseudonym, found.accepted, score, found.threshold, found.fmr, found.warnings
    )


@router.post(
    "/v1/identify",
    summary="Who is this, if anyone? Scope: identify.",
    dependencies=[needs("identify")],
    openapi_extra=_multipart("image", top=True),
)
async def identify(request: Request) -> Identification:
    service, form = service_of(request), await form_of(request)
    work = partial(service.recogniser.identify, form.picture(), _number(form.top))
    return await service.recognitions.run(work)


@router.get(
    "/v1/thresholds",
    summary="The calibrated thresholds. Scope: verify, identify or admin.",
    dependencies=[needs("verify", "identify", "admin")],
)
async def thresholds(request: Request) -> Thresholds:
    service = service_of(request)
    return await service.storage.run(partial(_thresholds, service))


@router.get(
    "/v1/log",
    summary="The operation log, newest first. Scope: admin.",
    dependencies=[needs("admin")],
)
async def log(
    request: Request, limit: Annotated[int, Query(ge=1, le=10_000)] = 200
) -> tuple[LogEntry, ...]:
    service = service_of(request)
    entries = await service.storage.run(service.recogniser.vault.log)
    return entries[: -limit - 1 : -1]


@router.get(
    "/metrics",
    summary="Counters for Prometheus. Scope: admin.",
    response_class=PlainTextResponse,
    dependencies=[needs("admin")],
)
async def counters(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type=metrics.CONTENT_TYPE)


def _number(top: str | None) -> int:
    if top is None:
        return 5
    if not (top.isascii() and top.isdecimal() and len(top) <= 3):
        raise InputError("'top' is a number from 1 to 100")
    return int(top)


async def _subject_of(request: Request) -> str:
    """The subject of a small JSON body."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_JSON:
            raise Declined(413, f"more than {_MAX_JSON} bytes")
    try:
        values = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise InputError("the body is not JSON") from error
    if not isinstance(values, dict) or set(values) != {"subject"}:
        raise InputError('the body is {"subject": ...} and nothing else')
    return subject_id(values["subject"])
