"""A page whose task is retried, sends another one and fails: what logs and traces have to follow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from tests.browser import PATIENCE_SECONDS, free_port
from tests.processes import Program, redis_server, run, started

TRIALS = """
import logging
from celery import shared_task
from django.db import transaction
from django.http import HttpResponse
from django.urls import path
from django.contrib.auth.decorators import login_not_required
from acme.urls import urlpatterns

logger = logging.getLogger(__name__)

@shared_task(bind=True, default_retry_delay=1, durable=True)
def stumble(self):
    logger.warning("attempt %s", self.request.retries)
    if not self.request.retries:
        self.retry(countdown=1)
    finish.delay()

@shared_task
def finish():
    print("printed")
    raise ValueError("on purpose")

@login_not_required
def page(request):
    with transaction.atomic():
        stumble.delay()
        logger.warning("before the commit")
    return HttpResponse()

urlpatterns = [*urlpatterns, path("trial", page)]
"""
FLUSH = "import django; django.setup(); from apps.tasks.sending.outbox import send_waiting; send_waiting.delay()"


class Trial(NamedTuple):
    """A web server with its address, and a worker; what the first visit was answered, and what the second one was."""

    address: str
    web: Program
    worker: Program
    answers: tuple[Mapping[str, str], Mapping[str, str]]


@contextmanager
def visited(
    project: Path, folder: Path, first: Mapping[str, str], second: Mapping[str, str], **variables: str
) -> Iterator[Trial]:
    """Visit the page with both sets of headers, and run its tasks. At the second visit the broker is away."""
    (project / "acme/trials.py").write_text(TRIALS)
    with (project / "acme/settings.py").open("a") as settings:
        settings.write('\nROOT_URLCONF = "acme.trials"\n')
    programs, port = project / ".venv/bin", str(free_port())
    address = f"127.0.0.1:{port}"
    server, ready = (programs / "gunicorn", "acme.wsgi", "--bind", address, "--access-logfile=-"), "Booting worker"
    if (programs / "uvicorn").exists():
        server, ready = (programs / "uvicorn", "acme.asgi:application", "--port", port), "Uvicorn running"
    worker = (programs / "celery", "-A", "acme", "worker", "-l", "info", "--include=acme.trials", "-c", "2")
    with redis_server(folder) as (_, url):
        variables |= {"CELERY_BROKER_URL": url, "DEBUG": "1"}
        run(project, programs / "python", "manage.py", "migrate", **variables)
        with started(project, folder / "web.log", *server, **variables) as web:
            web.says(ready)
            answers = [visit(address, first)]
            # A replica takes nothing, so the task goes to the outbox. If the server hung, it might send the task later.
            run(project, "redis-cli", "-u", url, "replicaof", "127.0.0.1", "1")
            answers.append(visit(address, second))
            run(project, "redis-cli", "-u", url, "replicaof", "no", "one")
            run(project, programs / "python", "-c", FLUSH, DJANGO_SETTINGS_MODULE="acme.settings", **variables)
            with started(project, folder / "worker.log", *worker, **variables) as program:
                yield Trial(address, web, program, (answers[0], answers[1]))


def visit(address: str, headers: Mapping[str, str], page: str = "trial") -> Mapping[str, str]:
    """Open the page with these headers; return those of the answer."""
    with urlopen(Request(f"http://{address}/{page}", headers=dict(headers)), timeout=PATIENCE_SECONDS) as answer:
        return answer.headers
