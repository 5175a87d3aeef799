"""The panel on the home page starts a task, follows it, and says what hinders it."""

from types import SimpleNamespace

import pytest

pytest.importorskip("celery")

from celery import current_app
from django.core import signing
from django.urls import reverse
from kombu.exceptions import OperationalError

from apps.tasks.console import views
from apps.users.models import User
from apps.web import home

example_tasks = pytest.importorskip(f"{current_app.main}.tasks")
if not hasattr(example_tasks, "add"):
    pytest.skip("The example that the panel runs has been replaced.", allow_module_level=True)

HTMX = {"HX-Request": "true"}
# The time at which a result is asked for.
NOW = 1_800_000_000.0
NUMBERS = {"x": "16", "y": "16"}


@pytest.fixture(autouse=True)
def development(settings, db):
    settings.DEBUG = True


@pytest.fixture
def eager(monkeypatch):
    """Run tasks at once, in this process."""
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)


@pytest.fixture
def no_broker(monkeypatch):
    """Let every task meet a broker that is away."""

    def refuse(*args, **kwargs):
        raise OperationalError("Connection refused")

    monkeypatch.setattr("celery.Task.delay", refuse)


@pytest.fixture
def run(client):
    return lambda data=NUMBERS, headers=HTMX: client.post(reverse("tasks:add"), data, headers=headers)


@pytest.fixture
def ask(client, monkeypatch):
    """Return a function that asks for the result of a task sent some seconds ago."""
    monkeypatch.setattr(views, "time", SimpleNamespace(time=lambda: NOW))

    def get(task_id="some-task", age_seconds=0.0, query="", headers=HTMX):
        ticket = signing.dumps({"task_id": task_id, "sent_at": NOW - age_seconds}, salt=views.TICKET_SALT)
        return client.get(reverse("tasks:result", args=[ticket]) + query, headers=headers)

    return get


# A task is sent on commit, which tests have none of otherwise.
@pytest.mark.django_db(transaction=True)
def test_a_task_that_is_done_at_once_shows_its_result(run, eager):
    assert "<strong>32</strong>" in run().content.decode()


@pytest.mark.parametrize("bad", ["", "x", "1.5", "1000001"])
def test_bad_numbers_are_told(run, bad):
    response = run({"x": "16", "y": bad})
    assert response.status_code == 422
    assert "Second number:" in response.content.decode()


def test_a_broker_that_is_away_is_named_without_its_password(run, no_broker, settings):
    settings.CELERY_BROKER_URL = "amqp://user:secret@queue.example:5672//"
    response = run()
    assert response.status_code == 503
    assert "queue.example" in response.content.decode() and "secret" not in response.content.decode()


def test_a_waiting_task_is_asked_for_every_second(ask):
    assert 'hx-trigger="every 1s"' in ask(headers=None).content.decode()


def test_nothing_is_repeated_while_nothing_changes(ask):
    assert ask().status_code == 204
    assert ask(age_seconds=11, query="?late").status_code == 204


def test_a_task_that_no_worker_takes_is_told_with_a_remedy(ask):
    page = ask(age_seconds=11).content.decode()
    assert "No worker has taken the task yet" in page and f"celery -A {current_app.main} worker" in page


@pytest.mark.parametrize(
    ("state", "value", "text"),
    [("SUCCESS", 32, "<strong>32</strong>"), ("FAILURE", ValueError("secret"), "The task failed")],
)
def test_a_finished_task_is_asked_for_no_more(ask, state, value, text):
    current_app.backend.store_result("some-task", value, state)
    page = ask().content.decode()
    assert text in page and "hx-trigger" not in page and "secret" not in page


def test_the_page_gives_up_in_the_end(ask):
    page = ask(age_seconds=601).content.decode()
    assert "No result after ten minutes" in page and "hx-trigger" not in page


def test_a_made_up_task_is_not_found(client):
    assert client.get(reverse("tasks:result", args=["some-task"])).status_code == 404


def test_without_javascript_the_result_has_a_page_that_reloads(client, run, ask, monkeypatch):
    sent = current_app.AsyncResult("some-task")
    monkeypatch.setattr("celery.Task.delay", lambda *args: sent)
    page = client.get(run(headers=None).url)
    assert page.headers["Refresh"] == "1" and "<html" in page.content.decode()


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("rediss://127.0.0.1", "Redis"),
        ("sentinel://127.0.0.1", "Redis"),
        ("amqp://127.0.0.1", "RabbitMQ"),
        ("sqs://", "sqs"),
    ],
)
def test_the_home_page_lists_celery_with_its_broker(settings, url, broker):
    settings.CELERY_BROKER_URL = url
    assert f"Celery with {broker}" in home.switched_on()


def test_without_a_broker_the_home_page_says_so(settings):
    settings.CELERY_TASK_ALWAYS_EAGER = True
    assert "Celery with no broker" in home.switched_on()


@pytest.mark.parametrize("names", [["dashboard"], []])
def test_what_adds_a_command_to_celery_is_listed(monkeypatch, names):
    commands = {"celery.commands": [SimpleNamespace(name=name) for name in names]}
    monkeypatch.setattr("apps.tasks.apps.entry_points", lambda group: commands[group])
    assert ("Dashboard" in home.switched_on()) == bool(names)


def test_the_panel_is_on_the_home_page(client):
    assert "Run a task" in client.get(reverse("web:home")).content.decode()


def test_production_shows_it_to_staff_only(client, run, ask, settings, eager):
    settings.DEBUG = False
    assert run().status_code == ask().status_code == 404
    assert "Background tasks" not in client.get(reverse("web:home")).content.decode()
    client.force_login(User.objects.create_user("staff@example.com", is_staff=True))
    assert run().status_code == 200
    assert "Run a task" in client.get(reverse("web:home")).content.decode()


def test_the_home_page_survives_the_end_of_the_example(client, run, monkeypatch):
    monkeypatch.delattr(example_tasks, "add")
    page = client.get(reverse("web:home")).content.decode()
    assert "Background tasks" in page and "Run a task" not in page
    assert run().status_code == 404
