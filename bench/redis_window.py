"""What crashes of Redis, or of the worker, lose with kombu's transport and with ours.

Tasks that do nothing are sent without end, so that a worker takes messages all the time, and one of the two is killed
again and again at moments that no one chose; Redis keeps an append-only file. A task leaves a line in a file, outside
of broker and database. `uv run python -m bench redis_window` prints the table and writes redis_window.md.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tests import template
from tests.faults.brokers import Redis
from tests.processes import Program, installed, run

RESULTS = Path(__file__).with_name("redis_window.md")
SUBJECTS = ("kombu", "ours")
VICTIMS = {"server": "redis-server", "worker": "the worker"}
# A task is lost when nothing has come for so long, several times the visibility timeout.
PATIENCE_SECONDS = 30.0
MODULE = """
import os, time
from itertools import count
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from acme.celery import app

if os.environ["SUBJECT"] == "kombu":
    TRANSPORT_ALIASES["redis"] = "kombu.transport.redis:Transport"
app.conf.broker_transport_options = app.conf.broker_transport_options | {
    "visibility_timeout": 5, "unacked_restore_interval": 1, "unacked_restore_throttle": 1, "unacked_mutex_expire": 5,
}

def note(name, number):
    with open(name, "a") as file:
        file.write(f"{number}\\n")

@app.task
def leave_trace(number):
    note(os.environ["DONE"], number)

def lines(name):
    with open(name) as file:
        return len(set(file))

def send():
    for number in count():
        while True:
            try:
                leave_trace.apply_async((number,), task_id=str(number))
                break
            except OperationalError:
                time.sleep(0.05)
        note(os.environ["SENT"], number)
        while number % 50 == 49 and number - lines(os.environ["DONE"]) > 300:
            time.sleep(0.05)
"""


class Outcome(NamedTuple):
    """What became of the tasks whose sending had succeeded."""

    sent: int
    lost: int
    twice: int
    exits: int


class Scene:
    """A Redis, a worker and a sender, with their files in a folder."""

    def __init__(self, project: Path, folder: Path, subject: str) -> None:
        self.project, self.folder = project, folder
        self.redis, self.exits = Redis(folder), 0
        self.sent, self.done = folder / "sent", folder / "done"
        self.sent.touch()
        self.done.touch()
        self.variables = {
            "CELERY_BROKER_URL": self.redis.url(),
            "DEBUG": "1",
            "DONE": str(self.done),
            "SENT": str(self.sent),
            "SUBJECT": subject,
        }
        self.worker = self.start_worker()
        sender = (project / ".venv/bin/python", "-c", "from acme.window import send; send()")
        self.sender = Program(project, folder / "sender.log", *sender, **self.variables)

    def start_worker(self) -> Program:
        command = (self.project / ".venv/bin/celery", "-A", "acme.window", "worker", "-c", "2")
        return Program(self.project, self.folder / "worker.log", *command, **self.variables)

    def kill(self, victim: str) -> None:
        """Kill the victim with all that it has started, and start it again."""
        if victim == "server":
            self.redis.kill()
            self.redis.start()
        else:
            self.worker.kill()
            self.worker = self.start_worker()

    def revive(self) -> None:
        """Do what a restart policy does: start the worker again if it has ended by itself."""
        if self.worker.process.poll() is not None:
            self.exits += 1
            self.worker = self.start_worker()

    def wait_for(self, number: int) -> bool:
        """Wait until so many more tasks are done or, with all sent, nothing more comes; return whether they are."""
        goal, seen, since = len(self.ran()) + number, -1, time.monotonic()
        while (count := len(self.ran())) < goal and self.missing():
            if count != seen:
                seen, since = count, time.monotonic()
            if time.monotonic() - since > PATIENCE_SECONDS:
                return False
            self.revive()
            time.sleep(0.05)
        return True

    def ran(self) -> list[str]:
        return self.done.read_text().split()

    def missing(self) -> set[str]:
        return set(self.sent.read_text().split()) - set(self.ran())

    def close(self) -> None:
        self.sender.kill()
        self.worker.kill()
        self.redis.close()


def measure(project: Path, folder: Path, subject: str, victim: str, restarts: int) -> Outcome:
    """Kill the victim so many times, and count what became of the tasks."""
    folder.mkdir()
    scene = Scene(project, folder, subject)
    with ExitStack() as stack:
        stack.callback(scene.close)
        for _ in range(restarts):
            scene.wait_for(20)
            time.sleep(random.uniform(0, 0.3))
            scene.kill(victim)
        scene.sender.kill()
        scene.wait_for(len(scene.missing()))
        runs = Counter(scene.ran())
        sent = len(set(scene.sent.read_text().split()))
        return Outcome(sent, len(scene.missing()), sum(count > 1 for count in runs.values()), scene.exits)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench redis_window", description=__doc__)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--transport", choices=SUBJECTS, action="append")
    parser.add_argument("--victim", choices=VICTIMS, action="append")
    options = parser.parse_args()
    lines = [
        f"| {options.restarts} kills of | transport | sent | lost | run twice | worker exits |",
        f"|{' --- |' * 6}",
    ]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        project, programs = installed(template.snapshot(work / "template"), work, "3.13", use_flower=False)
        run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
        (project / "acme/window.py").write_text(MODULE)
        for victim, subject in product(options.victim or VICTIMS, options.transport or SUBJECTS):
            outcome = measure(project, work / f"{victim}-{subject}", subject, victim, options.restarts)
            lines.append(f"| {VICTIMS[victim]} | {subject} | {' | '.join(map(str, outcome))} |")
            print(lines[-1], flush=True)
    text = "\n".join(["# The Redis window", "", "Made by `uv run python -m bench redis_window`.", "", *lines]) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
