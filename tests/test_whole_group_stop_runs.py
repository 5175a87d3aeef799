"""A stop that reaches all processes of a worker at once loses no task, and counts no more than any other stop.

Heroku sends SIGTERM to every process of a dyno, and systemd and runners of Procfiles do the like. The children of a
worker die of it, in the middle of their tasks.
"""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.dev_support import left_in, wait_until
from tests.processes import Program, installed, redis_server, run, sqlite

pytestmark = pytest.mark.run

PLACES = 4
TASKS = 200
# One fewer than a task is given up after, see LOST_WORKERS_PER_TASK. Each stop counts once, as any other stop does.
STOPS = 3
TRIALS = """
import time
from pathlib import Path
from acme.celery import app

def note(path, line):
    with open(path, "a") as file:
        file.write(line)

@app.task
def work(path, number):
    note(path, f"begin {number}\\n")
    time.sleep(0.1)
    note(path, f"end {number}\\n")

@app.task
def hold(path):
    note(path, "begin 0\\n")
    while not Path(path).with_name("go").exists():
        time.sleep(0.05)
    note(path, "end 0\\n")
"""
SEND = """
import sys
from acme.celery import app
task, path, *arguments = sys.argv[1:]
for number in range(int(*arguments)) if arguments else [None]:
    app.send_task(f"acme.trials.{task}", (path,) if number is None else (path, number))
"""


@pytest.fixture(scope="module")
def project(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with tasks that note when they begin and end."""
    project, programs = installed(template_repo, tmp_path_factory.mktemp("group"), "3.13", use_flower=False)
    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    (project / "acme/trials.py").write_text(TRIALS)
    return project


class Group(Program):
    """A worker at the head of a process group of its own."""

    def __init__(self, project: Path, folder: Path, url: str) -> None:
        worker = (project / ".venv/bin/celery", "-A", "acme", "worker", "-l", "info", "-c", str(PLACES))
        command = ("setsid", *worker, "--include", "acme.trials")
        variables = {"ALIVE_DIRECTORY": str(folder), "CELERY_BROKER_URL": url, "DEBUG": "1"}
        super().__init__(project, folder / "worker.log", *command, **variables)

    def stop(self) -> None:
        """Send SIGTERM to all processes at once, and wait until the worker has ended."""
        os.killpg(self.process.pid, signal.SIGTERM)
        if not wait_until(lambda: self.process.poll() is not None):
            self.kill()
            pytest.fail(f"The worker does not end:\n{self.text}")


def send(project: Path, url: str, *arguments: str | Path) -> None:
    run(project, project / ".venv/bin/python", "-c", SEND, *arguments, CELERY_BROKER_URL=url, DEBUG="1")


def noted(trace: Path, what: str) -> Counter[str]:
    """How often each task has begun, or ended."""
    lines = [line.split() for line in trace.read_text().splitlines()] if trace.exists() else []
    return Counter(number for word, number in lines if word == what)


def test_no_task_is_lost_and_only_what_ran_begins_again(project, tmp_path):
    trace = tmp_path / "trace"
    with redis_server(tmp_path) as (_, url):
        send(project, url, "work", trace, str(TASKS))
        worker = Group(project, tmp_path, url)
        assert wait_until(lambda: len(noted(trace, "end")) >= TASKS // 4), worker.text
        worker.stop()
        assert len(noted(trace, "end")) < TASKS, "the stop came after all the work"
        worker = Group(project, tmp_path, url)
        assert wait_until(lambda: len(noted(trace, "end")) == TASKS), worker.text
        worker.stop()
    assert noted(trace, "begin").total() <= TASKS + PLACES
    # A task may end and lose its process before that is acknowledged.
    assert noted(trace, "end").total() <= TASKS + PLACES
    assert not left_in(project)


def test_a_stop_counts_once_against_a_task_that_it_interrupts(project, tmp_path):
    trace = tmp_path / "trace"
    with redis_server(tmp_path) as (_, url):
        send(project, url, "hold", trace)
        for number in range(1, STOPS + 1):
            worker = Group(project, tmp_path, url)
            assert wait_until(lambda number=number: noted(trace, "begin").total() == number), worker.text
            worker.stop()
        (tmp_path / "go").touch()
        worker = Group(project, tmp_path, url)
        assert wait_until(lambda: noted(trace, "end").total()), worker.text
        worker.stop()
    assert sqlite(project, "SELECT exception FROM tasks_failedtask") == []
    assert not left_in(project)
