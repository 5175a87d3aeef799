"""A worker counts its tasks. What its processes count together is proven by the template's own tests."""

from types import SimpleNamespace

import pytest

pytest.importorskip("celery")

from billiard.exceptions import TimeLimitExceeded
from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector

from apps.metrics import counting


@pytest.fixture
def count(monkeypatch):
    """Return the figures of a worker that counts from now on: `count(name, **labels)`."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    figures = counting.Counting("9808")
    monkeypatch.setattr(counting.Worker, "counting", figures)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, figures.folder.name)
    yield lambda name, **labels: registry.get_sample_value(name, {"task": "some.task"} | labels)
    figures.folder.cleanup()


def task(**request):
    context = {"id": "1", "is_eager": False, "delivery_info": {}} | request
    return SimpleNamespace(name="some.task", request=type("Request", (dict,), {"__getattr__": dict.get})(context))


@pytest.mark.parametrize(
    "state, outcome", [("SUCCESS", "succeeded"), ("FAILURE", "failed"), ("RETRY", "retried"), ("IGNORED", "ignored")]
)
def test_a_task_is_counted_by_its_outcome(count, state, outcome):
    counting.count_start(task())
    counting.count_end(task(), "1", state)
    assert count("tasks_started_total") == count("tasks_ended_total", outcome=outcome) == 1
    assert count("task_run_seconds_count") == 1


def test_a_task_that_is_killed_has_failed_and_is_counted_once(count):
    for _ in range(2):
        counting.count_killed(task(), "1", TimeLimitExceeded(300))
    assert count("tasks_ended_total", outcome="failed") == 1
    counting.count_start(task(id="2"))
    counting.count_killed(task(), "2", TimeLimitExceeded(300))
    counting.count_end(task(), "2", "FAILURE")
    assert count("tasks_ended_total", outcome="failed") == 2
    counting.count_again(SimpleNamespace(id="1"))
    counting.count_killed(task(), "1", TimeLimitExceeded(300))
    assert count("tasks_ended_total", outcome="failed") == 3


def test_an_error_that_the_function_raised_is_counted_where_it_ran(count):
    counting.count_killed(task(), "1", ValueError())
    assert count("tasks_ended_total", outcome="failed") is None


def test_the_wait_is_measured_unless_the_message_was_delivered_before(count):
    counting.count_start(task(**{counting.WAITS_SINCE: 1.0}))
    counting.count_start(task(**{counting.WAITS_SINCE: 1.0, "delivery_info": {"redelivered": True}}))
    assert count("tasks_started_total") == 2
    assert count("task_wait_seconds_count") == count("task_wait_seconds_bucket", le="+Inf") == 1


def test_an_eager_task_is_not_counted(count):
    counting.count_start(task(is_eager=True))
    counting.count_end(task(), "1", "SUCCESS")
    assert count("tasks_started_total") is None


def test_a_worker_without_a_port_counts_nothing(settings, monkeypatch):
    settings.WORKER_METRICS_PORT = ""
    monkeypatch.setattr(counting.Worker, "counting", None)
    counting.begin()
    assert counting.Worker.counting is None


def test_a_port_that_is_taken_is_told_and_the_worker_works_on(count, caplog):
    first, second = counting.Worker.counting, SimpleNamespace(address="", folder=counting.Worker.counting.folder)
    first.address = "127.0.0.1:0"
    first.serve()
    try:
        second.address = f"127.0.0.1:{first.server.server_port}"
        counting.Counting.serve(second)
        assert f"WORKER_METRICS_PORT={second.address}" in caplog.text
    finally:
        first.server.shutdown()
        first.server.server_close()
