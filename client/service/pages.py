"""The web page: a handful of files, read once, each at its own address.

An address that is not in the list does not exist, so no path can lead out of the folder.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request, Response

_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_FILES: Final = {
    "/": "index.html",
    "/docs": "docs.html",
    **{
        f"/static/{name}": name
        for name in (
            "page.css", "icon.svg", "main.js", "api.js", "dom.js", "pictures.js", "people.js",
            "recognise.js", "records.js", "docs.js",
        )
    },
}  # fmt: skip
PATHS: Final = tuple(_FILES)
router = APIRouter(include_in_schema=False)


def _content(name: str) -> bytes:
    return (files("client.service") / "static" / name).read_bytes()


def _add(path: str, name: str) -> None:
    body, media_type = _content(name), _TYPES[name.rpartition(".")[2]]

    async def page(_: Request) -> Response:
        return Response(body, media_type=media_type)

    router.add_api_route(path, page, methods=["GET"], response_class=Response)


for _path, _name in _FILES.items():
    _add(_path, _name)
