"""A runner of Procfiles starts a rendered project as Heroku and its likes do, and tasks go through it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.browser import Browser, free_port
from tests.dev_support import left_in, wait_until
from tests.processes import EVERY_SECOND, environment, installed, redis_server, run, started
from tests.template import Answers

pytestmark = pytest.mark.run

HONCHO = Path(sys.executable).with_name("honcho")


def production(project: Path, **variables: str) -> dict[str, Any]:
    """What a platform has in the environment: the values of app.json, those that it makes up itself, and some more."""
    app = json.loads((project / "app.json").read_text())
    given = {name: each.get("value", "made-up-by-the-platform") for name, each in app["env"].items()}
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


def test_a_project_without_celery_has_a_web_server_and_a_release(template_repo, tmp_path):
    project, port = made(template_repo, tmp_path, use_celery=False), free_port()
    variables = production(project)
    release(project, variables)
    with started(project, tmp_path / "honcho.log", HONCHO, "start", "--port", str(port), "web", **variables) as runner:
        runner.says(r"Listening at: http://0\.0\.0\.0:" + str(port))
        assert wait_until(lambda: Browser(f"http://127.0.0.1:{port}").get("/up")[0] == 200), runner.text
    assert "SIGKILL" not in runner.text
    assert not left_in(project)


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
