"""The background-task example of a real project: a web server, a broker and a worker of every kind, and a browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser import Browser, free_port
from tests.chromium import chromium_page, has_sideways_scrolling, sign_in
from tests.dev_support import left_in, wait_until
from tests.processes import Program, add_gevent, installed, redis_server, run, sqlite, started, web_server

pytestmark = pytest.mark.run

PASSWORD = "correct horse battery"
# Seconds of a job that is still at work when all that must happen meanwhile has: the most that the form takes.
LONG = 120
JANE, JOHN = "jane@example.com", "john@example.com"
ADD_USERS = f"""
from apps.users.models import User
for email in ("{JANE}", "{JOHN}"):
    User.objects.create_user(email, "{PASSWORD}")
"""
ROW = re.compile(
    r'<li class="card job job-(?P<state>\w+)" id="job-(?P<id>[0-9a-f-]{36})">.*?'
    r'<progress max="\d+"\s+value="(?P<current>\d+)".*?</li>',
    re.DOTALL,
)


class Site(NamedTuple):
    """A project at work."""

    project: Path
    address: str
    worker: Program
    variables: dict[str, str]

    def shell(self, code: str) -> str:
        """Run code in the project's shell."""
        return run(self.project, self.project / ".venv/bin/python", "manage.py", "shell", "-c", code, **self.variables)


class Person:
    """Somebody who has signed in, and looks at the page of jobs."""

    def __init__(self, address: str, email: str) -> None:
        self.browser = Browser(address)
        self.browser.get("/accounts/login/")
        self.browser.post("/accounts/login/", login=email, password=PASSWORD)

    def jobs(self) -> dict[str, tuple[str, int]]:
        """The state of each job and its seconds, by id, the latest first."""
        status, page = self.browser.get("/jobs/")
        assert status == 200
        return {row["id"]: (row["state"], int(row["current"])) for row in ROW.finditer(page)}

    def start(self, **fields: object) -> str:
        """Start a job; return its id."""
        before = self.jobs()
        self.browser.post("/jobs/", **fields)
        [job] = self.jobs().keys() - before.keys()
        return job

    def do(self, action: str, job: str) -> int:
        """Cancel or retry a job; return the status of the answer."""
        return self.browser.post(f"/jobs/{job}/{action}/")[0]

    def sees(self, job: str, state: str) -> bool:
        """Wait until the job is in the state; return whether it came to that."""
        return wait_until(lambda: self.jobs()[job][0] == state)


# A project at work ----------------------------------------------------------


@pytest.fixture(scope="module")
def project(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the example and two users, and gevent for the pool of that name."""
    folder = tmp_path_factory.mktemp("jobs")
    project, programs = installed(template_repo, folder, "3.13", use_background_tasks=True, use_flower=False)
    add_gevent(project, programs)
    for command in (["migrate"], ["shell", "-c", ADD_USERS]):
        run(project, programs / "python", "manage.py", *command, DEBUG="1")
    return project


@pytest.fixture(scope="module", params=["prefork", "threads", pytest.param("gevent", marks=pytest.mark.slow)])
def site(request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The project at work, with a worker of this pool."""
    folder = tmp_path_factory.mktemp(request.param)
    celery = (project / ".venv/bin/celery", "-A", "acme", "worker", "-l", "info", "-P", request.param, "-c", "4")
    with redis_server(folder) as (_, url):
        variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
        with (
            started(project, folder / "worker.log", *celery, **variables) as worker,
            web_server(project, folder, **variables) as address,
        ):
            worker.says(r" ready\.")
            yield Site(project, address, worker, variables)
    assert not left_in(project)


@pytest.fixture
def jane(site: Site) -> Person:
    return Person(site.address, JANE)


# On every kind of worker ----------------------------------------------------


def test_a_job_is_done_to_its_end(jane):
    job = jane.start(total=2)
    assert jane.sees(job, "done"), jane.jobs()
    assert jane.jobs()[job] == ("done", 2)


def test_a_running_job_is_cancelled_in_the_middle(jane):
    job = jane.start(total=LONG)
    assert wait_until(lambda: jane.jobs()[job][1] > 0)
    assert jane.do("cancel", job) == 200
    assert jane.sees(job, "cancelled")
    assert 0 < jane.jobs()[job][1] < LONG


def test_a_job_that_fails_is_retried(site, jane):
    job = jane.start(total=2, fail_on_purpose="on")
    assert jane.sees(job, "failed")
    # The log is written after the row.
    site.worker.says("FailedOnPurpose")
    assert jane.do("retry", job) == 200
    assert jane.sees(job, "done")


def test_a_message_that_comes_again_does_nothing(site, jane):
    job = jane.start(total=3)
    site.shell(f"from apps.jobs.tasks import run; run.enqueue({job!r}, 1)")
    site.worker.says(f"Job {job}, attempt 1: nothing to do")
    assert jane.sees(job, "done")
    assert site.worker.text.count(f"Job {job}, attempt 1: nothing to do") == 1


def test_the_jobs_of_others_do_not_exist(site, jane):
    job, john = jane.start(total=1), Person(site.address, JOHN)
    assert job not in john.jobs()
    assert (john.do("cancel", job), john.do("retry", job), john.browser.get(f"/jobs/{job}/")[0]) == (404, 404, 404)
    assert jane.sees(job, "done")


# When something breaks ------------------------------------------------------


@pytest.mark.parametrize("site", ["prefork"], indirect=True)
def test_a_job_whose_worker_was_killed_is_closed_and_retried(site, jane):
    job = jane.start(total=LONG)
    assert jane.sees(job, "running")
    for child in psutil.Process(site.worker.process.pid).children(recursive=True):
        child.kill()
    # The message comes again, and finds the job taken.
    site.worker.says(f"Job {job}, attempt 1: nothing to do")
    # Silent for long, and short enough to be waited for.
    sqlite(site.project, "UPDATE jobs_job SET updated_at = '2026-01-01', total = 3 WHERE state = 'running'")
    site.shell("from apps.jobs.tasks import close_stalled_jobs; close_stalled_jobs.enqueue()")
    assert jane.sees(job, "failed")
    jane.do("retry", job)
    assert jane.sees(job, "done")


def test_a_job_that_cannot_be_sent_waits_in_the_database(project, tmp_path):
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    with web_server(project, tmp_path, CELERY_BROKER_URL=nobody, DEBUG="1") as address:
        jane = Person(address, JANE)
        job = jane.start(total=2)
        assert jane.jobs()[job] == ("queued", 0)
        assert job in str(sqlite(project, "SELECT message FROM tasks_outgoingtask WHERE name = 'apps.jobs.tasks.run'"))


# In a browser ---------------------------------------------------------------


def seconds_done(bar: Locator) -> int:
    return int(bar.get_attribute("value") or 0)


def start_in(page: Page, site: Site, total: int) -> tuple[Locator, Locator]:
    """Start a job of so many seconds on a page; return its row and its bar."""
    sign_in(page, site.address, JANE, PASSWORD, "/jobs/")
    page.get_by_label("Length in seconds").fill(str(total))
    page.get_by_role("button", name="Start a job").click()
    job = page.get_by_role("listitem").filter(has_text=f"{total}-second job")
    return job, job.get_by_role("progressbar", name=f"{total}-second job")


@pytest.mark.parametrize("site", ["threads"], indirect=True)
@pytest.mark.parametrize("width, total", [(1280, LONG - 1), (360, LONG - 2)], ids=["desktop", "phone"])
def test_the_bar_moves_survives_a_reload_and_stops(site, width, total):
    with chromium_page(viewport={"width": width, "height": 800}) as page:
        job, bar = start_in(page, site, total)
        assert wait_until(lambda: seconds_done(bar) > 1)

        seen = seconds_done(bar)
        page.reload()
        assert seconds_done(bar) >= seen
        assert wait_until(lambda: seconds_done(bar) > seen)
        assert not has_sideways_scrolling(page)

        job.get_by_role("button", name="Cancel").click()
        expect(job).to_contain_text("Cancelled")
        expect(page.get_by_role("status").filter(has_text=f"{total}-second job")).to_contain_text("Cancelled")
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.wait_for_timeout(2500)
        assert requests == []


@pytest.mark.parametrize("site", ["threads"], indirect=True)
def test_an_answer_about_progress_that_comes_after_a_click_on_cancel_finds_its_place(site):
    total = LONG - 3
    with chromium_page() as page:
        job, bar = start_in(page, site, total)
        assert wait_until(lambda: seconds_done(bar) > 0)

        held: list[Route] = []
        progress = re.compile(r"/jobs/\S+shape=running$")
        with page.expect_request(progress):
            page.route(progress, lambda route: held.append(route))
        with page.expect_response(re.compile("/cancel/$")):
            job.get_by_role("button", name="Cancel").click()
        assert held
        for route in held:
            route.continue_()
        page.unroute(progress)
        expect(job).to_contain_text("Cancelled")


@pytest.mark.parametrize("site", ["threads"], indirect=True)
def test_a_second_tab_shows_the_same_and_a_failed_job_is_retried_there(site):
    with chromium_page() as page:
        sign_in(page, site.address, JOHN, PASSWORD, "/jobs/")
        page.get_by_label("Length in seconds").fill("3")
        page.get_by_label("Fail half way").check()
        page.get_by_role("button", name="Start a job").click()
        in_first = page.get_by_role("listitem").filter(has_text="3-second job")
        in_first.wait_for()
        second = page.context.new_page()
        second.goto(page.url)
        in_second = second.get_by_role("listitem").filter(has_text="3-second job")
        for job in (in_first, in_second):
            expect(job).to_contain_text("The log of the worker says why")
        in_second.get_by_role("button", name="Retry").click()
        expect(in_second).to_contain_text("Done")
        page.reload()
        expect(in_first).to_contain_text("Done")
