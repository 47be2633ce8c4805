"""The application: endpoints, page and guard put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, Request, Response

from client.recognition import Recogniser
from client.service import api
from client.service.pages import FILES
from client.service.settings import Settings
from client.service.state import Service
from common.web.answers import MAPPED, UNEXPECTED, answer
from common.web.guard import Guard
from common.web.journal import Journal
from common.web.pages import pages


def create_app(
    recogniser: Recogniser, settings: Settings | None = None, journal: Journal | None = None
) -> FastAPI:
    """The service of one recogniser and its vault, as an ASGI application.

    The vault stays open when the application ends: it belongs to the caller.
    """
    # The first use lays the network's weights out anew, once, before threads share them.
    recogniser.embed(np.zeros((1, recogniser.chip.size, recogniser.chip.size, 3), dtype=np.uint8))
    service = Service.of(recogniser, settings or Settings(), journal or Journal())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="Veilface",
        version="1",
        summary="Enrol, verify and identify people; templates lie encrypted in a vault.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(api.router)
    app.include_router(pages(FILES))
    app.add_middleware(Guard, service=service, open_paths={"/v1/health", *FILES})
    for kind in MAPPED:
        app.add_exception_handler(kind, _answer)
    return app


async def _answer(request: Request, error: Exception) -> Response:
    request_id: str = request.scope["veilface.request"]
    if isinstance(error, UNEXPECTED):
        request.app.state.service.journal.failure(request_id, error)
    return answer(error, request_id)
