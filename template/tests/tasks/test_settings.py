"""The settings of this project lose no task."""

import pytest

pytest.importorskip("celery")

from celery import current_app
from django.core.checks import run_checks

from apps.tasks.broker.options import local_broker_url


def test_nothing_is_wrong_with_the_settings_and_the_tasks(settings, monkeypatch):
    """If this fails, follow the hint of the message, or silence it with SILENCED_SYSTEM_CHECKS."""
    settings.DEBUG = False
    for name in [name for name in current_app.tasks if name.startswith("tests.")]:
        monkeypatch.delitem(current_app.tasks, name)
    monkeypatch.setitem(current_app.conf, "broker_url", local_broker_url(settings.BASE_DIR))
    problems = [str(message) for message in run_checks(tags=["tasks"]) if not message.is_silenced()]
    assert not problems, "\n".join(problems)
