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

from tests.browser import PATIENCE_SECONDS
from tests.faults.account import Outcome, Record, Stalled
from tests.faults.brokers import Broker, Cluster, Proxy, Redis
from tests.faults.subjects import Settings, Subject
from tests.processes import Program

TASKS = 200
SLOTS = 4
# Longer than any recovery: where nothing happens for so long, nothing will.
QUIET_SECONDS = 60
# What has not ended by then goes round in circles.
ENDLESS_SECONDS = 300
# Above the number of any task.
ALL = 10**9
# Ours with a timeout that a test can wait for. Its time limits and its lease stay as they are, unless a fault is about
# them: on a busy machine a process may stand still for longer than a limit that is short.
SHORT_VISIBILITY = {"CELERY_BROKER_TRANSPORT_OPTIONS": {"visibility_timeout": 8}}
# A sender with time: by itself ours gives up a broker after two seconds, and may not know then that it has the task.
PATIENT_SENDER = {
    "CELERY_BROKER_CONNECTION_TIMEOUT": PATIENCE_SECONDS,
    "CELERY_BROKER_TRANSPORT_OPTIONS": dict.fromkeys(
        ("read_timeout", "write_timeout", "socket_timeout", "socket_connect_timeout"), PATIENCE_SECONDS
    ),
}
# Of these options, those of RabbitMQ; the others are those of Redis.
RABBITMQ_OPTIONS = {"read_timeout", "write_timeout"}


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
            self.proxy.close()

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

    def send(self, count: int = TASKS, *, patient: bool = True, **options: Any) -> None:
        """Send tasks, and return when the last one is sent or refused; ours is patient unless told otherwise."""
        before = self.variables["PROBE_SETTINGS"]
        if patient and self.subject.hardened:
            self.change(for_broker(PATIENT_SENDER, self.broker.scheme))
        self.python("-m", "probe.send", json.dumps({"count": count} | options))
        self.variables["PROBE_SETTINGS"] = before

    @contextmanager
    def sending(self, count: int = TASKS, **options: Any) -> Iterator[None]:
        """Send tasks meanwhile."""
        sender = self.python_program("-m", "probe.send", json.dumps({"count": count} | options))
        try:
            yield
            self.until(lambda: sender.process.poll() is not None, "the sender ends")
        finally:
            sender.kill()

    # Holding back

    def hold(self, first: int = 0, end: int = ALL, what: str = "work") -> None:
        """Let no task with a number from `first` to below `end` come to its end, or be sent, before it is released.

        So a fault finds the tasks as it wants them, however fast or slow the machine is.
        """
        new = self.folder / "held"
        new.write_text(f"{first} {end}")
        # At once: whoever reads it sees the old numbers or the new ones.
        new.replace(self._held(what))

    def release(self, what: str = "work") -> None:
        """Let go what is held back."""
        self._held(what).unlink()

    def release_all(self) -> None:
        """Let go what is held back, of the tasks and of their sender, unless that has happened."""
        for what in ("work", "send"):
            self._held(what).unlink(missing_ok=True)

    def _held(self, what: str) -> Path:
        return self.record.path.with_name(f"{self.record.path.name}.{what}")

    # Waiting

    def until(self, is_true: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Keep the services up until something is so; raise Stalled if it does not become so in time."""
        deadline = time.monotonic() + seconds
        while not is_true():
            for service in self.services:
                service.keep_up()
            if time.monotonic() > deadline:
                raise Stalled(self.outcome(f"waited in vain for: {what}"), self.story())
            time.sleep(0.1)

    def until_done(self, count: int) -> None:
        """Wait until so many tasks are done."""
        self.until(lambda: len(self.record.count("done")) >= count, f"{count} tasks are done")

    def until_full(self, first: int = 0, slots: int = SLOTS) -> None:
        """Wait until a task with a number from `first` on is at work in every slot of a worker."""
        self.until(lambda: len(self.busy(first)) == slots, f"every slot is taken by a task from {first} on")

    def wait(self, seconds: float) -> None:
        """Let time pass, with the services kept up."""
        begun = time.monotonic()
        self.until(lambda: time.monotonic() - begun >= seconds, "time passes", seconds + PATIENCE_SECONDS)

    def wait_at_most(self, seconds: float, is_true: Callable[[], object]) -> None:
        """Wait until something is so, but no longer than that."""
        deadline = time.monotonic() + seconds
        self.until(lambda: is_true() or time.monotonic() > deadline, "either", seconds + PATIENCE_SECONDS)

    def finish(self, quiet_seconds: float = QUIET_SECONDS) -> Outcome:
        """Wait until all is done and the broker holds nothing, or nothing more happens; settle accounts."""
        self.until(lambda: self._is_over(quiet_seconds), "the end", ENDLESS_SECONDS)
        return self.outcome()

    def _is_over(self, quiet_seconds: float) -> bool:
        lines = self.record.lines
        if " ready." not in self.worker.program.text:
            # Starting takes long on a busy machine, and is no silence.
            self.ready_at = time.time()
        silence = time.time() - max([self.fault_at, self.ready_at, *(line.moment for line in lines)])
        unfinished = self.record.count("sent").keys() - self.record.count("done").keys() - self.failed()
        # A second, because a task is acknowledged after it is done.
        return silence > quiet_seconds or (silence > 1 and not unfinished and not self.broker.held())

    # Accounts

    def failed(self) -> set[int]:
        """Return the tasks that the project keeps as failed."""
        rows = self.rows("SELECT args FROM tasks_failedtask WHERE name LIKE 'probe.%' AND args != ''")
        return {int(re.search(r"\d+", arguments)[0]) for (arguments,) in rows}

    def rows(self, query: str) -> list[tuple]:
        """Return the rows of a query; none without such a table, as bare Celery has none."""
        path = self.folder / "db.sqlite3"
        with closing(sqlite3.connect(path, timeout=PATIENCE_SECONDS)) as database:
            try:
                return database.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def fault(self) -> None:
        """Remember when the fault begins."""
        self.fault_at = time.time()

    def busy(self, first: int = 0) -> list[int]:
        """Return the id of the living process of each task, from a number on, that is started and not done."""
        done = self.record.count("done")
        started = [line for line in self.record.of("started") if line.identity >= first and not done[line.identity]]
        return [int(line.detail) for line in started if psutil.pid_exists(int(line.detail))]

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


def for_broker(settings: Settings, scheme: str) -> Settings:
    """Return the settings without the transport options of the other broker."""
    given = settings.get("CELERY_BROKER_TRANSPORT_OPTIONS") or {}
    options = {name: value for name, value in given.items() if (name in RABBITMQ_OPTIONS) == (scheme == "amqp")}
    return {**settings, "CELERY_BROKER_TRANSPORT_OPTIONS": options}


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
    shortened = for_broker({**(SHORT_VISIBILITY if subject.hardened else {}), **changes}, broker.scheme)
    stage = Stage(subject, broker, pool, folder, own_queue, shortened, subject.settings)
    try:
        yield stage
    finally:
        stage.close()
        broker.close()
