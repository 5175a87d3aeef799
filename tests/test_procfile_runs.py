"""A runner of Procfiles starts a rendered project as Heroku and its likes do, and tasks go through it."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.browser import PATIENCE_SECONDS, Browser, free_port
from tests.dev_support import left_in, wait_until
from tests.processes import EVERY_SECOND, environment, installed, redis_server, run, started
from tests.template import Answers

pytestmark = pytest.mark.run

HONCHO = Path(sys.executable).with_name("honcho")


def production(project: Path, **variables: str) -> dict[str, Any]:
    """What a platform has in the environment: the values of app.json, those that it makes up itself, and some more.

    It asks people for the others, which the tests can do without.
    """
    variables_of_app = json.loads((project / "app.json").read_text())["env"].items()
    given = {name: each["value"] for name, each in variables_of_app if "value" in each}
    given |= {name: "made-up-by-the-platform" for name, each in variables_of_app if "generator" in each}
    path = f"{project / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    return given | {"ALLOWED_HOSTS": "127.0.0.1", "PATH": path} | variables


def made(template_repo: Path, folder: Path, **answers: Any) -> Path:
    options: Answers = {"deploy": ["procfile"], "docker_mode": "none", "use_flower": False}
    return installed(template_repo, folder, "3.13", "--no-dev", **options | answers)[0]


def release(project: Path, variables: dict[str, Any]) -> None:
    """Run the release phase; it fails if the command does."""
    run(project, HONCHO, "start", "release", **variables)


def is_alive(project: Path, name: str, variables: dict[str, Any]) -> bool:
    """Whether the probe of worker or beat takes it for alive."""
    command = [project / ".venv/bin/python", "-m", "apps.tasks.worker.alive", name]
    return subprocess.run(command, cwd=project, env=environment(**variables)).returncode == 0


def test_all_processes_run_and_end_with_the_signal(template_repo, tmp_path):
    project, port = made(template_repo, tmp_path), free_port()
    with redis_server(tmp_path) as (_, url):
        variables = production(project, ALIVE_DIRECTORY=str(tmp_path), REDIS_URL=url)
        release(project, variables)
        run(project, project / ".venv/bin/python", "manage.py", "shell", "-c", EVERY_SECOND, **variables)
        processes = ("web", "beat", "worker")
        command = (HONCHO, "start", "--port", str(port), *processes)
        with started(project, tmp_path / "honcho.log", *command, **variables) as runner:
            runner.says(r"Listening at: http://0\.0\.0\.0:" + str(port))
            assert wait_until(lambda: Browser(f"http://127.0.0.1:{port}").get("/up")[0] == 200), runner.text
            for name in ("beat", "worker"):
                assert wait_until(lambda name=name: is_alive(project, name, variables)), runner.text
            runner.says(r"worker\.1 .*say_good_morning\[.*succeeded")
        assert all(f"{name}.1 stopped" in runner.text for name in processes), runner.text
        assert "SIGKILL" not in runner.text
    assert not left_in(project)


@pytest.mark.parametrize("use_async", [False, True], ids=["gunicorn", "uvicorn"])
def test_a_web_server_without_celery_withstands_visitors_who_send_slowly_too_much_or_lies(
    template_repo, tmp_path, use_async
):
    project, port = made(template_repo, tmp_path, use_celery=False, use_async=use_async), free_port()
    variables = production(project, BEHIND_HTTPS_PROXY="")
    release(project, variables)
    with started(project, tmp_path / "honcho.log", HONCHO, "start", "--port", str(port), "web", **variables) as runner:
        # Whoever goes on to https:// has been answered by Django, and nobody listens there.
        assert wait_until(lambda: status(port, b"GET /up HTTP/1.1") == 200), runner.text
        with ExitStack() as stack:
            for number in range(SLOW_VISITORS):
                visitor = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                visitor.sendall(SLOW[number % len(SLOW)])
            assert [status(port, b"GET /up HTTP/1.1") for _ in range(10)] == 10 * [200], runner.text
        assert status(port, b"POST /up HTTP/1.1\r\nContent-Length: 629145600") == 413
        # It is no proxy that says so.
        assert status(port, b"GET /accounts/login/ HTTP/1.1\r\nX-Forwarded-Proto: https") == 301
        assert status(port, b"GET /there/ HTTP/1.1\r\nX-Forwarded-For: 192.0.2.66, 192.0.2.1") == 301
        runner.says(r"192\.0\.2\.1\b.*GET /there/")
    assert "Traceback" not in runner.text and "SIGKILL" not in runner.text
    assert not left_in(project)


SLOW_VISITORS = 300
# Each of these sends no more.
SLOW = (
    b"POST /accounts/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nlogin=",
    b"POST /up HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    b"GET /up HTTP/1.1\r\nHost:",
    b"",
)


def status(port: int, head: bytes) -> int:
    """Send a request and return the status of the answer, or 0 if nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return int(connection.recv(1000).split()[1])
    except ConnectionError:
        return 0


def test_the_shell_of_heroku_leaves_its_place_to_the_web_server(template_repo, tmp_path):
    project, port = made(template_repo, tmp_path, use_celery=False), free_port()
    variables = production(project, PORT=str(port))
    release(project, variables)
    web = yaml.safe_load((project / "heroku.yml").read_text())["run"]["web"]
    with started(project, tmp_path / "web.log", "/bin/sh", "-c", web, **variables) as program:
        program.says(r"Listening at: http://0\.0\.0\.0:" + str(port))
        process = psutil.Process(program.process.pid)
        assert "gunicorn" in " ".join(process.cmdline())
        workers = int(variables["WEB_CONCURRENCY"])
        assert wait_until(lambda: len(process.children()) == workers), program.text
        assert wait_until(lambda: Browser(f"http://127.0.0.1:{port}").get("/up")[0] == 200), program.text
    assert not left_in(project)
