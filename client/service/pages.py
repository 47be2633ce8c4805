"""The web page of a site."""

from __future__ import annotations

from typing import Final

from common.web.pages import page_files

FILES: Final = page_files(
    "client.service",
    ("main.js", "api.js", "pictures.js", "people.js", "recognise.js", "records.js"),
)
