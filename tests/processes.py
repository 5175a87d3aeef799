"""What running a rendered project takes: Pythons, virtual environments, brokers and the project's own programs.

Everything listens on 127.0.0.1 and a free port, writes into a folder of the test, and ends with its `with` block.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import psutil
import pytest

from tests import template
from tests.browser import PATIENCE_SECONDS, Browser, free_port
from tests.dev_support import wait_until

# Servers answer a broker's first words with something; what it is does not matter.
GREETINGS = {"redis": b"PING\r\n", "amqp": b"AMQP\x00\x00\x09\x01"}
# Debian's wrapper changes to another user, which loses the environment that keeps the node to itself.
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# Every second, written as an administrator would in the admin.
EVERY_SECOND = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
PeriodicTask.objects.create(name="often", task="acme.tasks.say_good_morning", interval=every)
"""
KEPT = ("HOME", "LANG", "PATH", "TMPDIR")
TOOLS = ("PIP_", "PYENV_", "SSL_", "UV_")
# Otherwise it kills a process that stands still, or is still importing, after thirty seconds.
GUNICORN_ARGUMENTS = f"--timeout={PATIENCE_SECONDS}"
# Pip would compile every module of every package; most of them are never imported.
QUICK_PIP = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what a project would read from it, and with these variables."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(TOOLS)}
    plain = {"DJANGO_COLORS": "nocolor", "GUNICORN_CMD_ARGS": GUNICORN_ARGUMENTS, "NO_COLOR": "1", "TERM": "xterm"}
    return kept | plain | QUICK_PIP | variables


def missing(reason: str) -> NoReturn:
    """Skip the test, but fail it where everything should be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def needed(*places: str | Path) -> str:
    """Return the first of these programs that is there; without any, skip or fail."""
    found = next(filter(None, map(shutil.which, places)), None)
    return found or missing(f"{places[-1]} is not on PATH")


@cache
def interpreter(version: str) -> str:
    """Return the path of a Python of this version, as uv finds it; without one, skip or fail."""
    command = [needed("uv"), "python", "find", "--no-project", "--no-python-downloads", version]
    # Not in this repository, whose own environment uv would find first.
    done = subprocess.run(command, cwd="/", env=environment(), text=True, capture_output=True)
    return done.stdout.strip() or missing(f"There is no Python {version}: {done.stderr}")


# Projects -------------------------------------------------------------------


def run(folder: Path, *command: str | Path, status: int = 0, seconds: float = 600, **variables: str) -> str:
    """Run a command in a folder; return what it printed, and fail unless it ends with the status in time."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment(**variables), text=True, capture_output=True, timeout=seconds
    )
    assert done.returncode == status, f"{' '.join(words)} ends with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def sync(project: Path, version: str, *options: str) -> Path:
    """Install the dependencies of a project into its .venv; return the folder of its programs."""
    run(project, needed("uv"), "sync", "--python", interpreter(version), *options)
    if Bytecode.store:
        # The environment that this process has made before has been used in the meantime.
        if Bytecode.last:
            link_bytecode(Bytecode.last, Bytecode.store, keep_all=True)
        Bytecode.last = project / ".venv/lib"
        link_bytecode(Bytecode.store, Bytecode.last)
    return project / ".venv/bin"


class Bytecode:
    """Where the processes of a run of tests share what they have compiled, and where there may be more of it."""

    store: Path | None = None
    last: Path | None = None


def link_bytecode(source: Path, target: Path, keep_all: bool = False) -> None:
    """Give the compiled modules of one environment to another, because compiling Django and Celery takes seconds.

    The other one may be the store of all environments, which keeps those of every package (`keep_all`).

    uv links the same files into all environments, and Python takes compiled code only for the file that it was compiled
    from. So whatever does not fit is not used.
    """
    for folder, _, names in os.walk(source):
        place = target / os.path.relpath(folder, source)
        # A folder of a package that is not installed would be a package itself, and an empty one.
        to_share = folder.endswith("__pycache__") and (keep_all or place.parent.is_dir())
        for name in names if to_share else ():
            # It is there already, or the environment has been deleted.
            with suppress(OSError):
                place.mkdir(parents=True, exist_ok=True)
                os.link(Path(folder, name), place / name)


def take_newest(project: Path) -> None:
    """Let a project install the newest packages that it allows, instead of those that the template was tested with."""
    if (project / "uv.lock").exists():
        run(project, needed("uv"), "lock", "--upgrade")
    else:
        (project / "constraints.txt").write_text("")


def installed(template_repo: Path, folder: Path, version: str, *options: str, **answers: Any) -> tuple[Path, Path]:
    """Generate a project in the folder and install it; return its folder and that of its programs."""
    project = template.copy(template_repo, folder.resolve() / "acme", **answers)
    return project, sync(project, version, *options)


def add_gevent(project: Path, programs: Path) -> None:
    """Install gevent into the environment of a project, for the pool of that name; its version is this repository's."""
    pins = [f"{name}=={metadata.version(name)}" for name in ("gevent", "greenlet", "zope.event", "zope.interface")]
    run(project, needed("uv"), "pip", "install", "--python", programs / "python", *pins)


def load_module(path: str) -> ModuleType:
    """Import a module of the template, such as a server that a project's own tests talk to, by its path below it."""
    file = template.ROOT / "template" / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sqlite(project: Path, statement: str, *parameters: object) -> list[tuple]:
    """Ask the SQLite database of a project, or change it."""
    # By itself it waits five seconds for a process that writes.
    connection = sqlite3.connect(project / "db.sqlite3", timeout=PATIENCE_SECONDS)
    with closing(connection) as database, database:
        return database.execute(statement, parameters).fetchall()


class Program:
    """A program at work in a folder; what it prints stands in `text`."""

    def __init__(
        self, folder: Path, log: Path, *command: str | Path, user: str | None = None, **variables: str
    ) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=folder,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=user,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches, and return the match; fail if the program ends before."""
        wait_until(lambda: re.search(pattern, self.text) or self.process.poll() is not None)
        found = re.search(pattern, self.text)
        assert found, f"{pattern!r} does not come from {self.process.args}:\n{self.text}"
        return found

    def kill(self) -> None:
        """Kill the program and its children, as the end of a container does."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            for each in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask the program to end and wait until it has; kill it and fail if it does not."""
        self.process.terminate()
        try:
            self.process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{self.process.args} does not end:\n{self.text}")


@contextmanager
def started(
    folder: Path, log: Path, *command: str | Path, user: str | None = None, **variables: str
) -> Iterator[Program]:
    """Run a program, as another user if one is named, until the end of the block."""
    program = Program(folder, log, *command, user=user, **variables)
    try:
        yield program
    finally:
        program.stop()


def freeze(pid: int) -> None:
    """Stop a process, and wait until it stands still.

    The source of this function is also run by other interpreters, which have imported os, signal, time and Path.
    """
    os.kill(pid, signal.SIGSTOP)
    states = "R"
    # One thread takes the signal once it gets a processor. Until then, the others go on and answer.
    while not set(states) <= set("TXZ"):
        time.sleep(0.01)
        try:
            stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        except OSError:
            continue
        states = [stat.rpartition(") ")[2][0] for stat in stats]


@contextmanager
def web_server(project: Path, folder: Path, **variables: str) -> Iterator[str]:
    """Run the web server of a project with gunicorn; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    gunicorn = (project / ".venv/bin/gunicorn", "acme.wsgi", "--bind", address, "--threads=4")
    with started(project, folder / "web.log", *gunicorn, **variables) as web:
        web.says("Booting worker")
        assert wait_until(lambda: Browser(f"http://{address}").get("/up")[0] == 200)
        yield f"http://{address}"


# Brokers --------------------------------------------------------------------


def answers(scheme: str, port: int) -> bool:
    """Whether a broker on this machine has begun to talk."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(GREETINGS[scheme])
        return bool(connection.recv(1))
    return False


def wait_for_broker(program: Program, scheme: str, port: int) -> None:
    assert wait_until(lambda: program.process.poll() is not None or answers(scheme, port)), program.text
    assert program.process.poll() is None, program.text


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[Program, str]]:
    """Run Redis with its files in the folder; yields the program and its URL."""
    port = free_port()
    command: Sequence[str] = (needed("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    with started(folder, folder / "redis.log", *command) as server:
        wait_for_broker(server, "redis", port)
        yield server, f"redis://127.0.0.1:{port}/0"


@contextmanager
def rabbitmq_server(folder: Path) -> Iterator[tuple[Program, str]]:
    """Run RabbitMQ as a node of its own, with its files and its name service in the folder; takes about 20 seconds."""
    with rabbitmq_cluster(folder, 1) as [node]:
        yield node


@contextmanager
def rabbitmq_cluster(folder: Path, size: int) -> Iterator[list[tuple[Program, str]]]:
    """Run so many nodes of RabbitMQ as one broker; yield each with its URL."""
    server_path, epmd_path = needed(RABBITMQ, "rabbitmq-server"), needed("epmd")
    ports, names_port = [free_port() for _ in range(size)], str(free_port())
    (folder / "plugins").write_text("[].\n")
    names = [f"proof{port}@localhost" for port in ports]
    nodes = [f"cluster_formation.classic_config.nodes.{number} = {name}\n" for number, name in enumerate(names, 1)]
    # Made here, because nodes that start together would each make one.
    (folder / ".erlang.cookie").write_text("ONLYHERE")
    (folder / ".erlang.cookie").chmod(0o400)
    # Alone, it needs nobody to find.
    (folder / "rabbitmq.conf").write_text("".join(nodes) if size > 1 else "")
    shared = {
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": names_port,
        # Where Erlang keeps its cookie.
        "HOME": str(folder),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
    }
    with ExitStack() as stack:
        # Ours, because the one that RabbitMQ starts by itself outlives it.
        stack.enter_context(
            started(folder, folder / "epmd.log", epmd_path, "-port", names_port, "-address", "127.0.0.1")
        )
        servers = []
        for port, name in zip(ports, names, strict=True):
            own = {
                "RABBITMQ_DIST_PORT": str(free_port()),
                "RABBITMQ_NODENAME": name,
                "RABBITMQ_NODE_PORT": str(port),
            }
            server = started(folder, folder / f"{name}.log", server_path, **shared, **own)
            servers.append(stack.enter_context(server))
        for server, port in zip(servers, ports, strict=True):
            wait_for_broker(server, "amqp", port)
        yield [(server, f"amqp://guest:guest@127.0.0.1:{port}//") for server, port in zip(servers, ports, strict=True)]


# Databases ------------------------------------------------------------------


@contextmanager
def postgresql_server() -> Iterator[str]:
    """Run PostgreSQL in a folder of its own; yields its URL."""
    programs = Path(needed(*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True), "initdb")).parent
    # It refuses to be root, and another user cannot enter the folders of root's tests.
    user = "postgres" if os.geteuid() == 0 else None
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        initdb = (programs / "initdb", "--auth=trust", "--username=postgres", "--no-sync", "--pgdata=data")
        done = subprocess.run(initdb, cwd=folder, env=environment(), user=user, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        command = (programs / "postgres", "-D", "data", "-k", folder, "-h", "127.0.0.1", "-p", port, "-F")
        with started(folder, folder / "postgresql.log", *command, user=user) as server:
            server.says("ready to accept connections")
            yield f"postgres://postgres@127.0.0.1:{port}/postgres"
