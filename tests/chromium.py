"""A real browser, for what only JavaScript shows: Debian's Chromium, driven by Playwright."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser import PATIENCE_SECONDS
from tests.processes import needed

# It runs as root, without a screen, and talks to nobody but the page.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

PATIENCE_MS = PATIENCE_SECONDS * 1000
expect.set_options(timeout=PATIENCE_MS)


@contextmanager
def chromium_page(**context: Any) -> Iterator[Page]:
    """Open a page, in a window of this `viewport` for example; fail at the end if the page has complained.

    Without Chromium the test is skipped, and fails where everything should be there.
    """
    program = needed("chromium")
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS, timeout=PATIENCE_MS)
        try:
            window = browser.new_context(**context)
            window.set_default_timeout(PATIENCE_MS)
            page = window.new_page()
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            yield page
        finally:
            browser.close()
    assert not complaints, complaints


def sign_in(page: Page, site: str, email: str, password: str, next_path: str = "/") -> None:
    """Sign in by the form, and arrive at a page."""
    page.goto(f"{site}/accounts/login/?next={next_path}")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("main").get_by_role("button", name="Sign In").click()
    page.wait_for_url(f"{site}{next_path}")


def has_sideways_scrolling(page: Page) -> bool:
    """Whether the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
