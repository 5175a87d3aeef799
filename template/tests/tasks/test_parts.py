"""The inner parts of Celery and kombu are looked at, and what does not fit them is left to Celery."""

import pytest

pytest.importorskip("celery")

from celery import Celery

from apps.tasks.broker import parts
from apps.tasks.console import checks

REDIS = "apps.tasks.broker.redis_transport:Transport"
PATIENCE = "apps.tasks.worker.stopping:Patience"


@pytest.mark.parametrize("part", sorted({part for _, *listed in parts.PARTS.values() for part in listed}))
def test_each_part_is_in_the_releases_that_are_installed(part):
    assert parts.fits(part)


@pytest.mark.parametrize(
    "part",
    [
        "kombu.transport.nothing:Channel",
        "kombu.transport.redis:Channels",
        "kombu.transport.redis:Channel._brpop_start(patience)",
        "kombu.transport.redis:Channel._brpop_begin(timeout)",
        "kombu.transport.redis:Channel._in_pool",
        "celery.worker.state:running_requests",
    ],
)
def test_a_part_that_was_renamed_or_takes_other_parameters_does_not_fit(part):
    assert not parts.fits(part)


@pytest.fixture
def changed(monkeypatch):
    """Other releases, in which two parts have changed."""
    parts.misfits.cache_clear()
    monkeypatch.setattr(parts, "TESTED", {"celery": "5.6", "kombu": "5.6"})
    changes = {REDIS: "kombu.transport.redis:Channel._poll(patience)", PATIENCE: "celery.worker.state:stopping"}
    listed = {ours: (*found, changes[ours]) if ours in changes else found for ours, found in parts.PARTS.items()}
    monkeypatch.setattr(parts, "PARTS", listed)
    monkeypatch.setattr(parts, "TRANSPORT_ALIASES", {"redis": REDIS, "memory": "kombu.transport.memory:Transport"})
    yield
    parts.misfits.cache_clear()


@pytest.mark.usefixtures("changed")
def test_what_does_not_fit_is_left_to_celery():
    app = Celery("changed", set_as_current=False)
    app.steps["worker"].add(PATIENCE)
    app.steps["consumer"].add("apps.tasks.worker.conditions:Upkeep")
    app.amqp_cls = "apps.tasks.broker.queues:ProjectAMQP"
    parts.use_what_fits(app)
    assert parts.TRANSPORT_ALIASES["redis"] == "kombu.transport.redis:Transport"
    assert not app.steps["worker"]
    # And what fits stays.
    assert app.steps["consumer"] and app.amqp_cls == "apps.tasks.broker.queues:ProjectAMQP"


@pytest.mark.usefixtures("changed")
def test_a_sentence_names_what_does_not_fit_and_the_part():
    assert set(parts.misfits()) == {REDIS, PATIENCE}
    assert "which changed kombu.transport.redis:Channel._poll(patience)" in parts.misfits()[REDIS]
    assert [message.id for message in checks.check_parts()] == ["tasks.W041"] * 2


def test_with_the_tested_releases_nothing_is_looked_at(monkeypatch):
    parts.misfits.cache_clear()
    monkeypatch.setattr(parts, "fits", None)
    assert parts.misfits() == {}
