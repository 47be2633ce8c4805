"""A real browser for the tests of pages: what a page asks of others, or complains of, is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_CHROMIUM: Final = Path("/usr/bin/chromium")
_ARGUMENTS: Final = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]  # fmt: skip
needs_browser = pytest.mark.skipif(not _CHROMIUM.exists(), reason=f"no browser at {_CHROMIUM}")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(_CHROMIUM), args=_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def quiet_page(
    browser: Browser, address: str, *, allowed: tuple[str, ...] = ("status of 4",), **context: Any
) -> Iterator[Page]:
    """A fresh page; at its end it has asked nobody else and complained of nothing.

    The browser itself complains of an answer that refuses, and of the other `allowed` things;
    all else would be the page's fault.
    """
    own = browser.new_context(accept_downloads=True, **context)
    page = own.new_page()
    page.set_default_timeout(15_000)
    trouble: list[str] = []
    page.on("request", lambda it: None if it.url.startswith((address, "blob:")) else
            trouble.append(f"asked {it.url}"))  # fmt: skip
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda it: None if any(word in it.text for word in allowed) else
            trouble.append(it.text))  # fmt: skip
    page.goto(address)
    yield page
    own.close()
    assert trouble == []
