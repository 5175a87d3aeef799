"""A stage for faults: a project's processes, on a broker and a database of their own."""

import json
import re
import shutil
import sqlite3
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.account import Outcome, Record, Stalled
from tests.faults.brokers import Broker, Cluster, Proxy, Redis
from tests.faults.subjects import Settings, Subject
from tests.processes import Program

TASKS = 200
SLOTS = 4
# How long a machine with other things to do may take for one step.
PATIENCE_SECONDS = 60
# Longer than any recovery: where nothing happens for so long, nothing will.
QUIET_SECONDS = 30
# Ours with timeouts that a test can wait for, in the order that it prescribes.
SHORT_LIMITS = {"CELERY_TASK_TIME_LIMIT": 6, "CELERY_TASK_SOFT_TIME_LIMIT": 5}
SHORT_LEASE = {"BEAT_LEASE_SECONDS": 6}
SHORT_VISIBILITY = {"CELERY_BROKER_TRANSPORT_OPTIONS": {"visibility_timeout": 8}}


class Service:
    """A program that is started again when it has ended, as containers are."""

    def __init__(self, start: Callable[[int], Program]) -> None:
        self.start, self.starts = start, 0
        self.keep_up()

    def keep_up(self) -> None:
        if not self.starts or self.program.process.poll() is not None:
            self.starts += 1
            self.program = self.start(self.starts)

    def kill(self) -> None:
        self.program.kill()

    def stop(self, grace_seconds: float) -> bool:
        """Ask the program to end, and kill it after the grace; return whether it ended by itself."""
        self.program.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.program.process.wait(grace_seconds)
        ended = self.program.process.returncode is not None
        self.kill()
        return ended


class Stage:
    """A subject at work in a folder."""

    def __init__(self, subject: Subject, broker: Broker, pool: str, folder: Path, *changes: Settings) -> None:
        self.subject, self.broker, self.pool, self.folder = subject, broker, pool, folder
        self.record = Record(folder / "record")
        self.services: list[Service] = []
        self.proxy: Proxy | None = None
        self.fault_at = self.ready_at = time.time()
        shutil.copy(subject.database, folder / "db.sqlite3")
        self.variables = subject.variables(
            CELERY_BROKER_URL=broker.url(),
            PROBE_DATABASE=str(folder / "db.sqlite3"),
            PROBE_RECORD=str(self.record.path),
            PROBE_SETTINGS=json.dumps(changes),
            # Files of liveness and the like.
            TMPDIR=str(folder),
        )

    def close(self) -> None:
        for service in self.services:
            service.kill()
        if self.proxy:
            self.proxy.cut()

    # Starting

    def go_through_proxy(self) -> Proxy:
        """Let what is started from now on reach the broker by a way that can be cut."""
        self.proxy = Proxy(self.broker.port)
        self.variables["CELERY_BROKER_URL"] = self.broker.url(self.proxy.port)
        return self.proxy

    def celery(self, name: str, *words: str) -> Service:
        """Start a Celery program, and keep it up."""
        command = (self.subject.programs / "celery", "-A", "acme", *words)

        def start(number: int) -> Program:
            return Program(self.folder, self.folder / f"{name}-{number}.log", *command, **self.variables)

        self.services.append(Service(start))
        return self.services[-1]

    def start_worker(self, slots: int = SLOTS, *, ready: bool = True) -> Service:
        """Start a worker; wait until it is ready, unless told otherwise."""
        name = f"worker-{len(self.services)}"
        # On a shared broker two nodes of one name would hear each other.
        node = f"{name}@{own_name(self.folder)}"
        self.worker = self.celery(name, "worker", "-l", "info", "-P", self.pool, "-c", str(slots), "-n", node)
        if ready:
            self.until(lambda: " ready." in self.worker.program.text, "the worker is ready")
            self.ready_at = time.time()
        return self.worker

    def start_beat(self) -> Service:
        """Start a beat, with what the project schedules by itself sent every 2 seconds."""
        number = sum(service is not self.worker for service in self.services)
        if self.subject.hardened and not number:
            self.change({"SCHEDULED_TASKS": {"send-waiting-tasks": {"schedule": 2.0}}})
            self.python("-m", "django", "bootstrap_celery_tasks")
        return self.celery(f"beat-{number}", "beat", "-l", "info")

    def change(self, settings: Settings) -> None:
        """Change settings for what is started from now on."""
        changes = [*json.loads(self.variables["PROBE_SETTINGS"]), settings]
        self.variables["PROBE_SETTINGS"] = json.dumps(changes)

    def python(self, *words: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Run Python in the project; return what it printed, also if it had to be killed after the seconds."""
        program = self.python_program(*words)
        with suppress(subprocess.TimeoutExpired):
            program.process.wait(seconds)
        program.kill()
        return program.text

    def python_program(self, *words: str) -> Program:
        log = self.folder / f"python-{time.monotonic_ns()}.log"
        return Program(self.folder, log, self.subject.programs / "python", *words, **self.variables)

    def send(self, count: int = TASKS, **options: Any) -> None:
        """Send tasks, and return when the last one is sent or refused."""
        self.python("-m", "probe.send", json.dumps({"count": count} | options))

    @contextmanager
    def sending(self, count: int = TASKS, **options: Any) -> Iterator[None]:
        """Send tasks meanwhile."""
        sender = self.python_program("-m", "probe.send", json.dumps({"count": count} | options))
        try:
            yield
            self.until(lambda: sender.process.poll() is not None, "the sender ends")
        finally:
            sender.kill()

    # Waiting

    def until(self, is_true: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Keep the services up until something is so; raise Stalled if it does not become so in time."""
        deadline = time.monotonic() + seconds
        while not is_true():
            for service in self.services:
                service.keep_up()
            if time.monotonic() > deadline:
                raise Stalled(self.outcome(f"in vain waited for: {what}"), self.story())
            time.sleep(0.1)

    def until_done(self, count: int) -> None:
        """Wait until so many tasks are done."""
        self.until(lambda: len(self.record.count("done")) >= count, f"{count} tasks are done")

    def until_full(self) -> None:
        """Wait until a task is at work in every slot of a worker."""
        self.until(lambda: len(self.busy()) == SLOTS, "every slot is taken")

    def wait(self, seconds: float) -> None:
        """Let time pass, with the services kept up."""
        begun = time.monotonic()
        self.until(lambda: time.monotonic() - begun >= seconds, "time passes", seconds + PATIENCE_SECONDS)

    def finish(self) -> Outcome:
        """Wait until all is done and the broker holds nothing, or nothing more happens; settle accounts."""
        self.until(self._is_over, "the end", 4 * PATIENCE_SECONDS)
        return self.outcome()

    def _is_over(self) -> bool:
        lines = self.record.lines
        if " ready." not in self.worker.program.text:
            # Starting takes long on a busy machine, and is no silence.
            self.ready_at = time.time()
        silence = time.time() - max([self.fault_at, self.ready_at, *(line.moment for line in lines)])
        unfinished = self.record.count("sent").keys() - self.record.count("done").keys() - self.failed()
        # A second, because a task is acknowledged after it is done.
        return silence > QUIET_SECONDS or (silence > 1 and not unfinished and not self.broker.held())

    # Accounts

    def failed(self) -> set[int]:
        """Return the tasks that the project keeps as failed."""
        with closing(sqlite3.connect(self.folder / "db.sqlite3")) as database, suppress(sqlite3.OperationalError):
            rows = database.execute("SELECT args FROM tasks_failedtask WHERE name LIKE 'probe.%'").fetchall()
            return {int(re.search(r"\d+", arguments)[0]) for (arguments,) in rows}
        # Without such a table nothing is kept.
        return set()

    def fault(self) -> None:
        """Remember when the fault begins."""
        self.fault_at = time.time()

    def busy(self) -> list[int]:
        """Return the id of the living process of each task that is started and not done."""
        done = self.record.count("done")
        started = (int(line.detail) for line in self.record.of("started") if not done[line.identity])
        return [pid for pid in started if psutil.pid_exists(pid)]

    def outcome(self, note: str = "") -> Outcome:
        sent, done = self.record.count("sent").keys(), self.record.count("done")
        failed = self.failed() & sent
        unfinished = sent - done.keys() - failed
        stuck = unfinished & self.broker.held() if unfinished else set()
        ends = [line.moment for line in self.record.of("done")]
        return Outcome(
            sent=len(sent),
            refused=len(self.record.count("refused")),
            failed=len(failed),
            lost=len(unfinished - stuck),
            stuck=len(stuck),
            twice=sum(times > 1 for times in done.values()),
            again=sum(times > 1 for times in self.record.count("started").values()),
            seconds=None if unfinished or not ends else max(0.0, max(ends) - self.fault_at),
            note=note,
        )

    def story(self) -> str:
        """Return where things stand, and the ends of what the programs printed."""
        logs = "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))
        return f"{dict(Counter(line.what for line in self.record.lines))}\n{logs}"


def own_name(folder: Path) -> str:
    """Return a name for a queue or a node that no other run on the same broker has."""
    return f"{folder.name}-{zlib.crc32(bytes(folder)):x}"


@contextmanager
def staged(
    subject: Subject, kind: str, pool: str, folder: Path, changes: Settings, rabbitmq_port: int | None
) -> Iterator[Stage]:
    """Set a stage with a Redis or a cluster of its own, or with a queue of its own on the RabbitMQ of this port."""
    folder.mkdir(parents=True, exist_ok=True)
    redis = kind == "redis"
    broker = Broker("amqp", rabbitmq_port) if kind == "rabbitmq" else {"redis": Redis, "cluster": Cluster}[kind](folder)
    own_queue: Settings = {} if redis else {"CELERY_TASK_DEFAULT_QUEUE": own_name(folder)}
    short = SHORT_LIMITS | SHORT_VISIBILITY | SHORT_LEASE if subject.hardened else {}
    shortened = {**short, **changes}
    if not redis:
        # What is changed in there is the visibility timeout, which RabbitMQ has not.
        shortened.pop("CELERY_BROKER_TRANSPORT_OPTIONS", None)
    stage = Stage(subject, broker, pool, folder, own_queue, shortened, subject.settings)
    try:
        yield stage
    finally:
        stage.close()
        broker.close()
