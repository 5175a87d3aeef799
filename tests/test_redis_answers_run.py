"""Workers outlast a Redis that answers, but takes nothing; and they say which rights they lack, and need few."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.browser import free_port
from tests.dev_support import left_in, wait_until
from tests.processes import Program, add_gevent, installed, needed, run, started, wait_for_broker
from tests.template import ROOT

pytestmark = pytest.mark.run

POOLS = ("prefork", "gevent")
TRIALS = """
from acme.celery import app

@app.task
def note(path):
    with open(path, "a") as file:
        file.write("run\\n")
"""
KILL = "CLIENT KILL TYPE normal"
# A remote command as `celery inspect ping` sends it to all workers. Nobody waits for the answers.
PING = {"method": "ping", "ticket": "1", "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "nobody"}}
COMMAND = {
    "body": json.dumps(PING),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {},
    "properties": {"delivery_tag": "1", "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""}},
}
ASK = f"PUBLISH /0.celery.pidbox '{json.dumps(COMMAND)}'"
# The connections over which workers hear commands stay, so they have something to answer, and cannot. A worker without
# an event loop tries three answers for so long that a heartbeat is due meanwhile, which it cannot send either.
UNANSWERABLE = ["MULTI", "CONFIG SET maxclients 1", ASK, ASK, ASK, KILL, "EXEC"]
# How Redis comes to say so, by what a worker says then. One without memory lets it in.
MOODS = {
    "Cannot connect to .*read only replica": ["REPLICAOF 127.0.0.1 1"],
    "Cannot connect to .*Link with MASTER is down": ["CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"],
    "Cannot connect to .*NOREPLICAS": ["CONFIG SET min-replicas-to-write 1"],
    "Cannot connect to .*max number of clients reached": UNANSWERABLE,
    "Cannot connect to .*is loading": ["DEBUG POPULATE 5000 data 2000", "CONFIG SET key-load-delay 10000"],
    "Connected to ": ["CONFIG SET maxmemory 1", KILL],
}
# A failover and a full memory happen to everybody.
USUAL_MOODS = ("Cannot connect to .*read only replica", "Connected to ")
USUAL = [
    "CONFIG SET key-load-delay 0",
    "REPLICAOF NO ONE",
    "CONFIG SET replica-serve-stale-data yes",
    "CONFIG SET min-replicas-to-write 0",
    "CONFIG SET maxmemory 0",
    "CONFIG SET maxclients 1000",
]


class Redis:
    """A Redis of these tests' own, and a connection to it that is there before it refuses others."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.port = folder, str(free_port())
        options = ("--bind", "127.0.0.1", "--save", "", "--enable-debug-command", "local", "--port", self.port)
        # It looks up from its data now and then.
        options += ("--loading-process-events-interval-bytes", "1024")
        server = stack.enter_context(started(folder, folder / "redis.log", needed("redis-server"), *options))
        wait_for_broker(server, "redis", int(self.port))
        self.command = (needed("redis-cli"), "-p", self.port)
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True, "bufsize": 1}
        self.client = stack.enter_context(subprocess.Popen(self.command, **pipe))

    def url(self, user: str = "") -> str:
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def tell(self, *commands: str) -> None:
        self.client.stdin.write("".join(f"{command}\n" for command in commands))

    def ask(self, *words: str) -> str:
        return run(self.folder, *self.command, *words).strip()


@pytest.fixture(scope="module")
def project(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    project, programs = installed(template_repo, tmp_path_factory.mktemp("project"), "3.13", use_flower=False)
    add_gevent(project, programs)
    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    (project / "acme/trials.py").write_text(TRIALS)
    yield project
    assert not left_in(project)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with ExitStack() as stack:
        yield Redis(tmp_path_factory.mktemp("redis"), stack)


def worker(project: Path, log: Path, url: str, pool: str = "prefork", queue: str = "celery") -> Program:
    options = ("-P", pool, "-c", "2", "-Q", queue, "-n", f"{queue}@%h", "--include", "acme.trials")
    command = (project / ".venv/bin/celery", "-A", "acme", "worker", "-l", "info", *options)
    return started(project, log, *command, CELERY_BROKER_URL=url, DEBUG="1")


def send(project: Path, url: str, trace: Path, queue: str = "celery") -> None:
    script = f"from acme.celery import app; app.send_task('acme.trials.note', ({str(trace)!r},), queue={queue!r})"
    run(project, project / ".venv/bin/python", "-c", script, CELERY_BROKER_URL=url, DEBUG="1")


# What it does not take now --------------------------------------------------


@pytest.fixture(scope="module")
def workers(project: Path, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Program]]:
    """A worker with an event loop and one without, each with a queue of the name of its pool."""
    folder = tmp_path_factory.mktemp("workers")
    with ExitStack() as stack:
        programs = [
            stack.enter_context(worker(project, folder / pool, redis.url(), pool, queue=pool)) for pool in POOLS
        ]
        for program in programs:
            program.says(r" ready\.")
        yield programs


@pytest.mark.parametrize(
    "words", [word if word in USUAL_MOODS else pytest.param(word, marks=pytest.mark.slow) for word in MOODS]
)
def test_a_worker_waits_for_a_redis_that_takes_nothing_and_goes_on(project, redis, workers, tmp_path, words):
    # Each hears remote commands and the events of the other, so it has come through the mood before.
    assert wait_until(lambda: len(redis.ask("CLIENT", "LIST", "TYPE", "pubsub").splitlines()) >= 2 * len(workers))
    before = [len(program.text) for program in workers]
    redis.tell(*MOODS[words])
    try:
        with ExitStack() as stack:
            if "loading" in words:
                loading = (*redis.command, "DEBUG", "RELOAD")
                stack.enter_context(started(tmp_path, tmp_path / "loading.log", *loading))
                assert wait_until(lambda: "LOADING" in redis.ask("PING"))
                redis.tell(KILL)
            for program, start in zip(workers, before, strict=True):
                assert wait_until(lambda p=program, s=start: re.search(words, p.text[s:])), program.text[start:]
            redis.tell(*USUAL)
            assert wait_until(lambda: redis.ask("SET", "usual", "1") == "OK")
    finally:
        redis.tell(*USUAL)
    for pool, program, start in zip(POOLS, workers, before, strict=True):
        trace = tmp_path / pool
        send(project, redis.url(), trace, queue=pool)
        assert wait_until(trace.exists), program.text[start:]
        assert "Traceback" not in program.text[start:], program.text[start:]


# What its user may do -------------------------------------------------------


def test_the_rights_that_the_documentation_names_are_enough(project, redis, tmp_path):
    [words] = re.findall(r"^ACL SETUSER (acme .+)$", (ROOT / "docs/how-to/broker.md").read_text(), re.MULTILINE)
    redis.ask("ACL", "SETUSER", *words.split())
    redis.ask("ACL", "LOG", "RESET")
    url, trace = redis.url(f"acme:{re.search('>([^ ]+)', words)[1]}@"), tmp_path / "trace"
    variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
    with worker(project, tmp_path / "worker", url) as program:
        program.says(r" ready\.")
        send(project, url, trace)
        assert wait_until(trace.exists), program.text
        said = run(project, project / ".venv/bin/celery", "-A", "acme", "inspect", "ping", **variables)
        assert "pong" in said
        run(project, project / ".venv/bin/celery", "-A", "acme", "purge", "-f", **variables)
        redis.tell(KILL)
        program.says(r"(?s)Connected to .*Connected to ")
    assert redis.ask("ACL", "LOG") == ""


@pytest.mark.parametrize(
    ("rights", "lacking"),
    [("allkeys -eval", "+eval"), ("~celery* ~*.celery.pidbox* ~unacked_* ~_kombu*", "~unacked")],
)
def test_whoever_lacks_a_right_says_in_a_sentence_which(project, redis, tmp_path, rights, lacking):
    redis.ask("ACL", "SETUSER", "poor", "reset", "on", ">secret", "allchannels", "+@all", *rights.split())
    variables = {"CELERY_BROKER_URL": redis.url("poor:secret@"), "DEBUG": "1"}
    programs, sentence = project / ".venv/bin", f"To allow it: ACL SETUSER poor {lacking}"
    commands = {
        "check": (programs / "python", "manage.py", "check", "--deploy"),
        "worker": (programs / "celery", "-A", "acme", "worker"),
    }
    for name, command in commands.items():
        said = run(project, *command, status=1 if name == "worker" else 0, **variables)
        assert sentence in said and "Traceback" not in said, said
