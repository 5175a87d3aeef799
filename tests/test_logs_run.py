"""With LOG_FORMAT=json each line is an object, and one id leads from a page to its tasks and their retries."""

import json
import os
import re
import signal
from urllib.request import Request, urlopen

import pytest

from tests.browser import PATIENCE_SECONDS, free_port
from tests.dev_support import wait_until
from tests.processes import Program, installed, redis_server, run, started

pytestmark = pytest.mark.run

TRIALS = """
import logging
from celery import shared_task
from django.db import transaction
from django.http import HttpResponse
from django.urls import path
from django.contrib.auth.decorators import login_not_required
from acme.urls import urlpatterns

logger = logging.getLogger(__name__)

@shared_task(bind=True, default_retry_delay=1)
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
FLUSH = "import django; django.setup(); from apps.tasks.sending.outbox import send_waiting; send_waiting()"


def lines(program: Program) -> list[dict[str, str]]:
    """Return the lines that are objects."""
    return [json.loads(line) for line in program.text.splitlines() if line.startswith("{")]


def visit(address: str, identity: str) -> str:
    """Open the page of the trial with the id of a proxy; returns that of the answer."""
    request = Request(f"http://{address}/trial", headers={"X-Request-ID": identity})
    with urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return answer.headers["X-Request-ID"]


def test_the_id_of_a_page_leads_to_its_task_after_the_commit_through_the_outbox_and_through_a_retry(
    template_repo, tmp_path
):
    project, programs = installed(template_repo, tmp_path, "3.13", use_flower=False)
    (project / "acme/trials.py").write_text(TRIALS)
    with (project / "acme/settings.py").open("a") as settings:
        settings.write('\nROOT_URLCONF = "acme.trials"\n')
    address = f"127.0.0.1:{free_port()}"
    with redis_server(tmp_path) as (server, url):
        variables = {"CELERY_BROKER_URL": url, "DEBUG": "1", "LOG_FORMAT": "json"}
        run(project, programs / "python", "manage.py", "migrate", **variables)
        gunicorn = (programs / "gunicorn", "acme.wsgi", "--bind", address, "--access-logfile=-")
        worker = (programs / "celery", "-A", "acme", "worker", "-l", "info", "--include=acme.trials", "-c", "2")
        with started(project, tmp_path / "web.log", *gunicorn, **variables) as web:
            web.says("Booting worker")
            assert visit(address, "first-visit") == "first-visit"
            # While the broker does not answer, the task goes to the outbox.
            os.kill(server.process.pid, signal.SIGSTOP)
            assert visit(address, "second-visit") == "second-visit"
            os.kill(server.process.pid, signal.SIGCONT)
            run(project, programs / "python", "-c", FLUSH, DJANGO_SETTINGS_MODULE="acme.settings", **variables)
            with started(project, tmp_path / "worker.log", *worker, **variables) as program:

                def failed() -> set[str]:
                    return {each["request_id"] for each in lines(program) if "on purpose" in each.get("exception", "")}

                assert wait_until(lambda: failed() >= {"first-visit", "second-visit"}), program.text
        for visitor in ("first-visit", "second-visit"):
            assert_traced(visitor, lines(web), lines(program))
        assert plain_lines(web, "Booting worker") == plain_lines(program, "mingle: all alone") == []


def assert_traced(visitor: str, web: list[dict[str, str]], worker: list[dict[str, str]]) -> None:
    """Fail unless the lines of a page and of its tasks, and no other ones, have the id of its visitor."""
    assert [each["message"] for each in web if each.get("request_id") == visitor][:1] == ["before the commit"]
    own = [each for each in worker if each.get("request_id") == visitor]
    attempts = [each for each in own if each["message"].startswith("attempt")]
    # Redis may have got a message although it has not answered. A task may run twice.
    assert {(each["message"], each["task_name"]) for each in attempts} == {
        ("attempt 0", "acme.trials.stumble"),
        ("attempt 1", "acme.trials.stumble"),
    }
    [task] = {each["task_id"] for each in attempts}
    said = [each for each in worker if each.get("task_id") == task]
    for words in ("received", "retry", "succeeded"):
        assert any(words in each["message"] for each in said), words
    assert {each["task_name"] for each in own if each["message"] == "printed"} == {"acme.trials.finish"}


def plain_lines(program: Program, words: str) -> list[str]:
    """Return the lines after these words that are no objects, but for those of a main process about itself."""
    after = program.text.partition(words)[2].partition("\n")[2].splitlines()
    # Gunicorn's main process loads no settings, and Celery prints when it is told to stop.
    own = re.compile(rf"\[{program.process.pid}\]|^worker: (Warm|Hitting)|^$")
    return [line for line in after if not (line.startswith("{") or own.search(line))]
