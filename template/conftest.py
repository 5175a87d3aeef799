"""Fixtures for the tests of all apps."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery.signals import after_task_publish
from kombu.transport import memory


@pytest.fixture(autouse=True)
def empty_broker() -> None:
    """Begin each test with a broker without messages. tests/settings.py keeps the broker in this process."""
    memory.Channel.queues.clear()


@pytest.fixture
def sent(settings: Any) -> Iterator[list[tuple[str, tuple, dict]]]:
    """Return the tasks that the test sends, each as (name, args, kwargs). None of them runs, not even with `@task`."""
    settings.TASKS = settings.TASKS | {"default": settings.TASKS["default"] | {"OPTIONS": {}}}
    calls = []

    def note(sender: str, body: Any, **details: object) -> None:
        args, kwargs, _ = body
        calls.append((sender, tuple(args), dict(kwargs)))

    after_task_publish.connect(note)
    yield calls
    after_task_publish.disconnect(note)
