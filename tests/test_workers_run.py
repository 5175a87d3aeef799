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

from tests.browser import PATIENCE_SECONDS
from tests.dev_support import left_in, wait_until
from tests.processes import (
    Program,
    add_gevent,
    environment,
    freeze,
    installed,
    needed,
    postgresql_server,
    rabbitmq_server,
    redis_server,
    run,
    sqlite,
    started,
)

pytestmark = pytest.mark.run

POOLS = ("prefork", "threads", "gevent")
PLACES = 4
TASKS = 350
TRIALS = """
import os, time
from pathlib import Path
from celery import group
from django.db import connection, transaction
from django.utils import translation
from acme.celery import app
from acme.tasks import add

if seconds := os.environ.get("VISIBILITY_SECONDS"):
    app.conf.broker_transport_options = app.conf.broker_transport_options | {"visibility_timeout": int(seconds)}

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
def once(path):
    with open(path, "a") as file:
        file.write("run\\n")

@app.task
def until_told(path):
    with open(path, "a") as file:
        file.write("run\\n")
    while not Path(path + ".end").exists():
        time.sleep(0.05)

@app.task
def ask():
    assert translation.get_language() == "en-us"
    translation.activate("de")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.02)")

@app.task(bind=True, ignore_result=False)
def split(self, x, y):
    with transaction.atomic():
        self.replace(group(add.s(x, 1), add.s(y, 2)))

@app.task(ignore_result=False, durable=True)
def total(numbers):
    return sum(numbers)
"""
# Asks for results as people do, in a coroutine for some.
ASK = """
import asyncio, json, sys, django
from acme.celery import app
django.setup()
from acme.tasks import add
from acme.trials import split, total
async def send():
    return [total.delay([1, 2]), await total.adelay([3, 4])]
results = {
    "chunks": add.chunks([(1, 2), (3, 4)], 1).delay(),
    "starmap": add.starmap([(1, 2), (3, 4)]).delay(),
    "replaced": split.delay(10, 20),
    "chained": (split.s(10, 20) | total.s() | add.s(1)).delay(),
}
results |= zip(["durable", "awaited"], asyncio.run(send()))
print(json.dumps({name: result.get(timeout=float(sys.argv[1])) for name, result in results.items()}))
"""
ANSWERS = {
    "chunks": [[3], [7]],
    "starmap": [3, 7],
    "replaced": [11, 22],
    "chained": 34,
    "durable": 3,
    "awaited": 7,
}
# What a worker does, up to the moment when the answer is there and not yet read.
TAKE = """
import json, os, time, redis
from acme.celery import app
broker = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
[app.send_task("some.task", task_id=f"{priority}", priority=priority) for priority in (6, 1, 3)]
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
# The list of messages without a priority.
QUEUE = "celery\x06\x163"
# Two tasks of different priority wait in a database that another project may use, too.
COUNT_WAITING = """
import django
from acme.celery import app
django.setup()
from apps.tasks.console.health import queue_lengths
app.conf.broker_transport_options = app.conf.broker_transport_options | {"global_keyprefix": "acme:"}
[app.send_task("some.task", priority=priority) for priority in (0, 9)]
print(queue_lengths()["celery"])
"""
# Sends tasks to the queue of each pool, and looks at the connections of each until all have run.
COUNT_CONNECTIONS = """
import json, os, sys, django, redis
from collections import Counter
from acme.celery import app
django.setup()
from django.db import connection
from apps.tasks.models import FailedTask
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
while sum(broker.llen(f"{queue}\\x06\\x163") for queue in queues) + broker.hlen("unacked"):
    look()
print(json.dumps({queue: most[queue] for queue in queues}))
print(FailedTask.objects.count())
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


def worker_command(project: Path, pool: str, queue: str = "celery", level: str = "info") -> tuple[str | Path, ...]:
    options = ("-P", pool, "-c", str(PLACES), "-Q", queue, "-n", f"{pool}-{queue}@%h", "--include", "acme.trials")
    return (project / ".venv/bin/celery", "-A", "acme", "worker", "-l", level, *options)


@contextmanager
def worker(
    project: Path, folder: Path, url: str, pool: str, queue: str = "celery", level: str = "info", **more: str
) -> Iterator[Program]:
    """Run a worker with signs of life in the folder."""
    variables = {"ALIVE_DIRECTORY": str(folder), "CELERY_BROKER_URL": url, "DEBUG": "1"} | more
    log, command = folder / f"{pool}-{queue}.log", worker_command(project, pool, queue, level)
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
    assert json.loads(records) == [["1", "", "celery"]]
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


def ask(url: str, *words: str) -> str:
    """Return what a Redis answers to a command."""
    return run(Path.cwd(), needed("redis-cli"), "-u", url, *words).strip()


def test_a_task_of_a_killed_gevent_worker_comes_back(project, tmp_path, redis):
    trace = tmp_path / "trace"
    with worker(project, tmp_path, redis[1], "gevent") as first:
        send(project, "hold", trace, redis[1])
        assert wait_until(lambda: runs(trace) == 1), first.text
        first.process.kill()
    with worker(project, tmp_path, redis[1], "gevent", VISIBILITY_SECONDS="1") as second:
        assert wait_until(lambda: runs(trace) > 1), second.text


@pytest.mark.slow
def test_a_gevent_worker_with_nothing_to_do_gives_back_what_a_dead_one_held(project, tmp_path, redis):
    trace = tmp_path / "trace"
    with worker(project, tmp_path, redis[1], "gevent", queue="idle", VISIBILITY_SECONDS="1"):
        with worker(project, tmp_path, redis[1], "gevent") as busy:
            send(project, "hold", trace, redis[1])
            assert wait_until(lambda: runs(trace)), busy.text
            busy.process.kill()
        assert wait_until(lambda: (ask(redis[1], "HLEN", "unacked"), ask(redis[1], "LLEN", QUEUE)) == ("0", "1"))


def test_what_is_put_together_of_tasks_or_sent_by_a_coroutine_has_a_result(project, tmp_path, redis):
    with worker(project, tmp_path, redis[1], "prefork") as program:
        [answers, *_] = python(project, ASK, str(PATIENCE_SECONDS), url=redis[1]).splitlines()
        assert json.loads(answers) == ANSWERS, program.text
        # A row is left until its task has ended, a moment after the result is there.
        assert wait_until(lambda: not sqlite(project, "SELECT 1 FROM tasks_outgoingtask")), program.text


def test_a_redis_that_evicts_queues_is_refused(project, tmp_path, redis):
    set_policy = "import os, redis; redis.Redis.from_url(os.environ['CELERY_BROKER_URL']).config_set"
    python(project, f"{set_policy}('maxmemory-policy', 'allkeys-lru')", url=redis[1])
    said = run(project, *worker_command(project, "prefork"), status=1, CELERY_BROKER_URL=redis[1], DEBUG="1")
    assert "its maxmemory-policy is allkeys-lru. Set it to noeviction." in said


def probe(project: Path, folder: Path) -> bool:
    """Whether the probe of a container takes the worker for alive."""
    command = [project / ".venv/bin/python", "-m", "apps.tasks.worker.alive", "worker"]
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
        freeze(broker)
        try:
            for own in folders:
                assert wait_until(lambda own=own: goes_silent(project, own))
        finally:
            os.kill(broker, signal.SIGCONT)
        for own in folders:
            assert wait_until(lambda own=own: probe(project, own))


def test_the_probe_notices_when_redis_hangs(project, tmp_path, redis):
    prove_that_a_hang_is_noticed(project, tmp_path, redis[0].process.pid, redis[1], POOLS)


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_goes_on_when_its_connection_to_redis_breaks_runs_once(project, tmp_path, redis, pool):
    trace, other = tmp_path / "trace", tmp_path / "other"
    with worker(project, tmp_path, redis[1], pool) as program:
        send(project, "until_told", trace, redis[1])
        assert wait_until(lambda: runs(trace) == 1), program.text
        ask(redis[1], "CLIENT", "KILL", "TYPE", "normal")
        program.says("Connection to broker lost")
        send(project, "once", other, redis[1])
        assert wait_until(lambda: runs(other) == 1), program.text
        (tmp_path / "trace.end").touch()
        # The broker learns of its end, although the connection that brought it is gone.
        assert wait_until(lambda: ask(redis[1], "HLEN", "unacked") == "0"), program.text
        assert (runs(trace), ask(redis[1], "LLEN", QUEUE)) == (1, "0"), program.text


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as (_, url):
        yield url


def test_a_retry_stays_in_the_queue_of_its_task(project, tmp_path, rabbitmq):
    trace = tmp_path / "trace"
    with worker(project, tmp_path, rabbitmq, "prefork", queue="slow") as program:
        send(project, "repeat", trace, rabbitmq, queue="slow")
        assert wait_until(lambda: runs(trace) == 2), program.text


def test_the_probe_notices_when_rabbitmq_hangs(project, tmp_path, rabbitmq):
    prove_that_a_hang_is_noticed(project, tmp_path, rabbitmq_pid(rabbitmq), rabbitmq, ("prefork", "gevent"))


def test_a_busy_gevent_worker_keeps_its_connection_to_rabbitmq(project, tmp_path, rabbitmq):
    count, url = 1500, f"{rabbitmq}?read_timeout=1"
    script = (
        f"from acme.celery import app; [app.send_task('acme.tasks.add', (1, 2), queue='busy') for _ in range({count})]"
    )
    python(project, script, url=rabbitmq)
    # Busy for longer than it waits for the confirmation of a heartbeat.
    with worker(project, tmp_path, url, "gevent", queue="busy") as program:
        assert wait_until(lambda: program.text.count(" succeeded in ") == count), program.text[-5000:]
        assert "Connection to broker lost" not in program.text


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_task_that_a_worker_has_just_taken_when_it_is_stopped_runs_once(project, tmp_path, broker, request):
    given = request.getfixturevalue(broker)
    url = given if broker == "rabbitmq" else given[1]
    trace, last = tmp_path / "trace", tmp_path / "last"
    with worker(project, tmp_path, url, "prefork", level="debug") as first:
        children = [child.pid for child in psutil.Process(first.process.pid).children()]
        for child in children:
            freeze(child)
        try:
            send(project, "once", trace, url)
            # The message is on its way to a process of the pool, and none can tell that it has begun the task.
            first.says(r"TaskPool: Apply .*once")
            first.process.terminate()
            first.says("Stopping Pool")
        finally:
            for child in children:
                os.kill(child, signal.SIGCONT)
        assert wait_until(lambda: first.process.poll() == 0), first.text
    again = tmp_path / "again"
    again.mkdir()
    with worker(project, again, url, "prefork") as second:
        send(project, "once", last, url)
        second.says(r"once\[\S+\] succeeded")
        assert wait_until(lambda: runs(last) == 1), second.text
    assert runs(trace) == 1, first.text


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize(
    "pool", ["threads", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("prefork", "gevent"))]
)
def test_a_task_whose_worker_is_stopped_is_not_held_to_have_killed_it(project, tmp_path, broker, pool, request):
    given = request.getfixturevalue(broker)
    url = given if broker == "rabbitmq" else given[1]
    trace, queue = tmp_path / "trace", f"stop-{pool}"
    sqlite(project, "DELETE FROM tasks_returnedtask")
    send(project, "until_told", trace, url, queue)
    # RabbitMQ delivers at once what a killed worker held. Redis takes its time, and another test does not wait for it.
    ends = ["stop", "stop", "kill", "end"] if broker == "rabbitmq" else ["stop", "stop", "end"]
    for number, end in enumerate(ends, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        with worker(project, folder, url, pool, queue, WORKER_STOP_SECONDS="1") as program:
            assert wait_until(lambda number=number: runs(trace) == number), program.text
            if end == "end":
                (tmp_path / "trace.end").touch()
                program.says(r"until_told\[\S+\] succeeded")
            elif end == "kill":
                program.kill()
            else:
                program.process.terminate()
                assert wait_until(lambda program=program: program.process.poll() is not None), program.text
    counted = [times for (times,) in sqlite(project, "SELECT times FROM tasks_returnedtask WHERE times > 0")]
    assert counted == ([1] if "kill" in ends else [])


def prove_that_it_ends_though_the_broker_hangs(
    project: Path, folder: Path, broker: int, url: str, pools: Sequence[str]
) -> None:
    """Ask a worker of each pool to stop while the broker answers nothing; it has nothing to do, so it ends."""
    with ExitStack() as stack:
        programs = []
        for pool in pools:
            (folder / pool).mkdir()
            # The time for running tasks is longer than the patience of a test.
            own = worker(project, folder / pool, url, pool, WORKER_STOP_SECONDS="3600")
            programs.append(stack.enter_context(own))
        freeze(broker)
        try:
            for program in programs:
                program.process.terminate()
            for program in programs:
                assert wait_until(lambda program=program: program.process.poll() is not None), program.text
        finally:
            os.kill(broker, signal.SIGCONT)


def test_a_worker_without_tasks_ends_while_redis_hangs(project, tmp_path, redis):
    prove_that_it_ends_though_the_broker_hangs(project, tmp_path, redis[0].process.pid, redis[1], POOLS)


@pytest.mark.slow
def test_a_worker_without_tasks_ends_while_rabbitmq_hangs(project, tmp_path, rabbitmq):
    prove_that_it_ends_though_the_broker_hangs(project, tmp_path, rabbitmq_pid(rabbitmq), rabbitmq, POOLS)


def rabbitmq_pid(url: str) -> int:
    [server] = [each for each in psutil.process_iter(["name"]) if listens(each, urlsplit(url).port)]
    return server.pid


def listens(process: psutil.Process, port: int | None) -> bool:
    """Whether the process takes connections at the port; RabbitMQ's own is a child of the script that starts it."""
    with suppress(psutil.Error):
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in process.net_connections())
    return False


def test_workers_hold_no_more_database_connections_than_places_and_keep_no_language(project, tmp_path, redis):
    with postgresql_server() as database, ExitStack() as stack:
        run(project, project / ".venv/bin/python", "manage.py", "migrate", DATABASE_URL=database, DEBUG="1")
        for pool in POOLS:
            (tmp_path / pool).mkdir()
            named = f"{database}?application_name={pool}"
            stack.enter_context(worker(project, tmp_path / pool, redis[1], pool, queue=pool, DATABASE_URL=named))
        most = python(project, COUNT_CONNECTIONS, str(TASKS), *POOLS, url=redis[1], DATABASE_URL=database)
        counts, failed = map(json.loads, most.splitlines()[:2])
        assert not failed
        # One that sees no connection at all has looked in the wrong place.
        assert all(0 < counts[pool] <= PLACES + 1 for pool in POOLS), counts
