"""Every way to fail ends, on every kind of worker, as a row that can be sent again; until then nothing is lost."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.browser import PATIENCE_SECONDS, free_port
from tests.dev_support import left_in, wait_until
from tests.processes import Program, add_gevent, installed, redis_server, run, sqlite, started

pytestmark = pytest.mark.run

TRIALS = """
import asyncio, os, signal, time
from pathlib import Path
from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

class Expected(Exception): ...

class NotForPickle(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.held = lambda: None

class WithoutText(Exception):
    def __str__(self):
        return None

@shared_task
def fail(text="no luck"):
    raise ValueError(text)

@shared_task
def fail_oddly():
    raise NotForPickle("one", "two")

@shared_task(autoretry_for=(KeyError,), max_retries=2, retry_backoff=False, default_retry_delay=0)
def fail_after_retries():
    raise KeyError("still")

@shared_task
def need(path):
    Path(path).read_text()

@shared_task
def leave():
    raise SystemExit(3)

@shared_task
def be_cancelled():
    raise asyncio.CancelledError

@shared_task
def fail_without_a_text():
    raise WithoutText

@shared_task
def want_too_much():
    raise MemoryError("too much")

@shared_task(soft_time_limit=1, time_limit=2)
def hang():
    while True:
        try:
            time.sleep(60)
        except SoftTimeLimitExceeded:
            pass

@shared_task
def kill():
    os.kill(os.getpid(), signal.SIGKILL)

@shared_task
def lose_one_process(path):
    if not Path(path).exists():
        Path(path).touch()
        kill()

@shared_task(throws=(Expected,))
def fail_as_expected():
    raise Expected

@shared_task(keep_failed=False)
def fail_for_nobody():
    raise ValueError

@shared_task
def succeed(): ...
"""
# Messages that no task can be made of.
PUBLISH_BAD_MESSAGES = """
from acme.celery import app
with app.producer_or_acquire() as producer:
    for id, task, content_type, body in [
        ("unreadable", "acme.trials.succeed", "application/json", b"{"),
        ("forbidden", "acme.trials.succeed", "application/x-python-serialize", b"\\x80\\x04N."),
        ("of-no-kind", None, "application/json", b"[]"),
    ]:
        headers = {"task": task, "id": id} if task else {}
        producer.publish(body, exchange="", routing_key="celery", headers=headers, correlation_id=id,
            content_type=content_type, content_encoding="binary")
    for number, (body, headers) in enumerate([
        (b"null", {}), (b"[]", {}), (b'{"a": 1}', {}), (b"[[1], {}]", {}), (b"[[], {}, {}]", {"task": ["a"]}),
        (b"[[], {}, {}]", {"timelimit": "x"}), (b"[[], {}, {}]", {"eta": "x"}), (b"[[], {}, {}]", {"expires": "x"}),
        (b"[[], {}, {}]", {"retries": "three"}), (b"[[], {}, {}]", {"outgoing": "zz"}),
    ]):
        headers = {"task": "acme.trials.succeed", "id": f"wrong-{number}"} | headers
        producer.publish(body, exchange="", routing_key="celery", headers=headers, content_type="application/json",
            content_encoding="utf-8")
import os, redis
redis.Redis.from_url(os.environ["CELERY_BROKER_URL"]).lpush("celery", "no JSON", "[]", '{"body": ""}')
"""
COUNT_MESSAGES = """
import os, redis
broker = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
print(broker.llen("celery") + broker.llen("celery\\x06\\x163"), broker.hlen("unacked"))
"""
# At once, and not when the visibility timeout is over.
DELIVER_AGAIN = """
from acme.celery import app
with app.connection_for_read() as connection:
    connection.default_channel.visibility_timeout = 0
    connection.default_channel.qos.restore_visible(num=100)
"""
FAILED = 'SELECT name, exception, tries FROM tasks_failedtask WHERE args LIKE ? ORDER BY "name"'


class Site(NamedTuple):
    """A project with its broker, and a folder for what happens there."""

    project: Path
    folder: Path
    variables: dict[str, str]

    def python(self, *command: str, **options: int) -> str:
        """Run the project's Python."""
        return run(self.project, self.project / ".venv/bin/python", *command, **options, **self.variables)

    def manage(self, *command: str, **options: int) -> str:
        return self.python("manage.py", *command, **options)

    def send(self, *tasks: str) -> None:
        """Send tasks of the trials, each as the arguments of `send_task`."""
        calls = "\n".join(f"app.send_task({task})" for task in tasks)
        self.python("-c", f"from acme.celery import app\n{calls}")

    def execute(self, statement: str, *parameters: object) -> list[tuple]:
        """Ask the database, or change it."""
        return sqlite(self.project, statement, *parameters)

    def failed(self, *, args: str = "%") -> dict[str, tuple[str, int]]:
        """The exception and the number of tries of each failed task, by its name."""
        return {name: (exception, tries) for name, exception, tries in self.execute(FAILED, args)}

    def messages(self) -> tuple[int, int]:
        """How many messages wait in the queue, and how many are not acknowledged."""
        waiting, unacknowledged = self.python("-c", COUNT_MESSAGES).split()
        return int(waiting), int(unacknowledged)

    @contextmanager
    def no_table(self) -> Iterator[None]:
        """Make the rows impossible to write during the block."""
        self.execute("ALTER TABLE tasks_failedtask RENAME TO elsewhere")
        try:
            yield
        finally:
            self.execute("ALTER TABLE elsewhere RENAME TO tasks_failedtask")

    @contextmanager
    def worker(self, pool: str) -> Iterator[Program]:
        """Run a worker with this pool."""
        options = ("-l", "info", "-P", pool, "-c", "4", "--include", "acme.trials")
        celery = (self.project / ".venv/bin/celery", "-A", "acme", "worker", *options)
        with started(self.project, self.folder / "worker.log", *celery, **self.variables) as worker:
            worker.says(r" ready\.")
            yield worker


@pytest.fixture(scope="module")
def project(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with tasks that fail, and gevent for the pool of that name."""
    project, programs = installed(template_repo, tmp_path_factory.mktemp("failed"), "3.13", use_flower=False)
    add_gevent(project, programs)
    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    (project / "acme/trials.py").write_text(TRIALS)
    return project


@pytest.fixture
def site(project: Path, tmp_path: Path) -> Iterator[Site]:
    """The project with a broker, and nothing that has failed yet."""
    with redis_server(tmp_path) as (_, url):
        site = Site(project, tmp_path, {"CELERY_BROKER_URL": url, "DEBUG": "1"})
        site.execute("DELETE FROM tasks_failedtask")
        yield site
    assert not left_in(project)


def trial(name: str, *args: object) -> str:
    return f"'acme.trials.{name}', {args!r}"


# Every way to fail ----------------------------------------------------------

# What they say, and how often they are started.
FAILURES = {
    "be_cancelled": ("RuntimeError: The task raised CancelledError().", 1),
    "fail": ("ValueError: no luck", 1),
    "fail_after_retries": ("KeyError: 'still'", 3),
    "fail_oddly": ("NotForPickle: one and two", 1),
    "fail_without_a_text": ("WithoutText: <its text cannot be read: TypeError>", 1),
    "leave": ("RuntimeError: The task raised SystemExit(3).", 1),
    "nowhere": ("NotRegistered: 'acme.trials.nowhere'", 1),
    "want_too_much": ("RuntimeError: The task raised MemoryError('too much').", 1),
}
HANG = {"hang": ("TimeLimitExceeded(2,)", 1)}


@pytest.mark.parametrize(
    "pool, failures",
    [
        ("prefork", FAILURES | HANG),
        pytest.param("threads", FAILURES, marks=pytest.mark.slow),
        ("gevent", FAILURES | HANG),
        pytest.param("solo", FAILURES, marks=pytest.mark.slow),
    ],
)
def test_what_fails_for_good_leaves_a_row_on(site, pool, failures):
    expected = {f"acme.trials.{name}": row for name, row in failures.items()}
    silent = ("succeed", "fail_as_expected", "fail_for_nobody")
    with site.worker(pool) as worker:
        site.send(*map(trial, [*silent, *failures]))
        assert wait_until(lambda: site.failed() == expected), (site.failed(), worker.text)
        assert wait_until(lambda: site.messages() == (0, 0)), worker.text


def test_a_task_that_kills_its_processes_is_given_up(site):
    with site.worker("prefork") as worker:
        site.send(trial("kill"), trial("succeed"))
        assert wait_until(site.failed), worker.text
        exception, tries = site.failed()["acme.trials.kill"]
        assert "started 4 times" in exception and "SIGKILL" in exception and tries == 4
        assert wait_until(lambda: site.messages() == (0, 0)), worker.text


def test_a_task_that_kills_whole_workers_is_given_up(site):
    site.send(trial("kill"))
    for _ in range(4):
        with site.worker("threads") as worker:
            assert worker.process.wait(timeout=PATIENCE_SECONDS), worker.text
        site.python("-c", DELIVER_AGAIN)
    with site.worker("threads") as worker:
        assert wait_until(site.failed), worker.text
        assert wait_until(lambda: site.messages() == (0, 0)), worker.text
    assert "each time its worker died" in site.failed()["acme.trials.kill"][0]


def test_a_task_that_has_lost_one_process_is_done(site):
    with site.worker("prefork") as worker:
        site.send(trial("lose_one_process", str(site.folder / "lost")))
        worker.says(r"lose_one_process\[.*\] succeeded")
        assert wait_until(lambda: site.messages() == (0, 0)), worker.text
    assert not site.failed()


@pytest.mark.parametrize("pool", ["prefork", "threads", pytest.param("gevent", marks=pytest.mark.slow)])
def test_messages_that_no_task_can_be_made_of_leave_a_row_and_end_no_worker(site, pool):
    with site.worker(pool) as worker:
        site.python("-c", PUBLISH_BAD_MESSAGES)
        ids = "SELECT task_id FROM tasks_failedtask ORDER BY task_id"
        assert wait_until(lambda: len(site.execute(ids)) == 16), (site.execute(ids), worker.text)
        named = {identity for (identity,) in site.execute(ids)}
        assert {"forbidden", "of-no-kind", "unreadable", *(f"wrong-{number}" for number in range(10))} < named
        assert wait_until(lambda: site.messages() == (0, 0)), worker.text
        site.send(trial("succeed"))
        worker.says(r"succeed\[.*\] succeeded")


# While the row cannot be written --------------------------------------------


def kept(worker: Program) -> int:
    """How many failed tasks a worker has tried to write down in vain; it tries again and again."""
    return len(set(re.findall(r"The row of failed task (.+?) cannot be written", worker.text)))


@pytest.mark.parametrize(
    "pool, tasks",
    [
        ("prefork", ["fail", "hang", "nowhere"]),
        pytest.param("threads", ["fail", "nowhere"], marks=pytest.mark.slow),
        pytest.param("gevent", ["fail", "hang", "nowhere"], marks=pytest.mark.slow),
    ],
)
def test_the_message_is_kept_until_the_row_is_written_on(site, pool, tasks):
    with site.worker(pool) as worker:
        with site.no_table():
            site.send(*map(trial, tasks))
            assert wait_until(lambda: kept(worker) == len(tasks)), worker.text
            assert site.messages() == (0, len(tasks)), worker.text
        assert wait_until(lambda: site.messages() == (0, 0)), worker.text
    assert site.failed() == {f"acme.trials.{name}": (FAILURES | HANG)[name] for name in tasks}


def test_the_message_goes_back_to_the_queue_if_the_worker_ends_meanwhile(site):
    with site.no_table(), site.worker("prefork") as worker:
        site.send(trial("fail"), trial("nowhere"))
        assert wait_until(lambda: kept(worker) == 2), worker.text
    assert site.messages() == (2, 0), worker.text
    with site.worker("prefork") as worker:
        assert wait_until(lambda: len(site.failed()) == 2), worker.text


# Sent again -----------------------------------------------------------------


def test_a_task_that_is_sent_again_succeeds_or_is_counted(site):
    there, nowhere = site.folder / "there", site.folder / "nowhere"
    with site.worker("prefork") as worker:
        site.send(trial("need", str(there)), trial("need", str(nowhere)))
        assert wait_until(lambda: len(site.execute("SELECT * FROM tasks_failedtask")) == 2), worker.text
        there.touch()
        assert "2 sent." in site.manage("replay_failed_tasks", "--task", "acme.trials.need")
        worker.says(r"need\[.*\] succeeded")
        assert wait_until(lambda: [tries for _, tries in site.failed().values()] == [2]), worker.text
    assert site.failed(args="%nowhere%") and not site.failed(args="%there%")


def test_a_broker_that_is_away_keeps_the_rows(site):
    with site.worker("prefork"):
        site.send(trial("fail"))
        assert wait_until(site.failed)
    away = site._replace(variables=site.variables | {"CELERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0"})
    assert "The broker does not answer" in away.manage("replay_failed_tasks", status=1)
    assert site.failed()


def test_two_people_send_each_task_once(site):
    with site.worker("prefork"):
        site.send(*map(trial, ["fail"] * 30))
        assert wait_until(lambda: site.execute("SELECT COUNT(*) FROM tasks_failedtask") == [(30,)])
    with ThreadPoolExecutor(2) as people:
        said = list(people.map(site.manage, ["replay_failed_tasks"] * 2))
    assert site.messages() == (30, 0), said
    assert not site.failed()
