"""A real browser, and what tests do in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.serving import Served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

Open = Callable[..., Page]

LONG_MS = 30_000
"""More than anything here takes, on a busy machine too."""

expect.set_options(timeout=LONG_MS)


@pytest.fixture(scope="module")  # a session's would keep an event loop from other tests
def browser() -> Iterator[Browser]:
    """Chromium of the system."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; install it with: make chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens the page of a server in a window of its own, which must not report any error, nor ask
    anything of another server. Options are those of a window (``Browser.new_context``)."""
    problems: list[str] = []
    contexts = []

    def opened(address: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(LONG_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if _is_problem(said) else None)
        page.on("request", lambda sent: _check_address(sent.url, address, problems))
        page.goto(address)
        expect(page.locator("#main, #key-form").filter(visible=True)).to_have_count(1)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def generate(page: Page) -> None:
    """Press the button and wait for the pictures."""
    page.locator("#go").click()
    expect(page.locator("#go")).to_be_enabled()
    assert page.locator(".problem:visible").all_inner_texts() == []
    expect(page.locator("#status")).to_have_text("Done.")


def downloaded(page: Page, name: str) -> Image.Image:
    """The picture of a link for downloading."""
    with page.expect_download() as saving:
        page.get_by_role("link", name=name).click()
    return Image.open(saving.value.path())


def _is_problem(said: Any) -> bool:
    # Answers of 400 and 401 are told in the page, and by the browser in its console.
    return said.type in ("error", "warning") and not said.text.startswith("Failed to load resource")


def _check_address(url: str, address: str, problems: list[str]) -> None:
    if not url.startswith((address, "data:", "blob:")):
        problems.append(f"asked {url}")


@pytest.fixture(scope="session")
def server(served: Served) -> str:
    """The address of a server of ``tiny``, which comes first, and a VAR."""
    return f"{served.url}/"
