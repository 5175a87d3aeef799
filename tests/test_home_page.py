"""The home page of a real project in a real browser: on a phone, in the dark, and without a mouse."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import template
from tests.browser import free_port
from tests.chromium import chromium_page, has_sideways_scrolling
from tests.dev_support import left_in
from tests.processes import installed, redis_server, run, started

pytestmark = pytest.mark.run

PHONE = {"width": 360, "height": 740}
SWITCHED_ON = [
    "AI chat",
    "ASGI",
    "Background tasks",
    "Celery with Redis",
    "Flower",
    "Jobs",
    "Metrics",
    "Pages",
    "Subscriptions",
    "Teams",
    "Users",
]
# Of each element its text, and how bright that is beside what is behind it, as the guidelines for readable pages count.
CONTRASTS = """elements => {
    const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
    const brightness = colour => numbers(colour).slice(0, 3)
        .map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0.05);
    const isClear = element => numbers(getComputedStyle(element).backgroundColor)[3] === 0;
    return elements.filter(element => element.checkVisibility()).map(element => {
        let behind = element;
        while (isClear(behind)) behind = behind.parentElement;
        const [text, back] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        return [element.innerText, brightness(text) / brightness(back)];
    });
}"""
WORDS = "h1, h2, h3, p, dt, dd, li, a, button, code, label, input"
# Of text against what is behind it, or the reverse.
LEAST_CONTRAST = 4.5


@pytest.fixture(scope="module")
def site(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a project with everything at work: broker, worker and web server."""
    folder = tmp_path_factory.mktemp("home")
    project, programs = installed(template_repo, folder, "3.13", **template.EVERYTHING)
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    with redis_server(folder) as (_, url):
        variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
        run(project, programs / "python", "manage.py", "migrate", **variables)
        worker = (programs / "celery", "-A", "acme", "worker", "-l", "info", "--pool=solo")
        web = (programs / "uvicorn", "acme.asgi:application", f"--host={host}", f"--port={port}")
        with (
            started(project, folder / "worker.log", *worker, **variables) as working,
            started(project, folder / "web.log", *web, **variables) as serving,
        ):
            working.says(r" ready\.")
            serving.says("Uvicorn running on")
            yield f"http://{address}"
    assert not left_in(folder)


def press_tab_until(page: Page, selector: str) -> None:
    """Go from element to element by the keyboard; fail where the way does not lead there, or leaves no trace."""
    target = page.locator(selector)
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        assert focused.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
        if target.evaluate("element => element === document.activeElement"):
            return
    pytest.fail(f"Tab does not reach {selector}.")


def test_on_a_phone_in_the_dark_a_task_is_run_by_the_keyboard_alone(site):
    with chromium_page(viewport=PHONE, color_scheme="dark") as page:
        page.goto(site)
        listed = page.get_by_role("list", name="Switched on").get_by_role("listitem")
        assert sorted(listed.all_inner_texts()) == SWITCHED_ON
        assert not has_sideways_scrolling(page)

        press_tab_until(page, "input[name=x]")
        page.keyboard.press("Control+A")
        page.keyboard.type("20")
        press_tab_until(page, "input[name=y]")
        page.keyboard.press("Control+A")
        page.keyboard.type("22")
        with page.expect_request("**/tasks/add/") as request:
            page.keyboard.press("Enter")
        assert request.value.headers.get("hx-request") == "true"
        result = page.get_by_role("status").filter(has_text="The task returned")
        expect(result.locator("strong")).to_have_text("42")
        # The page stayed, and only the fragment came.
        assert page.url == f"{site}/" and not has_sideways_scrolling(page)


def test_all_its_words_can_be_read_by_day_and_by_night(site):
    with chromium_page() as page:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(site)
            words = page.locator(WORDS).evaluate_all(CONTRASTS)
            assert (dict(words)["Acme is running"] > 1) == (scheme == "dark")
            assert [each for each in words if 1 / LEAST_CONTRAST < each[1] < LEAST_CONTRAST] == []
