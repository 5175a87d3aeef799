"""Each promise is a line of `celery.py`: without any one of them a worker runs as Celery's own does."""

import ast
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import template
from tests.dev_support import left_in
from tests.processes import installed, rabbitmq_server, redis_server, run, started

FIRST_STEPS = 'app.autodiscover_tasks(["acme"])'
SEND = """
import acme.celery
import django
django.setup()
from acme.tasks import add
print(add.delay(2, 3).get(timeout=180))
"""
# An inner part of kombu takes its parameter by another name, as in a release to come.
CHANGED = """
from apps.tasks.broker import parts
from kombu.transport.redis import Channel
former = Channel._brpop_start
Channel._brpop_start = lambda self, patience=None: former(self, patience)
parts.TESTED = {"celery": "5.6"}
use_what_fits(app)
"""


def promises(text: str) -> list[str]:
    """Return what follows Celery's first steps in `celery.py`, line by line."""
    lines = text.splitlines()
    body = [lines[node.lineno - 1 : node.end_lineno] for node in ast.parse(text).body]
    statements = ["\n".join(each) for each in body]
    return statements[statements.index(FIRST_STEPS) + 1 :]


SOURCE = (template.ROOT / "template/{{project_slug}}/celery.py.jinja").read_text().replace("{{ project_slug }}", "acme")
LINES = promises(SOURCE)


def test_it_begins_as_celerys_first_steps_with_django():
    steps = SOURCE.partition("\n# A task is sent")[0]
    code = [line for line in steps.splitlines() if re.match("app|os|import os|from celery", line)]
    assert code == [
        "import os",
        "from celery import Celery",
        'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "acme.settings")',
        'app = Celery("acme")',
        'app.config_from_object("django.conf:settings", namespace="CELERY")',
        "app.autodiscover_tasks()",
        FIRST_STEPS,
    ]


def test_each_promise_is_one_line_with_a_sentence_above_it():
    code = SOURCE.splitlines()
    assert all("\n" not in line for line in LINES)
    assert all(code[code.index(line) - 1].startswith("# ") for line in LINES)


def test_the_readme_says_for_each_line_what_is_lost_without_it():
    readme = (template.ROOT / "template/apps/tasks/README.md").read_text()
    rows = re.findall(r"^\| `([\w.:]+)` \| (.+) \| (.+) \|$", readme, re.MULTILINE)
    names = [re.search(r"apps\.tasks\.[\w.]+:\w+|(?<=connect\()\w+|^\w+(?=\(app\))", line).group() for line in LINES]
    assert [name for name, *_ in rows] == [name.removeprefix("apps.tasks.") for name in names]


@pytest.mark.lengthy
@pytest.mark.run
@pytest.mark.slow
def test_without_any_line_a_worker_runs_its_tasks(template_repo, tmp_path):
    project, programs = installed(template_repo, tmp_path, "3.13", use_flower=False)
    run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
    (tmp_path / "rabbitmq").mkdir()
    with ExitStack() as stack:
        _, redis = stack.enter_context(redis_server(tmp_path))
        _, rabbitmq = stack.enter_context(rabbitmq_server(tmp_path / "rabbitmq"))
        workers = []
        for number, line in enumerate(LINES):
            copy = without(line, project, tmp_path / str(number), rabbitmq if "amqp" in line else redis)
            command = (programs / "celery", "-A", "acme", "worker", "-l", "info", "-P", "solo", "-n", f"{number}@%h")
            workers.append((copy, stack.enter_context(started(copy, copy / "worker.log", *command))))
        copy = without("use_what_fits(app)", project, tmp_path / "changed", redis)
        with (copy / "acme/celery.py").open("a") as code:
            code.write(CHANGED)
        workers.append((copy, stack.enter_context(started(copy, copy / "worker.log", *command[:-1], "changed@%h"))))
        for copy, program in workers:
            program.says(r" ready\.")
            assert run(copy, programs / "python", "-c", SEND).strip() == "5", program.text
        assert program.says(
            r"redis_transport:Transport does not fit .* changed kombu\.transport\.redis:Channel\._brpop_start"
        )
    assert not left_in(tmp_path)


@pytest.mark.newest
@pytest.mark.run
def test_with_another_release_of_celery_a_worker_runs_and_says_what_does_not_fit(template_repo, tmp_path):
    project, programs = installed(template_repo, tmp_path, "3.13", use_flower=False)
    python = programs / "python"
    run(project, "uv", "pip", "install", "--python", python, "celery==5.6.3", "kombu[redis]==5.6.2")
    with redis_server(tmp_path) as (_, url):
        variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
        run(project, python, "manage.py", "migrate", **variables)
        assert "tasks.W041" in run(project, python, "manage.py", "check", **variables)
        command = (programs / "celery", "-A", "acme", "worker", "-l", "info")
        with started(project, tmp_path / "worker.log", *command, **variables) as program:
            program.says(r"does not fit Celery 5\.6\.3(.|\n)* ready\.")
            assert run(project, python, "-c", SEND, **variables).strip() == "5", program.text


def without(line: str, project: Path, folder: Path, url: str) -> Path:
    """Copy the project without a line of `celery.py`; its tasks go to a queue of their own at the broker."""
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".venv"))
    code, settings = folder / "acme/celery.py", folder / "acme/settings.py"
    whole = code.read_text()
    code.write_text(whole.replace(f"{line}\n", ""))
    assert code.read_text() != whole
    settings.write_text(f'{settings.read_text()}\nCELERY_TASK_DEFAULT_QUEUE = "{folder.name}"\n')
    (folder / ".env").write_text(f"DEBUG=1\nCELERY_BROKER_URL={url}\n")
    return folder
