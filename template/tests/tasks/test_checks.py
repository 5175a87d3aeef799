"""Settings that lose tasks are refused, each with its remedy, whatever the settings of the project are."""

import pytest

pytest.importorskip("celery")

import socket

from celery import Task, current_app
from django.core.checks import Error, Warning, run_checks
from django.core.management import call_command
from kombu import Queue

from apps.background import task
from apps.tasks.broker.options import broker_options
from apps.tasks.console import checks, queue_checks
from apps.tasks.console.rules import RULES, SCHEDULER
from apps.tasks.sending import backend

WORKERS = {"BACKEND": "apps.tasks.sending.backend.WorkerBackend", "QUEUES": []}
REDIS, RABBITMQ = "redis://127.0.0.1:6379/0", "amqp://guest:guest@127.0.0.1:5672//"


# Settings of Celery with which nothing is found.
SAFE = {
    "beat_scheduler": SCHEDULER,
    "broker_connection_retry": True,
    "task_acks_late": True,
    "task_always_eager": False,
    "task_default_delivery_mode": "persistent",
    "task_default_queue": "celery",
    "task_ignore_result": True,
    "task_publish_retry_policy": {"max_retries": 1},
    "task_queues": None,
    "task_reject_on_worker_lost": True,
    "task_routes": None,
    "task_soft_time_limit": 270,
    "task_time_limit": 300,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_pool": "prefork",
    "worker_prefetch_multiplier": 1,
}


@pytest.fixture(autouse=True)
def production(settings, monkeypatch):
    """Safe settings in production, without the tasks of the project; `use(url)` names another kind of broker."""
    settings.DEBUG, settings.USE_TZ, settings.TIME_ZONE = False, True, "UTC"
    settings.DURABLE_TASK_RESEND_SECONDS, settings.SCHEDULED_TASKS = 900, {}
    for name, value in SAFE.items():
        monkeypatch.setitem(current_app.conf, name, value)
    for module in (checks, queue_checks):
        monkeypatch.setattr(module, "project_tasks", tasks_of_tests)
    # Celery reads queues and routes once.
    app = current_app._get_current_object()
    monkeypatch.setitem(vars(app), "amqp", type(app.amqp)(app))
    use(monkeypatch, REDIS)


@pytest.fixture
def plain_task():
    """A task that asks for nothing."""

    # Of this application alone: what is shared is made anew in each that comes later.
    @current_app.task(name="tests.checks.task", lazy=False, shared=False)
    def task(): ...

    yield task
    current_app.tasks.unregister(task.name)


def tasks_of_tests():
    return [task for name, task in current_app.tasks.items() if name.startswith(("tests.checks.", __name__))]


def use(monkeypatch, url, **options):
    """Let Celery use the broker at the URL, with these transport options beside those of the project."""
    monkeypatch.setitem(current_app.conf, "broker_url", url)
    monkeypatch.setitem(current_app.conf, "broker_transport_options", broker_options(url, 600) | options)


def found():
    """What the checks find, by id."""
    return {message.id: message for message in run_checks(tags=["tasks"])}


@pytest.mark.parametrize(("zone", "expected"), [("America/New_York", {"tasks.W013"}), ("Asia/Tokyo", set())])
def test_a_database_that_cannot_tell_a_doubled_hour_is_told_of(settings, zone, expected):
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    assert set(found()) == expected


@pytest.mark.parametrize("url", [REDIS, RABBITMQ])
def test_of_safe_settings_nothing_is_found(monkeypatch, url):
    use(monkeypatch, url)
    assert found() == {}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"task_soft_time_limit": 300}, "tasks.E001"),
        ({"task_time_limit": 600}, "tasks.E002 tasks.W011"),
        ({"task_time_limit": None}, "tasks.E002 tasks.W011"),
        ({"task_acks_late": False}, "tasks.E003"),
        ({"task_reject_on_worker_lost": False}, "tasks.E004"),
        ({"worker_cancel_long_running_tasks_on_connection_loss": True}, "tasks.E005"),
        ({"worker_prefetch_multiplier": 0}, "tasks.E006"),
        ({"task_default_delivery_mode": 1}, "tasks.E008"),
        ({"worker_prefetch_multiplier": 4}, "tasks.W003"),
        ({"task_publish_retry_policy": {"max_retries": None}}, "tasks.W005"),
        ({"broker_connection_retry": False}, "tasks.W006"),
        ({"task_acks_on_failure": False}, "tasks.W007"),
        ({"task_always_eager": True}, "tasks.W008"),
        ({"beat_scheduler": "django_celery_beat.schedulers:DatabaseScheduler"}, "tasks.W009"),
        ({"worker_pool": "threads"}, "tasks.W010"),
        ({"worker_pool": "prefork"}, ""),
        ({"task_ignore_result": False}, "tasks.W012"),
    ],
    ids=str,
)
def test_a_setting_that_loses_tasks_is_found(monkeypatch, changed, expected):
    for name, value in changed.items():
        monkeypatch.setitem(current_app.conf, name, value)
    assert set(found()) == set(expected.split())


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        (REDIS, {"visibility_timeout": 300}, {"tasks.E002"}),
        (REDIS, {"ack_emulation": False}, {"tasks.E009"}),
        (REDIS, {"socket_timeout": None}, {"tasks.W004"}),
        (RABBITMQ, {"confirm_publish": False}, {"tasks.E007"}),
    ],
)
def test_an_option_of_the_broker_that_loses_tasks_is_found(monkeypatch, url, options, expected):
    use(monkeypatch, url, **options)
    assert expected <= set(found())


@pytest.mark.parametrize(("limit", "expected"), [(None, "tasks.W001"), (1800, "tasks.W002")])
def test_on_rabbitmq_a_task_may_not_take_for_ever_either(monkeypatch, limit, expected):
    use(monkeypatch, RABBITMQ)
    monkeypatch.setitem(current_app.conf, "task_time_limit", limit)
    assert set(found()) == {expected, "tasks.W011"}


def test_durable_tasks_are_not_sent_again_too_soon(settings):
    settings.DURABLE_TASK_RESEND_SECONDS = 600
    assert set(found()) == {"tasks.W011"}


def test_every_rule_names_a_remedy_and_has_a_number_of_its_own():
    assert all(rule.hint.endswith(".") for rule in RULES)
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_what_certainly_loses_tasks_is_an_error(monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_acks_late", False)
    monkeypatch.setitem(current_app.conf, "worker_prefetch_multiplier", 4)
    assert {type(message) for message in found().values()} == {Error, Warning}


# Tasks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ""),
        ({"time_limit": 500, "soft_time_limit": 400}, ""),
        ({"time_limit": 100}, "tasks.E020"),
        ({"time_limit": 600}, "tasks.E021"),
        ({"acks_late": False}, "tasks.W020"),
        ({"reject_on_worker_lost": False}, "tasks.W021"),
        ({"base": Task}, "tasks.W022"),
    ],
    ids=str,
)
def test_the_options_of_each_task_are_looked_at(options, expected):
    # Of this application alone: what is shared is made anew in each that comes later.
    @current_app.task(name="tests.checks.task", lazy=False, shared=False, **options)
    def task(): ...

    try:
        messages = found()
        assert set(messages) == set(expected.split())
        assert all(message.obj == "tests.checks.task" for message in messages.values())
    finally:
        current_app.tasks.unregister("tests.checks.task")


def test_limits_of_the_settings_are_told_once_and_not_for_each_task(monkeypatch, plain_task):
    monkeypatch.setitem(current_app.conf, "task_time_limit", 600)
    # Celery copies it to each task that has none of its own.
    monkeypatch.setattr(plain_task, "time_limit", 600)
    assert set(found()) == {"tasks.E002", "tasks.W011"}


# Queues ---------------------------------------------------------------------

EMIALS = {"queue": "emials"}


def test_queues_of_the_settings_may_be_named_everywhere(settings, monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_queues", [Queue("celery"), Queue("reports")])
    monkeypatch.setitem(current_app.conf, "task_routes", {"acme.*": {"queue": "reports"}, "other": "celery"})
    settings.SCHEDULED_TASKS = {"greet": {"task": "greet", "schedule": 60, "queue": "reports"}}
    assert found() == {}


@pytest.mark.parametrize(
    "routes",
    [
        {"some.task": EMIALS},
        {"some.*": "emials"},
        [{"some.task": {"queue": "celery"}}, [("other.task", {"queue": Queue("emials")})]],
        lambda name, args, kwargs, options, task=None, **more: EMIALS,
    ],
    ids=["task", "pattern", "list", "function"],
)
def test_a_route_to_a_queue_of_another_name_is_found(monkeypatch, plain_task, routes):
    monkeypatch.setitem(current_app.conf, "task_routes", routes)
    assert told() == ["CELERY_TASK_ROUTES names the queue emials, which the settings do not have."]


def test_a_route_that_needs_the_arguments_is_left_alone(monkeypatch, plain_task):
    monkeypatch.setitem(current_app.conf, "task_routes", lambda name, args, *rest, **more: args[0])
    assert told() == []


@pytest.mark.parametrize("entries", [["greet"], {"greet": None}, {"greet": {"queue": 1}}])
def test_what_is_no_entry_is_left_to_the_command(settings, entries):
    settings.SCHEDULED_TASKS = entries
    assert told() == []


def test_a_task_with_a_queue_of_another_name_is_found():
    @current_app.task(name="tests.checks.task", lazy=False, shared=False, queue="emials")
    def task(): ...

    try:
        assert told() == ["The task tests.checks.task names the queue emials, which the settings do not have."]
    finally:
        current_app.tasks.unregister("tests.checks.task")


def test_a_task_of_djangos_framework_with_a_queue_of_another_name_is_found(settings):
    settings.TASKS = {"default": WORKERS}
    task(queue_name="emials")(function_of_a_task)
    name = f"{__name__}.function_of_a_task"
    try:
        assert told() == [f"The task {name} names the queue emials, which the settings do not have."]
    finally:
        current_app.tasks.unregister(name)
        backend._registered.pop(name)


def function_of_a_task(): ...


def test_an_allowed_queue_of_another_name_is_found(settings):
    settings.TASKS = {"default": WORKERS | {"QUEUES": ["default", "celery", "emials"]}}
    assert told() == ["TASKS['default'] names the queue emials, which the settings do not have."]


def test_an_entry_with_a_queue_of_another_name_is_found(settings):
    settings.SCHEDULED_TASKS = {"greet": {"task": "greet", "schedule": 60, "queue": "emials"}}
    assert told() == ["SCHEDULED_TASKS['greet'] names the queue emials, which the settings do not have."]


def test_a_default_queue_without_a_worker_is_found(monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_queues", {"reports": {}})
    assert told() == ["CELERY_TASK_DEFAULT_QUEUE names the queue celery, which the settings do not have."]


@pytest.mark.parametrize(
    ("queues", "remedy"),
    [
        (None, "Correct the name; or set CELERY_TASK_QUEUES to [Queue('celery'), Queue('emials')], of kombu, and"),
        ([Queue("celery"), Queue("emails")], "Correct the name to emails; or add Queue('emials') to CELERY_TASK"),
    ],
)
def test_the_remedy_is_told(settings, monkeypatch, queues, remedy):
    monkeypatch.setitem(current_app.conf, "task_queues", queues)
    settings.SCHEDULED_TASKS = {"greet": {"task": "greet", "schedule": 60, "queue": "emials"}}
    assert found()["tasks.W040"].hint.startswith(remedy)


def told():
    """What the checks find, in their words."""
    return [message.msg for message in run_checks(tags=["tasks"])]


# The broker -----------------------------------------------------------------


@pytest.mark.parametrize("command", [["check"], ["check", "--tag=tasks"], ["makemigrations", "--check"]], ids=" ".join)
def test_a_command_leaves_the_broker_alone_unless_it_is_asked_to_connect(monkeypatch, db, command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("CELERY_BROKER_URL", f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        call_command(*command)
        with pytest.raises(BlockingIOError):
            server.accept()
        call_command("check", "--tag=tasks", "--deploy")
        server.accept()[0].close()


# The cache ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broker", "cache", "same"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0", True),
        ("redis://127.0.0.1:6379/0", "redis://localhost", True),
        ("redis://", "redis://:password@127.0.0.1:6379/", True),
        ("rediss://queue.example/3", "redis://user:password@QUEUE.example:6379?db=3", True),
        ("redis+socket:///run/redis.sock", "unix:///run/redis.sock?db=0", True),
        ("redis+socket:///run/redis.sock?virtual_host=2", "unix:///run/redis.sock?db=2", True),
        ("redis://a.example/0", "redis://b.example/0,redis://a.example/0", True),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/1", False),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6380/0", False),
        ("redis://127.0.0.1:6379/0", "redis://cache.example/0", False),
        ("redis+socket:///run/redis.sock", "unix:///run/redis.sock?db=1", False),
        ("amqp://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0", False),
        ("redis://127.0.0.1:6379/0", "", False),
    ],
)
def test_a_cache_that_shares_the_database_of_the_queue_is_refused(settings, monkeypatch, broker, cache, same):
    use(monkeypatch, broker)
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": cache}}
    assert ("tasks.E030" in found()) == same


def test_a_cache_may_name_its_database_in_its_options(settings, monkeypatch):
    # There django-environ puts what comes after the question mark of CACHE_URL.
    use(monkeypatch, "redis://127.0.0.1:6379/3")
    settings.CACHES = {"default": {"LOCATION": "redis://localhost", "OPTIONS": {"db": "3"}}}
    assert "tasks.E030" in found()
