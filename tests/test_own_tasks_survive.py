"""A user's own app keeps working when Celery leaves and when it comes back, with the same code and the same outcome.

The app is in `tests/shop`, as it stands in a project. A worker runs its tasks, then nobody does but the project itself,
then a worker does again, and what waits at each switch is done once.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import template
from tests.browser import Browser
from tests.dev_support import left_in, wait_until
from tests.processes import Program, installed, needed, redis_server, run, sqlite, started, web_server

pytestmark = pytest.mark.run

SHOP = Path(__file__).with_name("shop")
# The lines that the user adds to files of the template, and what each stands below: the last one of its kind.
EDITS = {
    "acme/settings.py": ('    "apps.web",\n', '    "apps.shop",\n'),
    "acme/urls.py": ('    path("admin/", admin.site.urls),\n', '    path("shop/", include("apps.shop.urls")),\n'),
}
HAS_CELERY = "from importlib.util import find_spec; print(find_spec('celery') is not None)"
ENQUEUE = """
from datetime import timedelta
from django.utils import timezone
from apps.shop.tasks import write, write_later
in_days = write_later.using(run_after=timezone.now() + timedelta(days=3))
"""
ENQUEUE_WHILE_ON = f"""{ENQUEUE}
from acme.tasks import add
print(write.enqueue("queued").id, write.enqueue("queued").id, in_days.enqueue("in days").id)
add.delay(1, 2)
"""
ENQUEUE_WHILE_OFF = f"""{ENQUEUE}
in_days.enqueue("while off")
"""
THE_DAYS_PASS = "UPDATE background_enqueuedtask SET run_after = '2026-01-01 00:00:00' WHERE status = 'READY'"
# What is stored to be sent at its time is sent at once.
THE_DAYS_PASS_IN_THE_OUTBOX = """
UPDATE tasks_outgoingtask
SET send_at = '2026-01-01 00:00:00', message = json_remove(message, '$.options.eta')
"""
# Who ran what `enqueue_every_kind` has enqueued: the start of the name of a worker, or that of the backend.
RAN_BY = """
SELECT DISTINCT substr(json_extract(worker_ids, '$[0]'), 1, 7)
FROM (SELECT worker_ids FROM background_enqueuedtask ORDER BY enqueued_at DESC LIMIT 207)
"""
SEND_WAITING = "from apps.tasks.sending.outbox import send_waiting; send_waiting()"


class State(NamedTuple):
    """What the app does, and what it consists of."""

    own_tests: str
    every_kind: dict[str, Any]
    ran_by: list[str]
    page: str
    files: dict[Path, bytes]


class Shop(NamedTuple):
    """A project with the user's app, a folder for what happens there, and the kind of its workers."""

    project: Path
    folder: Path
    pool: str
    variables: dict[str, str]

    def python(self, *command: str, **options: int) -> str:
        """Run the project's Python."""
        return run(self.project, self.project / ".venv/bin/python", *command, **options, **self.variables)

    def manage(self, *command: str, **options: int) -> str:
        return self.python("manage.py", *command, **options)

    def shell(self, code: str) -> str:
        return self.manage("shell", "-v", "0", "-c", code)

    @contextmanager
    def worker(self) -> Iterator[Program]:
        options = ("-l", "info", "-P", self.pool, "-c", "2")
        celery = (self.project / ".venv/bin/celery", "-A", "acme", "worker", *options)
        with started(self.project, self.folder / "worker.log", *celery, **self.variables) as worker:
            worker.says(r" ready\.")
            yield worker

    def run_due_tasks(self) -> tuple[str, list[str]]:
        """Run them; return what the command says, and what has been written by then."""
        # The log comes after it.
        said, _, _ = self.manage("run_due_tasks").partition("\n")
        return said, self.notes()

    def notes(self) -> list[str]:
        """What tasks have written, in order."""
        return [text for (text,) in sqlite(self.project, "SELECT text FROM shop_note ORDER BY id")]

    def has_celery(self) -> bool:
        """Whether it can be imported."""
        return self.python("-c", HAS_CELERY).strip() == "True"

    def switch(self, use_celery: bool) -> None:
        """Update the project with this answer and install it, as the documentation says."""
        template.update(self.project, use_celery=use_celery)
        assert not template.git(self.project, "diff", "--name-only", "--diff-filter=U"), "conflicts"
        run(self.project, needed("make"), "install")
        # With what the installation has changed in uv.lock.
        template.commit_all(self.project, "Switch")
        assert self.has_celery() == use_celery
        self.manage("migrate")

    def state(self, cron: bool = False) -> State:
        """Return what the app does; without Celery, something has to call `run_due_tasks` again and again."""
        own_tests = self.python("-m", "pytest", "-p", "no:cacheprovider", "tests/shop")
        [counts] = re.findall(r"^=+ (\d.*) in .*=$", own_tests, re.MULTILINE)
        paths = [path.relative_to(SHOP) for path in SHOP.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        files = {path: (self.project / path).read_bytes() for path in paths}
        outcome = self.every_kind(cron)
        ran_by = [name for (name,) in sqlite(self.project, RAN_BY)]
        return State(counts, outcome, ran_by, self.page(), files)

    def every_kind(self, cron: bool) -> dict[str, Any]:
        """Enqueue tasks of every kind; return what has become of them."""
        command = (self.project / ".venv/bin/python", "manage.py", "enqueue_every_kind")
        with started(self.project, self.folder / "every-kind.log", *command, **self.variables) as program:
            program.says("All are enqueued")

            def has_ended() -> bool:
                if cron:
                    self.manage("run_due_tasks")
                return program.process.poll() is not None

            assert wait_until(has_ended), program.text
        return json.loads(program.says(r"(?m)^\{.*\}$")[0])

    def page(self) -> str:
        """Enqueue a task on the page; return what the page of its result says in the end."""
        with web_server(self.project, self.folder, **self.variables) as address:
            browser = Browser(address)
            browser.get("/shop/")
            browser.post("/shop/", text="Milk")
            path = browser.address.removeprefix(address)
            wait_until(lambda: "SUCCESSFUL" in browser.get(path)[1])
            return " ".join(re.search(r"<p>(.*?)</p>", browser.get(path)[1], re.DOTALL)[1].split())


# The three states -----------------------------------------------------------


# The second one has Django 5.2, which has no task framework of its own.
SETUPS = [("3.13", "prefork"), pytest.param(("3.11", "threads"), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SETUPS, ids="-".join)
def shop(
    request: pytest.FixtureRequest, template_repo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """A project of which `use_celery` alone decides about Celery, with the user's app, and a broker."""
    folder = tmp_path_factory.mktemp("shop")
    version, pool = request.param
    project, _ = installed(template_repo, folder, version, use_flower=False)
    template.commit_all(project, "Start")
    shutil.copytree(SHOP, project, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path, (above, line) in EDITS.items():
        text = (project / path).read_text()
        assert text.count(above) == 1
        (project / path).write_text(text.replace(above, above + line))
    template.commit_all(project, "Add a shop")
    with redis_server(folder) as (_, url):
        shop = Shop(project, folder, pool, {"CELERY_BROKER_URL": url, "DEBUG": "1"})
        shop.manage("migrate")
        yield shop
    assert not left_in(project)


@pytest.fixture(scope="module")
def on(shop: Shop) -> State:
    with shop.worker():
        return shop.state()


class Waiting(NamedTuple):
    """What waits while no worker runs: the ids of tasks, and what the project says about them."""

    ids: list[str]
    said: str


@pytest.fixture(scope="module")
def waiting(shop: Shop, on: State) -> Waiting:
    ids = shop.shell(ENQUEUE_WHILE_ON).split()
    return Waiting(ids, shop.manage("waiting_tasks", status=1))


class Off(NamedTuple):
    """What `run_due_tasks` said without Celery and what was written then, before the days have passed and after."""

    due: tuple[str, list[str]]
    due_in_days: tuple[str, list[str]]
    due_again: tuple[str, list[str]]
    state: State


@pytest.fixture(scope="module")
def off(shop: Shop, waiting: Waiting) -> Off:
    """Afterwards, a task waits that was deferred without Celery."""
    sqlite(shop.project, "DELETE FROM shop_note")
    shop.switch(use_celery=False)
    due = shop.run_due_tasks()
    sqlite(shop.project, THE_DAYS_PASS)
    off = Off(due, shop.run_due_tasks(), shop.run_due_tasks(), shop.state(cron=True))
    shop.shell(ENQUEUE_WHILE_OFF)
    return off


class OnAgain(NamedTuple):
    """What bootstrap said twice, and what was written because of all that had waited."""

    bootstrapped: list[str]
    notes: list[str]
    state: State


@pytest.fixture(scope="module")
def on_again(shop: Shop, waiting: Waiting, off: Off) -> OnAgain:
    sqlite(shop.project, "DELETE FROM shop_note")
    shop.switch(use_celery=True)
    sqlite(shop.project, THE_DAYS_PASS)
    bootstrapped = [shop.manage("bootstrap_celery_tasks") for _ in range(2)]
    sqlite(shop.project, THE_DAYS_PASS_IN_THE_OUTBOX)
    shop.shell(SEND_WAITING)
    with shop.worker() as worker:
        # The messages of what has run meanwhile are still there.
        for task_id in waiting.ids:
            worker.says(rf"{task_id}\] ignored")
        worker.says(r"acme\.tasks\.add\[.*\] succeeded")
        worker.says(r"write_later\[.*\] succeeded")
        return OnAgain(bootstrapped, shop.notes(), shop.state())


# The app --------------------------------------------------------------------


def ended(value: Any = None, *errors: str) -> dict[str, Any]:
    """What is printed of a task that was tried once."""
    return {"attempts": 1, "errors": [*errors], "status": "FAILED" if errors else "SUCCESSFUL", "value": value}


def test_tasks_of_every_kind_do_what_django_promises_on_a_worker(on):
    same = dict.fromkeys(("plain", "in a coroutine", "deferred", "prioritised", "committed"))
    assert on.every_kind == {name: ended(name) for name in same} | {
        "failing": ended(None, "apps.shop.tasks.SoldOut"),
        "many": [number**2 for number in range(200)],
        "notes": dict.fromkeys((*same, "failing", "with context"), 1) | {"square": 200},
        "rolled back": False,
        "with context": ended([1, ["with context"], "RUNNING"]),
    }


def test_the_pages_and_the_own_tests_work_with_a_worker(on):
    assert on.page == "SUCCESSFUL: <strong>Milk</strong>"
    assert re.fullmatch(r"\d+ passed", on.own_tests)
    assert on.ran_by == ["celery@"]


def test_tasks_and_pages_and_own_tests_do_the_same_without_celery(on, off):
    assert off.state == on._replace(ran_by=["default"])


def test_tasks_and_pages_and_own_tests_do_the_same_with_celery_again(on, on_again):
    assert on_again.state == on


def test_no_byte_of_the_app_changes_and_the_edits_stay_where_they_were(shop, on_again):
    for path, content in on_again.state.files.items():
        assert content == (SHOP / path).read_bytes(), path
    for path, (above, line) in EDITS.items():
        assert (shop.project / path).read_text().count(above + line) == 1


# What waits at a switch -----------------------------------------------------


def test_before_the_switch_the_project_says_what_waits(waiting):
    assert re.search(r"^queue celery +3$", waiting.said, re.MULTILINE)
    assert re.search(r"^outgoing tasks +1  apps\.shop\.tasks\.write_later \(1\)$", waiting.said, re.MULTILINE)
    rows = "apps.shop.tasks.write (2), apps.shop.tasks.write_later (1)."
    assert f"`manage.py run_due_tasks` runs these of them: {rows}" in waiting.said


def test_what_waited_for_a_worker_runs_without_celery_when_it_is_due(off):
    written = ["queued", "queued", "in days"]
    assert off.due == ("Succeeded: 2.", written[:2])
    assert off.due_in_days == ("Succeeded: 1.", written)
    assert off.due_again == ("Succeeded: 0.", written)


def test_what_was_deferred_without_celery_is_sent_to_a_worker_once(on_again):
    first, second = on_again.bootstrapped
    assert "Sent to the workers: 1, enqueued while Celery was off." in first
    assert "Sent to the workers" not in second


def test_with_celery_again_nothing_runs_a_second_time(on_again):
    assert on_again.notes == ["while off"]
