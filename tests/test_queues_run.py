"""Messages that no worker takes are named on both brokers, though their sender has ended and nobody else knows them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dev_support import left_in, wait_until
from tests.processes import Program, installed, rabbitmq_server, redis_server, run, started

pytestmark = pytest.mark.run

PLACES = 2
SETTINGS = """
from kombu import Queue
CELERY_TASK_QUEUES = [Queue("celery"), Queue("reports")]
"""
TRIALS = """
import time
from pathlib import Path
from celery import shared_task

@shared_task
def hold(folder):
    Path(folder, "held").open("a").write("x")
    while not Path(folder, "free").exists():
        time.sleep(0.1)

@shared_task
def leave(folder):
    Path(folder, "left").open("a").write("x")
"""
# Some tasks that no worker takes, and more than the other worker has places. No queue gets those of another one.
SEND = f"""
import sys, django
import acme.trials
django.setup()
[acme.trials.leave.apply_async((sys.argv[1],), queue=queue) for queue in ("emials", "emials", "reports")]
[acme.trials.hold.delay(sys.argv[1]) for _ in range({PLACES + 2})]
"""
# Their time has come before the first worker starts.
SEND_LATER = """
import sys, time, django
import acme.trials
django.setup()
[acme.trials.leave.apply_async((sys.argv[1],), queue=queue, countdown=2) for queue in ("celery", "reports", "emials")]
time.sleep(4)
"""
ASK_HEALTH = """
import acme.celery, django
django.setup()
from django.test import Client
response = Client(SERVER_NAME="localhost").get("/health/")
print(response.json()["queues"])
"""
# A beat that looks at every round.
BEAT = """
import acme.celery, django
django.setup()
from apps.tasks.sending import unattended
unattended.LOOK_SECONDS = 0.1
acme.celery.app.start(["beat", "-l", "info"])
"""


@pytest.fixture(scope="module")
def project(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a second queue, and tasks for trials."""
    project, programs = installed(template_repo, tmp_path_factory.mktemp("queues"), "3.13", use_flower=False)
    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    (project / "acme/trials.py").write_text(TRIALS)
    with (project / "acme/settings.py").open("a") as settings:
        settings.write(SETTINGS)
    return project


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def broker(request: pytest.FixtureRequest, tmp_path: Path, project: Path) -> Iterator[str]:
    """The URL of a broker; what uses it ends before it does."""
    server = {"redis": redis_server, "rabbitmq": rabbitmq_server}[request.param]
    with server(tmp_path) as (_, url):
        yield url
        assert not left_in(project)


@contextmanager
def worker(project: Path, folder: Path, url: str, pool: str, queues: str) -> Iterator[Program]:
    options = ("-P", pool, "-c", str(PLACES), "-Q", queues, "-n", f"{pool}@%h", "--include", "acme.trials")
    command = (project / ".venv/bin/celery", "-A", "acme", "worker", "-l", "info", *options)
    variables = {"ALIVE_DIRECTORY": str(folder), "CELERY_BROKER_URL": url, "DEBUG": "1", "WORKER_STOP_SECONDS": "5"}
    with started(project, folder / f"{pool}.log", *command, **variables) as program:
        program.says(r" ready\.")
        yield program


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_countdown_waits_for_a_worker_that_has_never_run(project, tmp_path, broker):
    command = (project / ".venv/bin/python", "-c", SEND_LATER, str(tmp_path))
    run(project, *command, CELERY_BROKER_URL=broker, DEBUG="1")
    with worker(project, tmp_path, broker, "threads", "celery,reports,emials") as program:
        assert wait_until(lambda: size(tmp_path / "left") == 3), program.text


def test_a_queue_that_no_worker_takes_from_is_named_until_one_does(project, tmp_path, broker):
    def python(script: str, *arguments: str) -> str:
        command = (project / ".venv/bin/python", "-c", script, *arguments)
        return run(project, *command, CELERY_BROKER_URL=broker, DEBUG="1")

    with worker(project, tmp_path, broker, "prefork", "celery") as busy:
        assert "A task goes to the queue emials, which" in python(SEND, str(tmp_path))
        assert wait_until(lambda: size(tmp_path / "held") == PLACES), busy.text
        named = "no worker takes from emials (2 waiting), reports (1 waiting)"
        assert wait_until(lambda: named in python(ASK_HEALTH))
        beat = (project / ".venv/bin/python", "-c", BEAT)
        variables = {"ALIVE_DIRECTORY": str(tmp_path), "CELERY_BROKER_URL": broker, "DEBUG": "1"}
        with started(project, tmp_path / "beat.log", *beat, **variables) as program:
            program.says(r"No worker takes from the queue emials \(2 waiting\)\. Correct the name; or add Queue")
            program.says(r"No worker takes from the queue reports \(1 waiting\)\. Start a worker .* -Q reports")
            with worker(project, tmp_path, broker, "threads", "emials,reports") as late:
                program.says("The queue emials is empty, or a worker takes from it")
                assert wait_until(lambda: size(tmp_path / "left") == 3), late.text
                assert wait_until(lambda: "\nok\n" in "\n" + python(ASK_HEALTH))
        assert program.text.count("No worker takes from") == 2, program.text
        (tmp_path / "free").touch()
