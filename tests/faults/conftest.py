"""Our project, as every fault finds it, and what became of its tasks."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.dev_support import left_in
from tests.faults.faults import Outcomes
from tests.faults.subjects import Subject, our_project
from tests.processes import rabbitmq_server


@pytest.fixture(scope="session")
def ours(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Our project, installed."""
    return our_project(template_repo, tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a RabbitMQ that the faults share."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as (_, url):
        yield int(url.rstrip("/").rpartition(":")[2])


@pytest.fixture
def outcomes(
    request: pytest.FixtureRequest, ours: Subject, tmp_path: Path, record_property: Callable[[str, object], None]
) -> Outcomes:
    """Let a fault happen wherever it can; return what became of the tasks, and enter it into the table."""
    fault, enqueues = request.param
    port = request.getfixturevalue("rabbitmq") if "rabbitmq" in fault.brokers else None
    outcomes = fault.happen_everywhere(replace(ours, enqueues=enqueues), tmp_path.resolve(), port)
    name = f"{fault.name}; Django's tasks" if enqueues else fault.name
    for (broker, pool), outcome in outcomes.items():
        record_property("fault", (name, broker, pool, asdict(outcome)))
    assert not left_in(tmp_path)
    return outcomes
