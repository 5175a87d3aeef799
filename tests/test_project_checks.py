"""What a project promises about its settings and its broker, asked of real projects with all that they need."""

import ast
import json
import os
import re
import signal
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import getsource
from itertools import chain
from pathlib import Path

import psutil
import pytest

from tests import template
from tests.browser import PATIENCE_SECONDS, free_port
from tests.processes import (
    freeze,
    installed,
    interpreter,
    needed,
    postgresql_server,
    rabbitmq_server,
    redis_server,
    run,
)

pytestmark = pytest.mark.run

# What the project promises to whoever sends; Celery's defaults take 20 seconds, or wait to the end of days.
AT_ONCE_SECONDS = 2
PRODUCTION = {
    "ALLOWED_HOSTS": "www.example.com",
    "CELERY_BROKER_URL": "redis://127.0.0.1:6379/0",
    "SECRET_KEY": "3dP_Ud8VZ0mQnYk7vRr1oXbB5uJ2tLcW9sEhGfAiNqKyMzTx-lOoPpQq",
}
# Questions that no Python file of a project depends on.
TOOL_SWITCHES = {"package_manager", "python_version", "docker_mode", "deploy", "celery_pool"}
# Django and Celery are imported once; each project is checked in a fork.
CHECK = """
import os, sys
import allauth, celery, django.contrib.admin, django.core.management, django.test, django_celery_beat, environ

os.environ |= {"DEBUG": "1", "DJANGO_SETTINGS_MODULE": "acme.settings"}
failed = []
for folder in sys.argv[1:]:
    if not (child := os.fork()):
        os.chdir(folder)
        sys.path.insert(0, folder)
        django.setup()
        django.core.management.call_command("check", fail_level="WARNING")
        django.core.management.call_command("makemigrations", check_changes=True, dry_run=True)
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(folder)
sys.exit(f"Failed: {failed}" if failed else 0)
"""
DELAY = """
import os, signal, time, django
from pathlib import Path
django.setup()
from kombu.exceptions import OperationalError
from acme.tasks import add, say_good_morning

def now():
    # Without what this thread has waited for a processor, which others on the machine may hold.
    with open("/proc/thread-self/schedstat") as waits:
        return time.monotonic() - int(waits.read().split()[1]) / 1e9

def is_sent():
    try:
        return say_good_morning.delay()
    except OperationalError:
        return None

if frozen := os.environ.get("FREEZE"):
    # Again if the broker is slow on a machine with other things to do: now it is not what is asked.
    while not is_sent():
        pass
    freeze(int(frozen))
for task, arguments in ((say_good_morning, ()), (add, (1, 2))):
    began = now()
    try:
        task.delay(*arguments)
    except OperationalError:
        print(f"error after {now() - began:.2f} s")
"""
CLEAR_CACHE = """
from acme.tasks import say_good_morning
from django.core.cache import cache
say_good_morning.delay()
cache.set("key", "value")
assert cache.get("key") == "value"
cache.clear()
assert cache.get("key") is None
"""
SUNSET = """
import django
django.setup()
from django.core.management import call_command
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
call_command("migrate", verbosity=0)
call_command("bootstrap_celery_tasks")
print(PeriodicTask.objects.get(name="greet").schedule.is_due(timezone.now()).next)
"""


@pytest.fixture(scope="module")
def on(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project with Celery and Flower, and the folder of its programs."""
    return installed(template_repo, tmp_path_factory.mktemp("on"), "3.13")


@pytest.fixture(scope="module")
def ask(on):
    """`ask(code, **variables)` runs Python in the project with Django set up, and returns its last line."""
    project, programs = on

    def ask(code: str, **variables: str) -> str:
        script = f"import django; django.setup()\n{code}"
        printed = run(project, programs / "python", "-c", script, DJANGO_SETTINGS_MODULE="acme.settings", **variables)
        return printed.splitlines()[-1]

    return ask


@pytest.fixture(scope="module")
def settings(ask):
    """`settings(*names, **variables)` returns settings of the project under these variables."""

    def settings(*names: str, **variables: str) -> list:
        code = f"import json\nfrom django.conf import settings as s\nprint(json.dumps([{', '.join(names)}]))"
        return json.loads(ask(code, **variables))

    return settings


@pytest.fixture(scope="module")
def manage(on):
    """`manage(*arguments, status=0, **variables)` runs manage.py, and returns what it printed."""
    project, programs = on
    return partial(run, project, programs / "python", "manage.py")


# Every combination ----------------------------------------------------------


@pytest.fixture(scope="module")
def python_of_everything(template_repo, tmp_path_factory) -> Path:
    """A Python that has what every feature needs."""
    folder = tmp_path_factory.mktemp("everything")
    return installed(template_repo, folder, "3.13", **template.EVERYTHING)[1] / "python"


@pytest.fixture(scope="module")
def distinct(renderer: template.Renderer) -> dict[str, dict[str, bytes]]:
    """The projects that differ in what Django loads of their Python files, by a name for each."""
    found: dict[frozenset, template.Answers] = {}
    for answers in template.valid_answers():
        if all(answers.get(name) == template.DEFAULTS.get(name) for name in TOOL_SWITCHES):
            files = renderer.project(answers)
            loaded = frozenset(
                (path, files[path]) for path in files if re.search(r"^(acme|apps)/.*(?<!/dev)\.py$", path)
            )
            found.setdefault(loaded, answers)
    return {template.label(answers): renderer.project(answers) for answers in found.values()}


def test_every_combination_passes_the_checks_and_has_its_migrations(python_of_everything, distinct, tmp_path):
    folders = []
    for number, files in enumerate(distinct.values()):
        folders.append(tmp_path / f"{number:02}")
        for path, content in files.items():
            (folders[-1] / path).parent.mkdir(parents=True, exist_ok=True)
            (folders[-1] / path).write_bytes(content)
    run(tmp_path, python_of_everything, "-c", CHECK, *folders, seconds=1800)


def test_a_project_with_everything_but_async_passes_its_own_tests(python_of_everything, template_repo, tmp_path):
    # Of the apps that are different with it; the others are run by the workflow of test_it_runs.py.
    answers = template.EVERYTHING | {"use_async": False, "celery_broker": "rabbitmq"}
    project = template.copy(template_repo, tmp_path / "acme", **answers)
    # That Python has the server of async projects. The workflow of test_it_runs.py has the other one.
    other = "--ignore=tests/web/test_buffering.py"
    output = run(project, python_of_everything, "-m", "pytest", "tests/chat", "tests/web", other, seconds=1800)
    assert "tests/chat/test_polling.py" in output
    # None is skipped.
    assert re.search(r"^=+ \d+ passed(, \d+ warnings?)? in ", output, re.MULTILINE), output[-3000:]


def test_a_task_whose_value_postgresql_refuses_has_failed(on):
    project, programs = on
    tests = ("tests/background", "tests/tasks/test_backend.py", "tests/tasks/test_results.py")
    chosen = "no_database_stores or whatever_its_text_contains"
    with postgresql_server() as database:
        # The test database outlives the connections of its threads, and the server ends with both.
        run(project, programs / "python", "-m", "pytest", *tests, "-k", chosen, DATABASE_URL=database)


# A second queue and longer limits, each with what the checks say about it.
OWNERS_SETTINGS = """
SHOP_CURRENCY = env.text("SHOP_CURRENCY", "EUR")
CELERY_TASK_ROUTES = {"acme.tasks.*": {"queue": "reports"}}
CELERY_TASK_SOFT_TIME_LIMIT, CELERY_TASK_TIME_LIMIT = 870, 900
SCHEDULED_TASKS = {name: entry for name, entry in SCHEDULED_TASKS.items() if entry["task"].startswith("apps.")}
"""
# Each module stays together, because servers are started for it.
SHUFFLED = """
import random

def pytest_collection_modifyitems(items):
    dice = random.Random(1)
    places = {item.path: dice.random() for item in items}
    items.sort(key=lambda item: (places[item.path], dice.random()))
"""


def test_a_project_passes_its_own_tests_with_what_every_owner_changes(python_of_everything, template_repo, tmp_path):
    """In another order, too. The checks warn of two of the changes, so one test fails and repeats their words."""
    project = template.copy(template_repo, tmp_path / "acme", **template.EVERYTHING)
    replace_in(project / "acme/settings.py", 'LANGUAGE_CODE = "en-us"', 'LANGUAGE_CODE = "de"')
    (project / "acme/settings.py").open("a").write(OWNERS_SETTINGS)
    (project / ".env.example").open("a").write("# SHOP_CURRENCY=EUR\n")
    # The example is replaced, as its first line says.
    (project / "acme/tasks.py").write_text('"""Mine."""\n')
    (project / "shuffled.py").write_text(SHUFFLED)
    command = (python_of_everything, "-m", "pytest", "-p", "shuffled", "tests", "--ignore=tests/metrics")
    output = run(project, *command, status=1, seconds=1800)
    assert re.search(r"^=+ 1 failed, \d+ passed, 1 skipped(, \d+ warnings?)? in ", output, re.MULTILINE), output[-3000:]
    assert "CELERY_TASK_ROUTES names the queue reports, which the settings do not have." in output
    assert "A task may take 900 s, and Redis delivers it again after 600 s: a long task runs twice." in output


# Tests stay in their process --------------------------------------------------

OWNERS_TESTS = """
import pytest
from acme.tasks import add
from apps.background import task
from apps.tasks.sending import send
from celery import chain
from django.conf import settings
from django.core.cache import cache
from django.core.mail import send_mail
from django.db import connection
from django.test import TransactionTestCase

@task
def write():
    return str(connection.settings_dict["NAME"])

def send_all():
    add.delay(1, 2)
    chain(add.s(1, 2), add.s(3)).delay()
    send(add, 1, 2)
    add.apply_async((1, 2), countdown=5000)
    send_mail("Hello", "", None, ["you@example.com"])
    cache.set("key", "value")
    return write.enqueue()

def test_without_a_mark():
    add.delay(1, 2)

@pytest.mark.django_db(transaction=True)
def test_with_transactions():
    assert "memory" in send_all().return_value
    assert (settings.STRIPE_SECRET_KEY, settings.DEFAULT_AI_MODEL) == ("", "")

@pytest.mark.django_db
def test_with_captured_commits(django_capture_on_commit_callbacks, sent):
    with django_capture_on_commit_callbacks(execute=True):
        send_all()
    assert len(sent) == 4

class ShopTest(TransactionTestCase):
    def test_in_the_form_of_django(self):
        assert "memory" in send_all().return_value
"""
COSTLY = """
DEBUG=1
CACHE_URL={0}/2
CELERY_BROKER_URL={0}/0
CELERY_RESULT_BACKEND={0}/1
DEFAULT_AI_MODEL=openai:gpt-5-mini
EMAIL_URL=smtp://127.0.0.1:1
OPENAI_API_KEY=secret
REDIS_URL={0}/0
SECURE_SSL_REDIRECT=1
STRIPE_SECRET_KEY=sk_test_1
"""


def connections(url: str) -> int:
    """How often somebody has connected to this Redis, including this question."""
    said = run(Path.cwd(), needed("redis-cli"), "-u", url, "info", "stats")
    return int(re.search(r"total_connections_received:(\d+)", said)[1])


def test_whatever_runs_the_tests_of_an_owner_they_stay_in_their_process(python_of_everything, template_repo, tmp_path):
    project = template.copy(template_repo, tmp_path / "acme", **template.EVERYTHING)
    shop = project / "apps/shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "tests.py").write_text(OWNERS_TESTS)
    with redis_server(tmp_path) as (_, url):
        (project / ".env").write_text(COSTLY.format(url.removesuffix("/0")))
        before = connections(url)
        run_tests = partial(run, python_of_everything.parent, python_of_everything, CELERY_BROKER_URL=url)
        an_editors = {"DJANGO_SETTINGS_MODULE": "acme.settings"}
        manage = project / "manage.py"
        for output in (
            run_tests("-m", "pytest", shop / "tests.py", **an_editors),
            run_tests(manage, "test", "apps.shop"),
            run_tests(manage, "test", "apps/shop/tests.py", **an_editors),
        ):
            assert " 4 passed" in output, output
        assert " 1 passed" in run_tests(manage, "test", "apps.shop.tests.ShopTest.test_in_the_form_of_django")
        assert "apps.nowhere" in run_tests(manage, "test", "apps.nowhere", status=1)
        assert connections(url) == before + 1
    assert not (project / "db.sqlite3").exists()


def test_processes_that_share_the_tests_agree_on_their_names(python_of_everything, render):
    project = render(**template.EVERYTHING)
    collect = (python_of_everything, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--collect-only")
    # Python arranges sets by this seed.
    names = [
        [line for line in run(project, *collect, PYTHONHASHSEED=seed).splitlines() if "::" in line] for seed in "12"
    ]
    assert len(names[0]) > 1000 and names[0] == names[1]


@pytest.mark.parametrize(
    "answers", [template.EVERYTHING, template.EVERYTHING | {"docker_mode": "services"}], ids=template.label
)
def test_every_variable_of_the_example_has_its_nonsense(render, answers):
    project = render(**answers)
    offered = set(re.findall(r"^(?:# )?([A-Z_]+)=", (project / ".env.example").read_text(), re.MULTILINE))
    containers = "".join(file.read_text() for file in project.glob("*compose.yml"))
    told = {
        ast.literal_eval(name)
        for file in project.glob("tests/*/test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.AnnAssign) and node.target.id == "NONSENSE"
        for name in node.value.keys
    }
    # Compose reads this one by itself.
    assert told and offered - set(re.findall(r"\$\{([A-Z_]+)", containers)) - told - {"COMPOSE_PROFILES"} == set()


@pytest.mark.slow
def test_a_project_passes_its_own_tests_without_time_zones_in_a_place_with_summer_time(
    python_of_everything, template_repo, tmp_path
):
    project = template.copy(template_repo, tmp_path / "acme", **template.EVERYTHING)
    replace_in(project / "acme/settings.py", 'TIME_ZONE = "UTC"', 'TIME_ZONE = "America/New_York"')
    replace_in(project / "acme/settings.py", "USE_TZ = True", "USE_TZ = False")
    output = run(project, python_of_everything, "-m", "pytest", seconds=1800)
    assert re.search(r"^=+ \d+ passed(, \d+ warnings?)? in ", output, re.MULTILINE), output[-3000:]


def replace_in(file: Path, text: str, other: str) -> None:
    assert text in file.read_text()
    file.write_text(file.read_text().replace(text, other))


# Imported under the name of what the project asks for: Celery's own documentation tells to catch kombu's errors,
# Django's to call asgiref's functions, Flower's options are tornado's, and each client of a broker comes with kombu.
# The distribution of OpenTelemetry brings its interface.
VOUCHED_FOR = {
    "amqp": "kombu",
    "asgiref": "django",
    "kombu": "celery",
    "opentelemetry": "opentelemetry-distro",
    "redis": "kombu",
    "tornado": "flower",
}


@cache
def imports(code: bytes, within_functions: bool) -> set[str]:
    """The top-level names of the packages that the code imports within functions or elsewhere, Python's own apart."""
    tree = ast.parse(code)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {node for function in functions for node in ast.walk(function)}
    nodes = inner if within_functions else {*ast.walk(tree)} - inner
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def names_of(requirements: list[str]) -> set[str]:
    return {canonical(re.match(r"[\w-]+", each)[0]) for each in requirements}


def canonical(name: str) -> str:
    """The name of a package in the one of its spellings that all agree on."""
    return name.lower().replace("_", "-")


@pytest.fixture(scope="module")
def distributions(python_of_everything: Path) -> dict[str, list[str]]:
    """The packages that bring each module at the top level, where every feature is installed."""
    code = "import importlib.metadata, json; print(json.dumps(importlib.metadata.packages_distributions()))"
    return json.loads(run(python_of_everything.parent, python_of_everything, "-c", code))


def test_no_module_of_a_dependency_is_a_slug(renderer, distributions):
    validator = template.questions()["project_slug"]["validator"]
    assert {"celery", "django", "pydantic_ai", "stripe"} < set(distributions)
    # Nobody types the name of what mypyc compiles, which begins with a hash, and each wheel has another one.
    names = [name for name in distributions if not name.endswith("__mypyc")]
    assert [name for name in names if not renderer.string(validator, {"project_slug": name}).strip()] == []


def test_every_import_has_a_direct_dependency(distributions, distinct):
    bad: dict[str, str] = {}
    for name, files in distinct.items():
        project = tomllib.loads(files["pyproject.toml"].decode())
        always, development = project["project"]["dependencies"], project["dependency-groups"]["dev"]
        optional = list(chain(*project["project"]["optional-dependencies"].values()))
        places = [(path, within) for path in files if path.endswith(".py") for within in (False, True)]
        for path, within in places:
            only_development = path.startswith("tests/") or path.endswith(("conftest.py", "/dev.py"))
            asked_for = names_of(always + development * only_development + optional * within)
            for module in imports(files[path], within) - {"acme", "apps", "tests"}:
                offered = {*map(canonical, [*distributions.get(module, []), VOUCHED_FOR.get(module, module)])}
                if not offered & asked_for:
                    bad.setdefault(f"{path} imports {module}", name)
    assert bad == {}


@pytest.mark.parametrize("answers", [{"celery_broker": "rabbitmq"}, template.OFF], ids=template.label)
def test_redis_is_installed_in_production_only_where_something_uses_it(render, tmp_path, answers):
    (tmp_path / "pyproject.toml").write_bytes((render(**answers) / "pyproject.toml").read_bytes())
    (tmp_path / "README.md").touch()
    python = interpreter("3.13")
    exported = run(tmp_path, needed("uv"), "export", "--quiet", "--python", python, "--no-dev", "--no-hashes")
    assert "django==" in exported
    assert not re.findall(r"^(?:redis|valkey\w*)==.*", exported, re.MULTILINE)


# Settings --------------------------------------------------------------------


def test_a_broker_variable_that_is_empty_is_unset(settings, manage):
    for empty in ({"REDIS_URL": ""}, {"CELERY_BROKER_URL": ""}, {"CELERY_BROKER_URL": "", "REDIS_URL": ""}):
        [url] = settings("s.CELERY_BROKER_URL", DEBUG="1", **empty)
        assert re.fullmatch(r"redis://127\.0\.0\.1:2\d{4}/0", url)
    assert "Set CELERY_BROKER_URL " in manage("check", status=1, **PRODUCTION | {"CELERY_BROKER_URL": ""})


def test_variables_without_a_value_are_unset(settings, on):
    source = (on[0] / "acme/settings.py").read_text()
    variables = set(re.findall(r'env\.\w+\(\s*"(\w+)"', source)) - {"DEBUG"}
    assert {"CACHE_URL", "DATABASE_URL", "EMAIL_URL"} < variables
    everything = "{name: str(getattr(s, name)) for name in dir(s) if name.isupper()}"
    assert settings(everything, DEBUG="1", **dict.fromkeys(variables, "")) == settings(everything, DEBUG="1")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p%40ss%2Fw$rd%3A@127.0.0.1:6380/3?health_check_interval=7",
        "rediss://user:%24ecret@redis.example.com:6379/0?ssl_cert_reqs=required",
        "amqps://user:p%25ss@rabbit.example.com:5671/%2Fa%20host",
        "sentinel://127.0.0.1:26379/0;sentinel://127.0.0.1:26380/0",
    ],
)
def test_the_url_of_the_broker_reaches_celery_byte_for_byte(ask, url):
    code = "from celery import current_app as app; print(app.conf.broker_url, app.conf.broker_write_url)"
    assert ask(code, DEBUG="1", CELERY_BROKER_URL=url) == f"{url} {url}"
    if url.startswith("redis"):
        assert ask(code, DEBUG="1", REDIS_URL=url) == f"{url} {url}"


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_secret_may_begin_with_a_dollar(settings, on, place):
    variables = {
        "DATABASE_URL": "postgres://user:$ecret@127.0.0.1:5432/name",
        "EMAIL_URL": "smtp+tls://user:$ecret@127.0.0.1:587",
        "HEALTH_TOKEN": "$token",
        "SECRET_KEY": "$abc$def",
    }
    file = on[0] / ".env"
    if place == ".env":
        file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        variables = {}
    names = ("s.SECRET_KEY", "s.HEALTH_TOKEN", "s.DATABASES['default']['PASSWORD']", "s.EMAIL_HOST_PASSWORD")
    try:
        assert settings(*names, DEBUG="1", **variables) == ["$abc$def", "$token", "$ecret", "$ecret"]
    finally:
        file.unlink(missing_ok=True)


# Programs of a project, and the status with which they end when the settings cannot be loaded.
PROGRAMS = {
    "check": ("python", "manage.py", "check"),
    "migrate": ("python", "manage.py", "migrate"),
    "dev": ("python", "manage.py", "dev"),
    "runserver": ("python", "manage.py", "runserver", "127.0.0.1:0"),
    "worker": ("celery", "-A", "acme", "worker"),
    "beat": ("celery", "-A", "acme", "beat"),
    "flower": ("celery", "-A", "acme", "flower", "--address=127.0.0.1"),
    "gunicorn": ("gunicorn", "--bind=127.0.0.1:0", "acme.wsgi"),
}
# Gunicorn starts a process again whatever else it ends with.
NO_USE_TO_START_AGAIN = 3


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_cannot_be_read_ends_every_program_with_sentences_and_without_a_traceback(on, program):
    """Which values these are, and what is said about each, is in the tests of the project."""
    project, programs = on
    name, *arguments = PROGRAMS[program]
    wrong = {"CELERY_BROKER_URL": "redis://app:p@ss:w/rd@127.0.0.1/0", "DEBUG": "1", "SECURE_HSTS_SECONDS": "abc"}
    status = NO_USE_TO_START_AGAIN if program == "gunicorn" else 1
    printed = run(project, programs / name, *arguments, status=status, seconds=PATIENCE_SECONDS, **wrong)
    assert "\nSECURE_HSTS_SECONDS is 'abc', but must be a whole number, 0 or more.\n" in printed
    assert "CELERY_BROKER_URL is 'redis://***@127.0.0.1/0', whose user and password cannot be told from" in printed
    assert not re.search("Traceback|Usage|w/rd", printed), printed


def test_a_line_of_the_env_file_that_cannot_be_read_is_told(manage, on):
    file = on[0] / ".env"
    try:
        file.write_bytes(b"\xef\xbb\xbfexport DEBUG=1\r\nSECRET KEY=x\r\n")
        assert manage("check", status=1).endswith(
            "line 2 is neither NAME=value, without spaces around the =, nor a comment.\n"
        )
        file.write_bytes(b"\xef\xbb\xbfexport DEBUG=1\r\nSECRET_KEY=x\r\n")
        assert "no issues" in manage("check")
    finally:
        file.unlink(missing_ok=True)


def test_flower_refuses_credentials_that_no_browser_can_send(on):
    project, programs = on
    name, *arguments = PROGRAMS["flower"]
    printed = run(project, programs / name, *arguments, status=1, DEBUG="1", FLOWER_BASIC_AUTH="user:password,secret")
    assert printed == "FLOWER_BASIC_AUTH must be user:password, or several of these with commas between them.\n"


# Production ------------------------------------------------------------------


def test_without_settings_it_says_all_that_is_missing_in_one_sentence(manage, on):
    for command in ("check", "migrate", "runserver"):
        sentence = manage(command, status=1)
        assert len(sentence.splitlines()) == 1
        for name in (*PRODUCTION, "DEBUG=1", ".env.example"):
            assert name in sentence
    # The first `dev` of a checkout writes a .env; no other command does.
    assert not (on[0] / ".env").exists()


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_refuses_to_start_without(manage, name):
    given = {key: value for key, value in PRODUCTION.items() if key != name}
    assert manage("check", status=1, **given).startswith(f"Set {name} in the environment")


def test_production_starts_with_what_it_asks_for_and_a_web_server_refuses_without(on):
    project, programs = on
    gunicorn = (programs / "gunicorn", "--check-config", "acme.wsgi")
    run(project, *gunicorn, **PRODUCTION)
    assert "Set ALLOWED_HOSTS, CELERY_BROKER_URL, SECRET_KEY in" in run(
        project, *gunicorn, status=NO_USE_TO_START_AGAIN
    )


def test_production_settings_pass_the_deployment_checks(manage):
    mail = {"DEFAULT_FROM_EMAIL": "hello@example.com", "EMAIL_URL": "smtp://127.0.0.1"}
    assert "no issues" in manage("check", "--deploy", "--fail-level", "WARNING", **PRODUCTION | mail)


def test_without_its_dependencies_it_says_in_one_sentence_how_to_install_them(on):
    sentence = run(on[0], interpreter("3.13"), "-I", "manage.py", "check", status=1)
    assert len(sentence.splitlines()) == 1 and sentence.endswith("Install the dependencies first: uv sync\n")


# The schedule -----------------------------------------------------------------


@pytest.fixture
def scheduled(on, tmp_path) -> Iterator[Callable[[str], dict[str, str]]]:
    """`scheduled(entry)` writes settings with this entry alone; returns the variables under which they count."""
    file = on[0] / "acme/scheduled.py"
    code = "from acme.settings import *\nfrom celery.schedules import solar\nSCHEDULED_TASKS = {{'greet': {}}}\n"

    def scheduled(entry: str) -> dict[str, str]:
        file.write_text(code.format(entry))
        database = f"sqlite:///{tmp_path}/db.sqlite3"
        return {"DATABASE_URL": database, "DEBUG": "1", "DJANGO_SETTINGS_MODULE": "acme.scheduled"}

    yield scheduled
    file.unlink()


def test_a_wrong_entry_ends_a_release_with_a_sentence_and_a_status(on, scheduled):
    project, programs = on
    bootstrap = f"exec '{programs}/python' manage.py bootstrap_celery_tasks 2>&1 >/dev/null"
    variables = scheduled("{'task': 'acme.tasks.say_good_mourning', 'schedule': 60}")
    sentence, written = run(project, needed("sh"), "-c", bootstrap, status=1, **variables).splitlines()
    assert sentence.startswith("CommandError: SCHEDULED_TASKS['greet']: no task is registered as")
    assert sentence.endswith("Did you mean 'acme.tasks.say_good_morning'?") and written == "Nothing was written."


def test_a_solar_schedule_runs_with_the_package_that_it_asks_for(on, manage, scheduled):
    variables = scheduled("{'task': 'acme.tasks.say_good_morning', 'schedule': solar('sunset', 52.52, 13.405)}")
    assert "No module named 'ephem'" in manage("check", status=1, **variables)
    with_ephem = (needed("uv"), "run", "-q", "--no-build-package=ephem", "--with=ephem", "python", "-c", SUNSET)
    printed = run(on[0], *with_ephem, **variables)
    assert "created    greet  solar sunset 52.520000 13.405000" in printed
    # Every day has a sunset there.
    assert 0 < float(printed.splitlines()[-1]) < 25 * 3600


# A broker that is away -------------------------------------------------------


@contextmanager
def refusing() -> Iterator[int]:
    yield free_port()


@contextmanager
def silent() -> Iterator[int]:
    """Accept connections, and never say a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def assert_errors_at_once(on: tuple[Path, Path], **variables: str) -> None:
    """Send two tasks; fail unless each is an error, and at once."""
    project, programs = on
    given = variables | {"DEBUG": "1", "DJANGO_SETTINGS_MODULE": "acme.settings"}
    # Ended from outside if it hangs, as it did with Celery's defaults.
    printed = run(project, programs / "python", "-c", getsource(freeze) + DELAY, seconds=PATIENCE_SECONDS, **given)
    seconds = [float(each) for each in re.findall(r"error after (\S+) s", printed)]
    assert len(seconds) == 2 and max(seconds) < AT_ONCE_SECONDS, printed


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "amqp://guest:guest@127.0.0.1:{}//"], ids=["redis", "amqp"])
@pytest.mark.parametrize("away", [refusing, silent])
def test_a_broker_that_is_away_is_an_error_at_once(on, url, away):
    with away() as port:
        assert_errors_at_once(on, CELERY_BROKER_URL=url.format(port))


@pytest.mark.parametrize("broker", [redis_server, rabbitmq_server])
def test_a_broker_that_freezes_under_a_connection_is_an_error_at_once(on, tmp_path, broker):
    with broker(tmp_path) as (server, url):
        parent = server.process.pid
        # RabbitMQ is the child of a shell.
        pid = (Path(f"/proc/{parent}/task/{parent}/children").read_text().split() or [str(parent)])[0]
        try:
            assert_errors_at_once(on, CELERY_BROKER_URL=url, FREEZE=pid)
        finally:
            os.kill(int(pid), signal.SIGCONT)


LATE = """
import os, signal, time, django
from pathlib import Path
django.setup()
from celery import current_app

broker = int(os.environ["FREEZE"])
connection = current_app.connection_for_write()

def is_confirmed(seconds):
    try:
        producer.publish({}, routing_key="nowhere", confirm_timeout=seconds)
        return True
    except connection.recoverable_connection_errors:
        return False

producer = connection.Producer()
# On a machine with other things to do, RabbitMQ may be too slow at first.
while not is_confirmed(60):
    connection.collect()
    producer = connection.Producer()
freeze(broker)
confirmed = [is_confirmed(0.3) for _ in range(5)]
os.kill(broker, signal.SIGCONT)
# Until the confirmations of these messages have arrived.
time.sleep(3)
freeze(broker)
print("confirmed:", *confirmed, is_confirmed(2))
"""


def test_a_confirmation_that_comes_late_is_not_taken_for_that_of_the_next_message(on, tmp_path):
    """If it were, the next message could be lost, and nobody would know."""
    project, programs = on
    with rabbitmq_server(tmp_path) as (server, url):
        [broker] = psutil.Process(server.process.pid).children()
        given = {"CELERY_BROKER_URL": url, "DEBUG": "1", "DJANGO_SETTINGS_MODULE": "acme.settings"}
        try:
            code = getsource(freeze) + LATE
            printed = run(
                project, programs / "python", "-c", code, seconds=PATIENCE_SECONDS, FREEZE=str(broker.pid), **given
            )
        finally:
            broker.resume()
    assert "confirmed:" + 6 * " False" in printed


@pytest.mark.parametrize("cache", ["dbcache://cache_table", "redis"])
def test_clearing_the_cache_leaves_the_queue(manage, tmp_path, cache):
    with redis_server(tmp_path) as (_, url):
        database = f"sqlite:///{tmp_path}/db.sqlite3"
        variables = {"CELERY_BROKER_URL": url, "DATABASE_URL": database, "DEBUG": "1"}
        variables["CACHE_URL"] = url.removesuffix("0") + "1" if cache == "redis" else cache
        manage("createcachetable", **variables)
        manage("shell", "-c", CLEAR_CACHE, **variables)
        assert run(tmp_path, "redis-cli", "-u", url, "llen", "celery\x06\x163").strip() == "1"
