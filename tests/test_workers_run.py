"""A worker takes a task from Redis without a gap, refuses a broker that loses tasks, and shows whether it takes any."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.dev_support import left_in, wait_until
from tests.processes import (
    Program,
    add_gevent,
    environment,
    installed,
    needed,
    postgresql_server,
    rabbitmq_server,
    redis_server,
    run,
    started,
)

pytestmark = pytest.mark.run

POOLS = ("prefork", "threads", "gevent")
PLACES = 4
TASKS = 350
TRIALS = """
import os, signal, time
from pathlib import Path
from django.db import connection
from acme.celery import app

if seconds := os.environ.get("VISIBILITY_SECONDS"):
    app.conf.broker_transport_options = app.conf.broker_transport_options | {"visibility_timeout": int(seconds)}
if prefix := os.environ.get("KEY_PREFIX"):
    app.conf.broker_transport_options = app.conf.broker_transport_options | {"global_keyprefix": prefix}

@app.task
def hold(path):
    first = not Path(path).exists()
    with open(path, "a") as file:
        file.write("run\\n")
    if first:
        time.sleep(600)

@app.task(bind=True)
def repeat(self, path):
    with open(path, "a") as file:
        file.write("run\\n")
    if not self.request.retries:
        self.retry(countdown=1)

@app.task
def tell_platform(path):
    with open(path, "a") as file:
        file.write(f"run {app.IS_WINDOWS} {hasattr(signal, 'SIGKILL')}\\n")

@app.task
def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.02)")
"""
# What a worker does, up to the moment when the answer is there and not yet read.
TAKE = """
import json, os, time, redis
from acme.celery import app
broker = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
[app.send_task("some.task", task_id=f"{priority}", priority=priority) for priority in (6, 0, 3)]
def take(connection):
    channel = connection.channel()
    app.amqp.queues["celery"](channel).consume(consumer_tag="one", callback=lambda message: None)
    connection.transport.cycle.on_poll_start()
    while not broker.hlen("unacked"):
        time.sleep(0.05)
    records = [json.loads(value) for value in broker.hvals("unacked")]
    print(json.dumps([[message["headers"]["id"], *place] for message, *place in records]))
    print(broker.zcard("unacked_index"), sum(map(broker.llen, ["celery", "celery\\x06\\x163", "celery\\x06\\x166"])))
with app.connection_for_read() as connection:
    take(connection)
    # As if this process had died now, long ago.
    [broker.zadd("unacked_index", {tag: 1}) for tag in broker.hkeys("unacked")]
    connection.default_channel.qos.restore_visible(interval=1)
    print(broker.hlen("unacked"), broker.llen("celery"))
"""
# Two tasks of different priority wait in a database that another project may use, too.
COUNT_WAITING = """
import django
from acme.celery import app
django.setup()
from apps.tasks.health import queue_lengths
app.conf.broker_transport_options = app.conf.broker_transport_options | {"global_keyprefix": "acme:"}
[app.send_task("some.task", priority=priority) for priority in (0, 9)]
print(queue_lengths()["celery"])
"""
# Sends more tasks to a queue than its worker has places, and two to one that no worker takes from.
FILL_QUEUES = f"""
import sys, django
from acme import trials
django.setup()
[trials.hold.delay(f"{{sys.argv[1]}}/trace{{number}}") for number in range({PLACES + 2})]
[trials.hold.apply_async((f"{{sys.argv[1]}}/lost{{number}}",), queue="emials") for number in range(2)]
"""
# Another program that uses the same broker.
STRANGER = """
import os
from celery import Celery
app = Celery("stranger", broker=os.environ["CELERY_BROKER_URL"])
app.conf.broker_transport_options = {"global_keyprefix": os.environ.get("KEY_PREFIX", "")}
app.send_task("some.task", queue="strange")
"""
SAY_HEALTH = """
import django
from acme import trials
django.setup()
from apps.web.health import run_checks
print(run_checks()["queues"])
"""
# A beat that looks often, and takes what it sees for lasting.
IMPATIENT_BEAT = """
import django
from acme import trials
django.setup()
from datetime import timedelta
from apps.tasks import unattended
unattended.LOOK_SECONDS, unattended.PATIENCE = 0.5, timedelta()
trials.app.start(["beat", "-l", "info"])
"""
# As on Windows: what these modules lack there is gone, and Celery, which asks for the system, gets that answer. What is
# imported first chooses by another name.
WINDOWS = """
import os, platform, select, signal, sys
import billiard.pool, billiard.process
platform.system = lambda: "Windows"
import celery.apps.worker, celery.bin.celery, celery.concurrency.solo, celery.concurrency.thread
here = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
[delattr(signal, name) for name in dir(signal) if name.startswith("SIG") and name not in here]
[delattr(os, name) for name in ("fork", "getpgid", "killpg", "mkfifo", "setsid")]
[delattr(select, name) for name in ("epoll", "poll")]
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios")))
"""
# Sends tasks to the queue of each pool, and looks at the connections of each until all have run.
COUNT_CONNECTIONS = """
import json, os, sys, django, redis
from collections import Counter
from acme.celery import app
django.setup()
from django.db import connection
number, queues = int(sys.argv[1]), sys.argv[2:]
broker, most = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"]), Counter()
def established():
    # The ports of connections that are open here: PostgreSQL knows a closed one a moment longer.
    with open("/proc/net/tcp") as table:
        return {int(line.split()[1].partition(":")[2], 16) for line in table if line.split()[3] == "01"}
def look():
    global most
    # First, so that all that is counted was open at one moment.
    still_open = established()
    with connection.cursor() as cursor:
        cursor.execute("SELECT application_name, client_port FROM pg_stat_activity WHERE client_port > 0")
        most |= Counter(name for name, port in cursor.fetchall() if port in still_open)
for _ in range(number):
    [app.send_task("acme.trials.ask", queue=queue) for queue in queues]
    look()
while sum(map(broker.llen, queues)) + broker.hlen("unacked"):
    look()
print(json.dumps({queue: most[queue] for queue in queues}))
"""


@pytest.fixture(scope="module")
def project(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with tasks for trials, and gevent for the pool of that name."""
    project, programs = installed(template_repo, tmp_path_factory.mktemp("workers"), "3.13", use_flower=False)
    add_gevent(project, programs)
    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    (project / "acme/trials.py").write_text(TRIALS)
    return project


@pytest.fixture(autouse=True)
def nothing_left(project: Path) -> Iterator[None]:
    """Whatever a test starts ends with it."""
    yield
    assert not left_in(project)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[Program, str]]:
    with redis_server(tmp_path) as server:
        yield server


def worker_command(project: Path, pool: str, queue: str = "celery") -> tuple[str | Path, ...]:
    options = ("-P", pool, "-c", str(PLACES), "-Q", queue, "-n", f"{pool}-{queue}@%h", "--include", "acme.trials")
    return (project / ".venv/bin/celery", "-A", "acme", "worker", "-l", "info", *options)


@contextmanager
def worker(project: Path, folder: Path, url: str, pool: str, queue: str = "celery", **more: str) -> Iterator[Program]:
    """Run a worker with signs of life in the folder."""
    variables = {"ALIVE_DIRECTORY": str(folder), "CELERY_BROKER_URL": url, "DEBUG": "1"} | more
    log, command = folder / f"{pool}-{queue}.log", worker_command(project, pool, queue)
    with started(project, log, *command, **variables) as program:
        program.says(r" ready\.")
        yield program


def python(project: Path, script: str, *arguments: str, url: str, **variables: str) -> str:
    program = project / ".venv/bin/python"
    return run(project, program, "-c", script, *arguments, CELERY_BROKER_URL=url, DEBUG="1", **variables)


def test_a_worker_on_gevent_refuses_to_be_beat_as_well(project):
    said = run(project, *worker_command(project, "gevent"), "--beat", status=1, DEBUG="1")
    assert "use standalone beat instead" in said


def test_what_is_taken_from_redis_is_on_record_in_the_same_step(project, redis):
    [records, counts, restored, *_] = python(project, TAKE, url=redis[1]).splitlines()
    # The most urgent one, with where it goes back to; the other two still wait.
    assert json.loads(records) == [["0", "", "celery"]]
    assert counts == "1 2"
    assert restored == "0 1"


def test_what_waits_is_counted_with_a_prefix_and_whatever_its_priority(project, redis):
    assert python(project, COUNT_WAITING, url=redis[1]).split()[-1] == "2"


def runs(trace: Path) -> int:
    return trace.read_text().count("run") if trace.exists() else 0


def send(project: Path, task: str, trace: Path, url: str, queue: str = "celery") -> None:
    """Send a task that leaves a trace."""
    script = f"from acme.celery import app; app.send_task('acme.trials.{task}', ({str(trace)!r},), queue={queue!r})"
    python(project, script, url=url)


def test_a_task_of_a_killed_gevent_worker_comes_back(project, tmp_path, redis):
    trace = tmp_path / "trace"
    with worker(project, tmp_path, redis[1], "gevent") as first:
        send(project, "hold", trace, redis[1])
        assert wait_until(lambda: runs(trace) == 1), first.text
        first.process.kill()
    with worker(project, tmp_path, redis[1], "gevent", VISIBILITY_SECONDS="1") as second:
        assert wait_until(lambda: runs(trace) > 1), second.text


def test_a_gevent_worker_with_nothing_to_do_gives_back_what_a_dead_one_held(project, tmp_path, redis):
    def ask(*words: str) -> str:
        return run(tmp_path, needed("redis-cli"), "-u", redis[1], *words).strip()

    trace = tmp_path / "trace"
    with worker(project, tmp_path, redis[1], "gevent", queue="idle", VISIBILITY_SECONDS="1"):
        with worker(project, tmp_path, redis[1], "gevent") as busy:
            send(project, "hold", trace, redis[1])
            assert wait_until(lambda: runs(trace)), busy.text
            busy.process.kill()
        assert wait_until(lambda: (ask("HLEN", "unacked"), ask("LLEN", "celery")) == ("0", "1"))


@pytest.mark.parametrize(("pool", "number"), [("solo", signal.SIGINT), ("threads", signal.SIGTERM)])
def test_a_worker_on_windows_runs_tasks_and_leaves_in_time(project, tmp_path, redis, pool, number):
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    variables = {"PYTHONPATH": str(tmp_path), "WORKER_STOP_SECONDS": "1"}
    with worker(project, tmp_path, redis[1], pool, **variables) as program:
        send(project, "tell_platform", tmp_path / "platform", redis[1])
        assert wait_until(lambda: runs(tmp_path / "platform")), program.text
        assert (tmp_path / "platform").read_text() == "run True False\n"
        send(project, "hold", tmp_path / "trace", redis[1])
        assert wait_until(lambda: runs(tmp_path / "trace")), program.text
        program.process.send_signal(number)
        assert wait_until(lambda: program.process.poll() is not None), program.text
    assert program.process.returncode == 0
    assert "Given back" in program.text and "Traceback" not in program.text


def prove_that_a_queue_without_a_worker_is_named(
    project: Path, folder: Path, url: str, names: str, **more: str
) -> None:
    """Health and beat name these queues, and not the one whose worker is busy, until they have workers."""

    def says() -> str:
        return python(project, SAY_HEALTH, url=url, **more)

    for queue in ("celery", "rest"):
        (folder / queue).mkdir()
    with worker(project, folder / "celery", url, "prefork", WORKER_STOP_SECONDS="1", **more) as busy:
        python(project, FILL_QUEUES, str(folder), url=url, **more)
        assert wait_until(lambda: len(list(folder.glob("trace*"))) == PLACES), busy.text
        assert says().startswith("ok, no worker takes from emials (2 waiting")
        beat = (project / ".venv/bin/python", "-c", IMPATIENT_BEAT)
        with started(project, folder / "beat.log", *beat, CELERY_BROKER_URL=url, DEBUG="1", **more) as program:
            for name in names.split(","):
                program.says(f"No worker takes from the queue {name} .* Correct the name; or add it")
            with worker(project, folder / "rest", url, "threads", names, WORKER_STOP_SECONDS="1", **more):
                program.says("The queue 'emials' is empty, or a worker takes from it")
                assert says().startswith("ok\n")
        assert "from the queue celery" not in program.text


def test_a_queue_on_redis_that_no_worker_takes_from_is_named_whoever_made_it(project, tmp_path, redis):
    python(project, STRANGER, url=redis[1], KEY_PREFIX="acme:")
    prove_that_a_queue_without_a_worker_is_named(project, tmp_path, redis[1], "emials,strange", KEY_PREFIX="acme:")


def test_a_redis_that_evicts_queues_is_refused(project, tmp_path, redis):
    set_policy = "import os, redis; redis.Redis.from_url(os.environ['CELERY_BROKER_URL']).config_set"
    python(project, f"{set_policy}('maxmemory-policy', 'allkeys-lru')", url=redis[1])
    said = run(project, *worker_command(project, "prefork"), status=1, CELERY_BROKER_URL=redis[1], DEBUG="1")
    assert "its maxmemory-policy is allkeys-lru. Set it to noeviction." in said


def probe(project: Path, folder: Path) -> bool:
    """Whether the probe of a container takes the worker for alive."""
    command = [project / ".venv/bin/python", "-m", "apps.tasks.alive", "worker"]
    return subprocess.run(command, cwd=project, env=environment(ALIVE_DIRECTORY=str(folder))).returncode == 0


def goes_silent(project: Path, folder: Path) -> bool:
    """Whether the worker of this folder gives no sign for two looks, after all it has given is made old."""
    [file] = folder.glob("alive-*")
    os.utime(file, (0, 0))
    time.sleep(11)
    return not probe(project, folder)


def prove_that_a_hang_is_noticed(project: Path, folder: Path, broker: int, url: str, pools: Sequence[str]) -> None:
    """Stop the process of the broker and let it go on; the probe of a worker of each pool tells one from the other."""
    folders = [folder / pool for pool in pools]
    with ExitStack() as stack:
        for pool, own in zip(pools, folders, strict=True):
            own.mkdir()
            stack.enter_context(worker(project, own, url, pool))
        for own in folders:
            assert wait_until(lambda own=own: probe(project, own))
        os.kill(broker, signal.SIGSTOP)
        try:
            for own in folders:
                assert wait_until(lambda own=own: goes_silent(project, own))
        finally:
            os.kill(broker, signal.SIGCONT)
        for own in folders:
            assert wait_until(lambda own=own: probe(project, own))


def test_the_probe_notices_when_redis_hangs(project, tmp_path, redis):
    prove_that_a_hang_is_noticed(project, tmp_path, redis[0].process.pid, redis[1], POOLS)


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as (_, url):
        yield url


def test_a_retry_stays_in_the_queue_of_its_task(project, tmp_path, rabbitmq):
    trace = tmp_path / "trace"
    with worker(project, tmp_path, rabbitmq, "prefork", queue="slow") as program:
        send(project, "repeat", trace, rabbitmq, queue="slow")
        assert wait_until(lambda: runs(trace) == 2), program.text


def test_a_queue_on_rabbitmq_that_no_worker_takes_from_is_named(project, tmp_path, rabbitmq):
    prove_that_a_queue_without_a_worker_is_named(project, tmp_path, rabbitmq, "emials")


def test_the_probe_notices_when_rabbitmq_hangs(project, tmp_path, rabbitmq):
    [server] = [each for each in psutil.process_iter(["name"]) if listens(each, urlsplit(rabbitmq).port)]
    prove_that_a_hang_is_noticed(project, tmp_path, server.pid, rabbitmq, ("prefork", "gevent"))


def listens(process: psutil.Process, port: int | None) -> bool:
    """Whether the process takes connections at the port; RabbitMQ's own is a child of the script that starts it."""
    with suppress(psutil.Error):
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in process.net_connections())
    return False


def test_workers_hold_no_more_database_connections_than_places(project, tmp_path, redis):
    with postgresql_server() as database, ExitStack() as stack:
        run(project, project / ".venv/bin/python", "manage.py", "migrate", DATABASE_URL=database, DEBUG="1")
        for pool in POOLS:
            (tmp_path / pool).mkdir()
            named = f"{database}?application_name={pool}"
            stack.enter_context(worker(project, tmp_path / pool, redis[1], pool, queue=pool, DATABASE_URL=named))
        most = python(project, COUNT_CONNECTIONS, str(TASKS), *POOLS, url=redis[1], DATABASE_URL=database)
        counts = json.loads(most.splitlines()[0])
        # One that sees no connection at all has looked in the wrong place.
        assert all(0 < counts[pool] <= PLACES + 1 for pool in POOLS), counts
