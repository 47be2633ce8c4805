"""Web pages: a handful of files, read once, each at its own address.

An address that is not in the list does not exist, so no path can lead out of the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request, Response

_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_SHARED: Final = ("page.css", "icon.svg", "dom.js", "service.js", "gate.js", "docs.js")


def page_files(package: str, scripts: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """Return package and name by address: of a package's page, and what all pages share."""
    own = {"/": (package, "index.html"), "/docs": ("common.web", "docs.html")}
    own |= {f"/static/{name}": (package, name) for name in scripts}
    return own | {f"/static/{name}": ("common.web", name) for name in _SHARED}


def pages(found: Mapping[str, tuple[str, str]]) -> APIRouter:
    """Return the addresses that answer with these files of the packages' `static` folders."""
    router = APIRouter(include_in_schema=False)
    for path, (package, name) in found.items():
        _add(router, path, (files(package) / "static" / name).read_bytes(), name)
    return router


def _add(router: APIRouter, path: str, body: bytes, name: str) -> None:
    media_type = _TYPES[name.rpartition(".")[2]]

    async def page(_: Request) -> Response:
        return Response(body, media_type=media_type)

    router.add_api_route(path, page, methods=["GET"], response_class=Response)
