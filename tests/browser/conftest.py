"""A headless Chromium, and pages opened in it as a reader opens them: from the disk, with nothing else at hand."""

import shutil
from contextlib import contextmanager
from urllib.parse import unquote

import pytest


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def opened(browser):
    """Opens a file at a width; fails where it asked for anything but itself or reported an error."""

    @contextmanager
    def opened(path, width=1280):
        page, wrong = browser.new_page(viewport={"width": width, "height": 844}), []
        page.set_default_timeout(20_000)

        def asked(request):
            itself = unquote(request.url.split("#")[0]) == path.as_uri()
            if not itself and not request.url.startswith(("data:", "blob:")):
                wrong.append(f"asked for {request.url[:200]}")

        page.on("request", asked)
        page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        yield page
        page.close()
        assert wrong == []

    return opened
