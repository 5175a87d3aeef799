"""What is sent while RabbitMQ has an alarm waits in the database, once, and runs when the alarm is over."""

from pathlib import Path

import psutil
import pytest

from tests.dev_support import left_in, wait_until
from tests.processes import installed, needed, rabbitmq_server, run, sqlite, started

pytestmark = [pytest.mark.run, pytest.mark.slow]

WORDS = "RabbitMQ takes nothing now, because its memory or its disk is full."
TRIALS = """
from acme.celery import app

@app.task
def note(path):
    with open(path, "a") as file:
        file.write("run\\n")
"""
# Two tasks are sent as after a commit, which waits for nothing, and one by a sender who wants to know.
SEND = """
import sys, django; django.setup()
from acme.trials import note
from apps.tasks.console import health
from apps.tasks.sending import send
for path in sys.argv[1:]:
    send(note, path)
try:
    note.delay("nowhere")
except Exception as error:
    print("sender:", type(error).__name__, error)
try:
    health.broker_accepts_connections()
except Exception as error:
    print("health:", error)
"""
SEND_WAITING = "import django; django.setup(); from apps.tasks.sending.outbox import send_waiting; send_waiting()"


def test_an_alarm_of_rabbitmq_refuses_tasks_at_once_and_those_after_a_commit_run_later(template_repo, tmp_path):
    answers = {"celery_broker": "rabbitmq", "use_flower": False}
    project, programs = installed(template_repo, tmp_path, "3.13", **answers)
    (project / "acme/trials.py").write_text(TRIALS)
    (folder := tmp_path / "rabbitmq").mkdir()
    with rabbitmq_server(folder) as (server, url):
        node = psutil.Process(server.process.pid).environ()

        def set_memory(*limit: str) -> None:
            control = needed("/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl")
            run(folder, control, "-n", node["RABBITMQ_NODENAME"], "set_vm_memory_high_watermark", *limit, **node)

        def python(script: str, *arguments: str | Path) -> str:
            return run(project, programs / "python", "-c", script, *arguments, **variables)

        variables = {"CELERY_BROKER_URL": url, "DEBUG": "1", "DJANGO_SETTINGS_MODULE": "acme.settings"}
        run(project, programs / "python", "manage.py", "migrate", **variables)
        command = (programs / "celery", "-A", "acme", "worker", "-l", "info", "--include", "acme.trials")
        with started(project, tmp_path / "worker.log", *command, **variables) as worker:
            worker.says(r" ready\.")
            set_memory("absolute", "1")
            traces = [tmp_path / "one", tmp_path / "two"]
            printed = python(SEND, *traces)
            assert f"sender: OperationalError {WORDS}" in printed and f"health: takes no tasks: {WORDS}" in printed
            [[waiting, error]] = sqlite(project, "SELECT count(*), min(error) FROM tasks_outgoingtask")
            assert waiting == 2 and error == WORDS, worker.text
            assert not any(trace.exists() for trace in traces)
            set_memory("0.4")
            python(SEND_WAITING)
            assert wait_until(lambda: all(trace.exists() for trace in traces)), worker.text
            assert not sqlite(project, "SELECT 1 FROM tasks_outgoingtask")
            assert "Traceback" not in worker.text
        # The second one was not handed to it before.
        assert traces[1].read_text() == "run\n"
    assert not left_in(project)
