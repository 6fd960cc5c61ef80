"""A real browser: the system's Chromium, where there is one."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; without it tests are skipped, or fail where the environment says that it must be there."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        _without("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _without("the Python package playwright is not installed")
    with sync_playwright() as playwright:
        try:
            # Root cannot have the sandbox, and containers often lack the user namespaces that it is made of.
            chromium = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except Error as error:
            _without(f"{path} does not start: {str(error).partition(chr(10))[0]}")
        yield chromium
        chromium.close()


def _without(why):
    if os.environ.get("DEADRECKON_BROWSER") == "required":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page by itself; returns it when its charts are drawn, with what it asked for and complained of."""
    contexts = []

    def open_page(page, **settings):
        file = tmp_path / "report.html"
        file.write_text(page, encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
        contexts.append(context)
        shown = context.new_page()
        shown.asked, shown.complaints = [], []
        shown.on("console", lambda message: shown.complaints.append(f"{message.type}: {message.text}"))
        shown.on("pageerror", lambda error: shown.complaints.append(str(error)))

        def refuse(route):
            if route.request.url == file.as_uri():
                route.continue_()
            else:
                shown.asked.append(route.request.url)
                route.abort()

        context.route("**/*", refuse)
        shown.goto(file.as_uri())
        if settings.get("java_script_enabled", True):
            shown.wait_for_selector("html[data-drawn]", timeout=60_000)
        return shown

    yield open_page
    for context in contexts:
        context.close()
