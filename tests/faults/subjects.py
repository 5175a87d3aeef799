"""The projects that faults happen to: ours, ours with a setting changed, and that of Celery's own first steps."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import add_gevent, installed, run

PROBE = Path(__file__).with_name("probe")
Settings = Mapping[str, Any]

# What "First steps with Django" of Celery's documentation adds to `startproject`, with the extension for beat.
FIRST_STEPS = {
    "__init__.py": """
from .celery import app as celery_app

__all__ = ("celery_app",)
""",
    "celery.py": """
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "acme.settings")

app = Celery("acme")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "settings.py": """
import os

INSTALLED_APPS += ["django_celery_beat"]
DEBUG = False
ALLOWED_HOSTS = ["*"]

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_RESULT_BACKEND = CELERY_BROKER_URL if CELERY_BROKER_URL.startswith("redis") else "rpc://"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_TASK_TRACK_STARTED = True
CELERY_TASK_TIME_LIMIT = 30 * 60
""",
}


@dataclass(frozen=True)
class Subject:
    """A project with the probe's tasks, the folder of its programs, and changes to settings (None takes one out).

    With `enqueues`, the tasks are those of Django's framework instead of Celery's.
    """

    name: str
    project: Path
    programs: Path
    hardened: bool = True
    enqueues: bool = False
    settings: Settings = field(default_factory=dict)

    @property
    def database(self) -> Path:
        """The migrated database without rows that each run takes a copy of."""
        return self.project / "empty.sqlite3"

    def variables(self, **variables: str) -> dict[str, str]:
        """Return the environment of its processes, with these variables."""
        own = {
            "ALLOWED_HOSTS": "localhost",
            "CELERY_BROKER_URL": "memory://",
            "DJANGO_SETTINGS_MODULE": "probe.settings",
            "PROBE_DATABASE": str(self.database),
            "PROBE_ENQUEUES": "1" if self.enqueues else "",
            "PROBE_SETTINGS": "[]",
            "PYTHONPATH": str(self.project),
            "SECRET_KEY": "not-for-production",
        }
        return own | variables


def our_project(template_repo: Path, folder: Path) -> Subject:
    """Generate and install our project, with gevent for the pool of that name."""
    project, programs = installed(template_repo, folder, "3.13", use_flower=False)
    add_gevent(project, programs)
    return prepared(Subject("ours", project, programs))


def bare_project(folder: Path, programs: Path) -> Subject:
    """Write the project of "First steps with Django", to run with the programs of another."""
    project = folder.resolve() / "bare"
    project.mkdir()
    run(project, programs / "django-admin", "startproject", "acme", ".")
    for name, text in FIRST_STEPS.items():
        with (project / "acme" / name).open("a") as file:
            file.write(text)
    return prepared(Subject("bare", project, programs, hardened=False))


def prepared(subject: Subject) -> Subject:
    """Add the probe's tasks to the project, and make its database."""
    shutil.copytree(PROBE, subject.project / "probe")
    run(subject.project, subject.programs / "python", "manage.py", "migrate", **subject.variables())
    return subject
