"""A real browser, where one is installed, with a camera that shows a moving pattern."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
QUIET = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
INSECURE_HOST = "carnet.test"
"""A name that the browser takes for this machine, and for no secure one."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window, and without connections of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs playwright")
    path = os.environ.get("CARNET_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium found: install chromium, or name one in CARNET_CHROMIUM")
    flags = ["--no-sandbox", "--no-first-run", f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1", *QUIET, *CAMERA]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open an address in a page that fails the test if it asks another place for anything, or if its script fails."""
    problems: list[str] = []
    contexts = []

    def open_page(url: str, refusals: int = 0, **settings: Any) -> Any:
        """Open the address; so many requests may be refused by the service."""
        origin = url.partition("://")[2].partition("/")[0]
        context = browser.new_context(accept_downloads=True, viewport={"width": 1200, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        refused: list[str] = []

        def hear(message: Any) -> None:
            if message.type == "error":
                is_refusal = message.text.startswith("Failed to load resource") and len(refused) < refusals
                (refused if is_refusal else problems).append(message.text)

        def see(request: Any) -> None:
            if request.url.startswith("http") and request.url.partition("://")[2].partition("/")[0] != origin:
                problems.append(request.url)

        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", hear)
        page.on("request", see)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems
