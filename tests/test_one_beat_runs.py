"""Any number of beats run, and each task is sent once: through a deploy, a kill, a hang, and outages of what they need.

Each proof schedules tasks for one moment after another, lets something happen among them, and reads what has come to
the broker. Several proofs run side by side, because most of the time they wait.
"""

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.browser import PATIENCE_SECONDS, free_port
from tests.dev_support import left_in, wait_until
from tests.processes import (
    Program,
    environment,
    freeze,
    installed,
    needed,
    postgresql_server,
    redis_server,
    run,
    started,
)

pytestmark = pytest.mark.run

TASKS = 30
# Longer than any process stands still on a machine with other things to do.
LEASE_SECONDS = 15
# As in the admin: from now on a task each third of a second.
SCHEDULE = """
from datetime import timedelta
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask
now = timezone.now()
for place, number in enumerate(range({}, {})):
    moment = ClockedSchedule.objects.create(clocked_time=now + timedelta(seconds=place / 3))
    PeriodicTask.objects.create(name=str(number), task="acme.tasks.say_good_morning", clocked=moment, one_off=True)
"""
SETTINGS = """
import os
from acme.settings import *
BEAT_LEASE_SECONDS = float(os.environ["LEASE_SECONDS"])
# No task beside those of the proof.
CELERY_RESULT_EXPIRES = None
"""
# The same where a clock on the wall is all that the database knows of time.
LOCAL_SETTINGS = """
from acme.proof import *
USE_TZ = False
TIME_ZONE = CELERY_TIMEZONE = "America/New_York"
"""
# Moments as code without time zones has them; the third is too far for the broker, and the last one fails.
SEND_IN_LOCAL_TIME = """
from datetime import timedelta
from django.utils import timezone
from acme.celery import app
from acme.tasks import say_good_morning
now = timezone.now()
say_good_morning.apply_async(eta=now + timedelta(seconds=3), expires=now + timedelta(hours=1))
say_good_morning.apply_async(countdown=1)
say_good_morning.apply_async(eta=now + timedelta(hours=2))
app.send_task("no.such.task")
"""
LOCAL_ROWS = """
from datetime import timedelta
from django.utils import timezone
from apps.tasks.models import FailedTask, OutgoingTask
print(FailedTask.objects.filter(first_failed_at__gt=timezone.now() - timedelta(hours=1)).count())
print(OutgoingTask.objects.filter(send_at__gt=timezone.now() + timedelta(hours=1, minutes=50)).count())
"""
# Celery with a clock that is as many seconds off as a file says.
JUMPS = """
import sys, threading, time
from pathlib import Path
import time_machine
from celery.__main__ import main

clock, moved = Path(sys.argv.pop(1)), 0
machine = time_machine.travel(time.time(), tick=True).start()

def follow():
    global moved
    while True:
        wanted = int(clock.read_text() or moved)
        if wanted != moved:
            machine.shift(wanted - moved)
            moved = wanted
            print("The clock jumps", flush=True)
        time.sleep(0.2)

threading.Thread(target=follow, daemon=True).start()
main()
"""
HOLDS, STANDS_BY = "This beat holds the lease", "Standing by, "


class Scene:
    """A database, a broker, and beats that share them."""

    def __init__(self, project: Path, folder: Path, database: str, broker: str, stack: ExitStack) -> None:
        self.project, self.folder, self.broker, self.stack = project, folder, broker, stack
        self.variables = {
            "CELERY_BROKER_URL": broker,
            "DATABASE_URL": database,
            "DEBUG": "1",
            "DJANGO_SETTINGS_MODULE": "acme.proof",
            "LEASE_SECONDS": str(LEASE_SECONDS),
        }

    def manage(self, *command: str) -> str:
        return run(self.project, self.project / ".venv/bin/python", "manage.py", *command, **self.variables)

    def beat(self, name: str, *celery: str | Path) -> Program:
        """Start a beat that ends with the scene, by another Celery than usual if one is given."""
        command = (*(celery or [self.project / ".venv/bin/celery"]), "-A", "acme", "beat", "-l", "info")
        return self.stack.enter_context(started(self.project, self.folder / name, *command, **self.variables))

    def schedule(self, first: int = 0, end: int = TASKS) -> None:
        """Schedule the tasks of these numbers, the first one for now."""
        self.manage("shell", "-c", SCHEDULE.format(first, end))

    def beats(self, *celery: str | Path, tasks: int = TASKS) -> tuple[Program, Program]:
        """Start a beat that sends, and another that stands by, and schedule so many of the tasks."""
        first = self.beat("first", *celery)
        first.says(HOLDS)
        second = self.beat("second")
        second.says(STANDS_BY)
        self.schedule(end=tasks)
        return first, second

    def sent(self) -> Counter[str]:
        """How often each task has come to the broker, by name."""
        command = [needed("redis-cli"), "-u", self.broker, "--raw", "LRANGE", "celery\x06\x163", "0", "-1"]
        messages = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
        # An empty line stands for an empty queue.
        return Counter(json.loads(each)["headers"]["periodic_task_name"] for each in messages.split("\n") if each)

    def some_are_sent(self) -> None:
        """Wait until the tasks are on their way, to let something happen before the next one."""
        assert wait_until(lambda: len(self.sent()) > 5)

    def repeated(self) -> int:
        """Wait until each task has come; return how many came a second time."""
        assert wait_until(lambda: len(self.sent()) == TASKS), sorted(self.sent())
        return self.sent().total() - TASKS


# What happens ----------------------------------------------------------------
# The task that a beat sends in the moment of its end may come twice: it must not get lost, and nobody can know.


def deploy(scene: Scene) -> None:
    # So long that nobody takes over by waiting.
    scene.variables["LEASE_SECONDS"] = "1000"
    old, new = scene.beats()
    scene.some_are_sent()
    old.process.terminate()
    new.says(HOLDS)
    assert old.process.wait(timeout=PATIENCE_SECONDS) == 0
    assert scene.repeated() == 0


def kill(scene: Scene) -> None:
    holder, standby = scene.beats()
    scene.some_are_sent()
    holder.process.kill()
    standby.says(HOLDS)
    assert scene.repeated() <= 1


def hang(scene: Scene) -> None:
    holder, standby = scene.beats()
    scene.some_are_sent()
    freeze(holder.process.pid)
    try:
        standby.says(HOLDS)
    finally:
        holder.process.send_signal(signal.SIGCONT)
    holder.says(STANDS_BY)
    assert scene.repeated() <= 1


def jump_of_the_clock(scene: Scene) -> None:
    clock = scene.folder / "clock"
    clock.write_text("0")
    holder, standby = scene.beats(scene.project / ".venv/bin/python", "-m", "acme.jumps", clock, tasks=TASKS // 2)
    scene.some_are_sent()
    # An hour back, for longer than the lease, and then ahead again.
    clock.write_text("-3600")
    holder.says("The clock jumps")
    scene.schedule(first=TASKS // 2)
    time.sleep(LEASE_SECONDS + 2)
    assert len(scene.sent()) <= TASKS // 2
    clock.write_text("0")
    # A clock that was set is noticed within a minute.
    wait_until(lambda: len(scene.sent()) == TASKS)
    assert scene.repeated() == 0
    assert "Sending due task" not in standby.text


def outage_of_the_broker(scene: Scene) -> None:
    holder, standby = scene.beats()
    holder.says("The broker does not answer")
    # For longer than the lease.
    time.sleep(LEASE_SECONDS + 2)
    port = scene.broker.partition("127.0.0.1:")[2].partition("/")[0]
    command = (needed("redis-server"), "--port", port, "--bind", "127.0.0.1", "--save", "")
    scene.stack.enter_context(started(scene.folder, scene.folder / "redis.log", *command))
    holder.says("The broker answers again")
    assert scene.repeated() == 0
    assert "Sending due task" not in standby.text


def outage_of_the_database(scene: Scene) -> None:
    beats = scene.beats(tasks=TASKS // 2)
    scene.some_are_sent()
    for beat in beats:
        freeze(beat.process.pid)
    try:
        # They see these tasks only when the database is back.
        scene.schedule(first=TASKS // 2)
        sql(scene, "ALTER DATABASE proof ALLOW_CONNECTIONS false")
        sql(scene, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'proof'")
    finally:
        for beat in beats:
            beat.process.send_signal(signal.SIGCONT)
    for beat in beats:
        beat.says("The database does not answer")
    before = scene.sent()
    sql(scene, "ALTER DATABASE proof ALLOW_CONNECTIONS true")
    for beat in beats:
        beat.says("The database answers again")
    assert before.total() < TASKS
    assert scene.repeated() <= 1


def local_time(scene: Scene) -> None:
    """Tasks come at their moments although these have no time zone, by beat, by the broker and by the database."""
    scene.variables["DJANGO_SETTINGS_MODULE"] = "acme.local"
    scene.beat("beat").says(HOLDS)
    worker = (scene.project / ".venv/bin/celery", "-A", "acme", "worker", "-c", "1", "-l", "info")
    worker = scene.stack.enter_context(started(scene.project, scene.folder / "worker", *worker, **scene.variables))
    worker.says("ready")
    scene.schedule(end=3)
    scene.manage("shell", "-c", SEND_IN_LOCAL_TIME)
    # Three of the schedule and two of those that were sent.
    worker.says(r"(?s)(succeeded.*){5}")
    assert wait_until(lambda: scene.manage("shell", "-v", "0", "-c", LOCAL_ROWS).split()[-2:] == ["1", "1"])


def sql(scene: Scene, statement: str) -> None:
    """Run a statement in another database of the scene's server."""
    server = scene.variables["DATABASE_URL"].rpartition("/")[0]
    run(scene.folder, needed("psql"), f"{server}/postgres".replace("postgres:", "postgresql:", 1), "-c", statement)


# Stages ----------------------------------------------------------------------


@contextmanager
def with_redis(project: Path, folder: Path) -> Iterator[Scene]:
    with redis_server(folder) as (_, broker), with_the_broker_away(project, folder) as scene:
        scene.broker = scene.variables["CELERY_BROKER_URL"] = broker
        yield scene


@contextmanager
def with_the_broker_away(project: Path, folder: Path) -> Iterator[Scene]:
    database = shutil.copy(project / "db.sqlite3", folder)
    with ExitStack() as stack:
        yield Scene(project, folder, f"sqlite:///{database}", f"redis://127.0.0.1:{free_port()}/0", stack)


@contextmanager
def with_postgresql(project: Path, folder: Path) -> Iterator[Scene]:
    with redis_server(folder) as (_, broker), postgresql_server() as server, ExitStack() as stack:
        scene = Scene(project, folder, f"{server.rpartition('/')[0]}/proof", broker, stack)
        sql(scene, "CREATE DATABASE proof")
        scene.manage("migrate")
        yield scene


PROOFS = {
    deploy: with_redis,
    kill: with_redis,
    hang: with_redis,
    jump_of_the_clock: with_redis,
    outage_of_the_broker: with_the_broker_away,
    outage_of_the_database: with_postgresql,
    local_time: with_postgresql,
}


def perform(happens: Callable[[Scene], None], project: Path, folder: Path) -> None:
    folder.mkdir()
    with PROOFS[happens](project, folder) as scene:
        happens(scene)


@pytest.fixture(scope="module")
def proofs(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Callable, Future[None]]]:
    """The proofs, under way."""
    folder = tmp_path_factory.mktemp("beats").resolve()
    project, programs = installed(template_repo, folder, "3.13")
    run(project, needed("uv"), "pip", "install", "--python", programs / "python", "time-machine")
    (project / "acme/jumps.py").write_text(JUMPS)
    (project / "acme/proof.py").write_text(SETTINGS)
    (project / "acme/local.py").write_text(LOCAL_SETTINGS)
    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    with ThreadPoolExecutor(3) as pool:
        yield {each: pool.submit(perform, each, project, folder / each.__name__) for each in PROOFS}
    assert not left_in(folder)


@pytest.mark.parametrize("happens", PROOFS, ids=lambda function: function.__name__)
def test_each_task_is_sent_through_a(happens, proofs):
    proofs[happens].result()
