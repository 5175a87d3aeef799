"""Prometheus reads the truth: from a web server of several processes, and from a worker whose processes die."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests import template
from tests.browser import PATIENCE_SECONDS, free_port
from tests.dev_support import wait_until
from tests.processes import Program, freeze, installed, needed, redis_server, run, started

METRICS = template.ROOT / "template/apps/metrics"
TRIALS = """
import time
from contextlib import suppress
from celery.exceptions import SoftTimeLimitExceeded
from acme.celery import app

@app.task
def fail():
    raise ValueError("on purpose")

@app.task(bind=True)
def repeat(self):
    if not self.request.retries:
        self.retry(countdown=1)

@app.task(soft_time_limit=1, time_limit=2)
def hang():
    with suppress(SoftTimeLimitExceeded):
        time.sleep(600)
    time.sleep(600)
"""
SEND = """
import sys, django
django.setup()
from acme.celery import app
name, number, *arguments = sys.argv[1:]
for _ in range(int(number)):
    app.send_task(name, tuple(map(int, arguments)) if name.endswith("add") else tuple(arguments))
"""
TASKS = 40
Figures = dict[str, float]


@pytest.fixture(scope="module")
def made(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project with metrics, and with gevent for the pool of that name; and the folder of its programs."""
    folder = tmp_path_factory.mktemp("metrics")
    project, programs = installed(
        template_repo, folder, "3.13", use_flower=True, use_metrics=True, celery_pool="gevent"
    )
    (project / "acme/trials.py").write_text(TRIALS)
    return project, programs


def read(url: str, token: str = "") -> Figures:
    """Return what a page of metrics shows, by the names with their labels."""
    with urlopen(Request(url, headers={"Authorization": f"Bearer {token}"}), timeout=PATIENCE_SECONDS) as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def read_with_broker(url: str) -> Figures:
    """Return what a page shows as soon as the broker has answered in time, which it may not on a busy machine."""
    found: list[Figures] = []
    assert wait_until(lambda: found.append(read(url)) or found[-1]["broker_up"]), found
    return found[-1]


def counted(figures: Figures, name: str, task: str, outcome: str = "") -> float:
    """Return a figure of one task, or of one outcome of it."""
    labels = f'outcome="{outcome}",task="{task}"' if outcome else f'task="{task}"'
    return figures.get(f"{name}{{{labels}}}", 0.0)


def send(made: tuple[Path, Path], url: str, name: str, number: int, *arguments: str) -> None:
    variables = {"CELERY_BROKER_URL": url, "DEBUG": "1", "DJANGO_SETTINGS_MODULE": "acme.settings"}
    run(made[0], made[1] / "python", "-c", SEND, name, str(number), *arguments, **variables)


@contextmanager
def worker(made: tuple[Path, Path], url: str, log: Path, *options: str) -> Iterator[tuple[Program, str]]:
    """Run a worker with metrics; yields it and the address of its page."""
    port = free_port()
    variables = {"CELERY_BROKER_URL": url, "DEBUG": "1", "WORKER_METRICS_PORT": str(port), "TMPDIR": str(log.parent)}
    command = (made[1] / "celery", "-A", "acme", "worker", "-l", "info", "--include=acme.trials", *options)
    with started(made[0], log, *command, **variables) as program:
        program.says(r" ready\.")
        yield program, f"http://127.0.0.1:{port}/metrics"


@pytest.fixture
def broker(made, tmp_path) -> Iterator[tuple[Program, str]]:
    """A Redis, for a project whose database is new."""
    with redis_server(tmp_path) as (server, url):
        run(made[0], made[1] / "python", "manage.py", "migrate", DEBUG="1")
        yield server, url


# The worker -----------------------------------------------------------------


@pytest.mark.run
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_counts_each_task_once_whatever_becomes_of_it(made, broker, tmp_path, pool):
    url = broker[1]
    with worker(made, url, tmp_path / "worker.log", f"--pool={pool}", "--concurrency=2") as (program, page):
        # Before its first run, a task is shown with zeros.
        assert read(page)['tasks_started_total{task="acme.trials.fail"}'] == 0
        send(made, url, "acme.tasks.add", TASKS, "1", "2")
        send(made, url, "acme.trials.fail", 3)
        send(made, url, "acme.trials.repeat", 2)

        def all_ended() -> bool:
            found = read(page)
            return (
                counted(found, "tasks_ended_total", "acme.tasks.add", "succeeded") == TASKS
                and counted(found, "tasks_ended_total", "acme.trials.fail", "failed") == 3
                and counted(found, "tasks_ended_total", "acme.trials.repeat", "succeeded") == 2
            )

        assert wait_until(all_ended), program.text
        found = read(page)
        assert counted(found, "tasks_started_total", "acme.tasks.add") == TASKS
        assert counted(found, "task_wait_seconds_count", "acme.tasks.add") == TASKS
        assert counted(found, "task_run_seconds_count", "acme.tasks.add") == TASKS
        assert counted(found, "tasks_started_total", "acme.trials.repeat") == 4
        assert counted(found, "tasks_ended_total", "acme.trials.repeat", "retried") == 2
        if pool == "prefork":
            # Its process is killed at the limit, and cannot count that itself.
            send(made, url, "acme.trials.hang", 1)
            program.says("exited with 'signal 9")
            assert counted(read(page), "tasks_ended_total", "acme.trials.hang", "failed") == 1
    # The files of the figures are gone as well.
    assert not list(tmp_path.glob("worker-metrics-*"))


@pytest.mark.run
def test_when_a_process_is_killed_no_count_is_lost_and_none_goes_down(made, broker, tmp_path):
    url, succeeded = broker[1], ("tasks_ended_total", "acme.tasks.add", "succeeded")
    with worker(made, url, tmp_path / "worker.log", "--concurrency=2") as (program, page):
        for round_ in range(1, 4):
            send(made, url, "acme.tasks.add", TASKS, "1", "2")
            assert wait_until(lambda sent=round_ * TASKS: counted(read(page), *succeeded) == sent), program.text
            before, files = read(page), {path.name for path in tmp_path.glob("worker-metrics-*/*")}
            children = set(psutil.Process(program.process.pid).children())
            victim = next(iter(children))
            os.kill(victim.pid, signal.SIGKILL)
            assert wait_until(
                lambda gone=victim: (
                    len(alive := set(psutil.Process(program.process.pid).children())) == 2 and gone not in alive
                )
            )
            assert read(page) == before
            # The successor takes over the files, so they do not grow in number.
            assert len(files) <= 2 * 3
        assert counted(read(page), "tasks_started_total", "acme.tasks.add") == 3 * TASKS
        # Only the main process listens: when it is killed, its port is free although its children may live on.
        program.process.kill()
        program.process.wait()
        port = page.split(":")[2].partition("/")[0]
        assert not [each for each in psutil.net_connections("tcp") if is_listening(each, int(port))]


@pytest.mark.run
def test_what_a_killed_worker_leaves_goes_with_the_start_of_the_next_one(made, broker, tmp_path):
    url = broker[1]

    def folders() -> set[Path]:
        return set(tmp_path.glob("worker-metrics-*"))

    with worker(made, url, tmp_path / "first.log", "--concurrency=2", "--hostname=first@%h"):
        of_first = folders()
        with worker(made, url, tmp_path / "second.log", "--concurrency=2", "--hostname=second@%h") as (second, _):
            of_second = folders() - of_first
            second.kill()
        assert len(of_first) == len(of_second) == 1 and folders() == of_first | of_second
        with worker(made, url, tmp_path / "third.log", "--concurrency=2", "--hostname=third@%h"):
            assert of_first < folders() and not of_second & folders()


def is_listening(connection: object, port: int) -> bool:
    return connection.status == psutil.CONN_LISTEN and connection.laddr.port == port


# The web server -------------------------------------------------------------


@contextmanager
def web_server(made: tuple[Path, Path], url: str, log: Path) -> Iterator[tuple[Program, str]]:
    """Run a web server of two processes; yields it and the address of its page."""
    address = f"127.0.0.1:{free_port()}"
    variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
    command = (made[1] / "gunicorn", "acme.wsgi", "--bind", address, "--workers=2", "--access-logfile=-")
    with started(made[0], log, *command, **variables) as program:
        program.says(r"(Booting worker(.|\n)*){2}")
        yield program, f"http://{address}/metrics"


@pytest.mark.run
def test_every_process_of_the_web_server_tells_the_same_and_a_dead_broker_is_an_answer(made, broker, tmp_path):
    server, url = broker
    with web_server(made, url, tmp_path / "web.log") as (web, page):
        send(made, url, "acme.tasks.add", 7, "1", "2")
        found = [read_with_broker(page) for _ in range(8)]
        assert {(each["broker_up"], each['queue_messages{queue="celery"}']) for each in found} == {(1, 7)}
        assert {each['queue_consumers{queue="celery"}'] for each in found} == {0}
        ages = [each['queue_oldest_seconds{queue="celery"}'] for each in found]
        assert ages[0] > 0 and ages == sorted(ages)
        with worker(made, url, tmp_path / "worker.log"):
            assert wait_until(lambda: read_with_broker(page)['queue_messages{queue="celery"}'] == 0)
            assert wait_until(lambda: read_with_broker(page)['queue_consumers{queue="celery"}'] == 1)
        # It accepts connections, and says nothing.
        freeze(server.process.pid)
        try:
            assert read(page)["broker_up"] == 0
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert wait_until(lambda: read(page)["broker_up"] == 1)
        server.stop()
        found = read(page)
        assert (found["broker_up"], found["database_up"]) == (0, 1), web.text


# Prometheus -----------------------------------------------------------------


def rules() -> list[dict[str, str]]:
    [group] = yaml.safe_load((METRICS / "alerts.yml").read_text())["groups"]
    return group["rules"]


def expressions() -> list[str]:
    """All that the alerts and the dashboard ask Prometheus."""
    board = json.loads((METRICS / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert asked and all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])
    # Grafana's variable is a time when Prometheus reads it.
    return [each.replace("$__rate_interval", "5m") for each in asked] + [rule["expr"] for rule in rules()]


def test_the_panels_of_the_dashboard_have_titles_and_places_of_their_own():
    panels = json.loads((METRICS / "grafana.json").read_text())["panels"]
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places) and max(x for x, _ in places) < 24
    assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels)


def left_over(given: Any, read: Any, place: str = "") -> list[str]:
    """Return where what was given is not what was read from it; what was read may have more names."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [each for name in given for each in left_over(given[name], read.get(name), f"{place}/{name}")]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        pairs = enumerate(zip(given, read, strict=True))
        return [each for number, pair in pairs for each in left_over(*pair, f"{place}/{number}")]
    return [] if given == read else [place]


def test_grafanas_own_models_read_all_of_the_dashboard():
    register_default_plugins()
    board = json.loads((METRICS / "grafana.json").read_text())
    assert left_over(board, json.loads(JSONEncoder().encode(Dashboard.from_json(board)))) == []


@pytest.mark.run
def test_prometheus_scrapes_a_project_and_knows_every_metric_that_alerts_and_dashboard_name(made, broker, tmp_path):
    url = broker[1]
    for name in ("promtool", "prometheus"):
        needed(name)
    run(tmp_path, needed("promtool"), "check", "rules", METRICS / "alerts.yml")
    with (
        web_server(made, url, tmp_path / "web.log") as (_, web),
        worker(made, url, tmp_path / "worker.log") as (_, tasks),
    ):
        send(made, url, "acme.tasks.add", 3, "1", "2")
        assert wait_until(lambda: counted(read(tasks), "task_run_seconds_count", "acme.tasks.add") == 3)
        targets = [page.removeprefix("http://").removesuffix("/metrics") for page in (web, tasks)]
        job = {"job_name": "acme", "scrape_interval": "5s", "static_configs": [{"targets": targets}]}
        (tmp_path / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {"evaluation_interval": "1s"},
                    "rule_files": [str(METRICS / "alerts.yml")],
                    "scrape_configs": [job],
                }
            )
        )
        address = f"127.0.0.1:{free_port()}"
        storage = f"--storage.tsdb.path={tmp_path / 'data'}"
        options = ("--config.file=prometheus.yml", f"--web.listen-address={address}", storage)
        with started(tmp_path, tmp_path / "prometheus.log", needed("prometheus"), *options) as prometheus:
            prometheus.says("Server is ready to receive web requests")

            def ask(question: str) -> dict:
                with urlopen(f"http://{address}/api/v1/{question}", timeout=PATIENCE_SECONDS) as answer:
                    return json.load(answer)["data"]

            def names() -> set[str]:
                return set(ask("label/__name__/values"))

            assert wait_until(lambda: {"broker_up", "tasks_ended_total"} <= names()), prometheus.text
            asked = {name for each in expressions() for name in re.findall(r"[a-z]+(?:_[a-z]+)+", each)}
            asked -= {"histogram_quantile", "rate_interval"}
            assert asked - names() == set() and len(asked) > 8
            for expression in expressions():
                assert "resultType" in ask(f"query?query={quote(expression)}"), expression

            def health() -> dict[str, str]:
                return {rule["name"]: rule["health"] for group in ask("rules")["groups"] for rule in group["rules"]}

            expected = {rule["alert"]: "ok" for rule in rules()}
            assert wait_until(lambda: health() == expected), ask("rules")
            healthy = [each["health"] for each in ask("targets")["activeTargets"]]
            assert healthy == ["up", "up"]


MONITOR = (template.ROOT / "docs/how-to/monitor.md").read_text()
CONFIGURATIONS = [block for block in re.findall(r"```yaml\n(.*?)```", MONITOR, re.DOTALL) if "scrape_configs" in block]


@pytest.mark.run
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_prometheus_takes_what_the_documentation_tells_it(tmp_path, configuration):
    (tmp_path / "apps/metrics").mkdir(parents=True)
    (tmp_path / "apps/metrics/alerts.yml").write_text((METRICS / "alerts.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(configuration)
    run(tmp_path, needed("promtool"), "check", "config", "prometheus.yml")


def test_the_documentation_names_the_port_of_the_workers(renderer):
    port = renderer.context(template.DEFAULTS)["processes"]["worker"]["metrics_port"]
    jobs = [job for text in CONFIGURATIONS for job in yaml.safe_load(text)["scrape_configs"]]
    found = {each["port"] for job in jobs for each in job.get("dns_sd_configs", [])}
    assert len(CONFIGURATIONS) == 3 and found == {port}


def waits(*buckets: tuple[str, int]) -> dict[str, str]:
    """Return the series of waits of which so many more each minute are not longer than each bound."""
    return {f'task_wait_seconds_bucket{{task="a",le="{bound}"}}': f"0+{number}x60" for bound, number in buckets}


# For each alert: figures with which it has to come, and figures with which it must not; as promtool writes series.
QUEUE, TASK = '{queue="celery"}', '{task="acme.tasks.add"}'
ALERTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "BrokerDown": ({"broker_up": "0x60"}, {"broker_up": "1x60"}),
    "DatabaseDown": ({"database_up": "0x60"}, {"database_up": "1x60"}),
    "MetricsMissing": ({"up": "1x60"}, {"broker_up": "0x60"}),
    "QueueWithoutWorker": ({f"queue_consumers{QUEUE}": "0x60"}, {f"queue_consumers{QUEUE}": "1x60"}),
    "QueueOld": ({f"queue_oldest_seconds{QUEUE}": "0+60x60"}, {f"queue_oldest_seconds{QUEUE}": "200x60"}),
    "QueueGrows": ({f"queue_messages{QUEUE}": "0+20x60"}, {f"queue_messages{QUEUE}": "500-5x60"}),
    "TasksStartLate": (waits(("300", 0), ("900", 1), ("+Inf", 1)), waits(("300", 1), ("900", 1), ("+Inf", 1))),
    "FailedTasksRise": ({"failed_tasks": "3+1x60"}, {"failed_tasks": "3x60"}),
    "TasksFailOften": (
        {
            'tasks_ended_total{task="a",outcome="failed"}': "0+1x60",
            'tasks_ended_total{task="a",outcome="succeeded"}': "0+1x60",
        },
        {
            'tasks_ended_total{task="a",outcome="failed"}': "0+1x60",
            'tasks_ended_total{task="a",outcome="succeeded"}': "0+9x60",
        },
    ),
    "TasksDisappear": (
        {f"tasks_started_total{TASK}": "0+2x60", f"tasks_ended_total{TASK}": "0+1x60"},
        {f"tasks_started_total{TASK}": "0+2x60", f"tasks_ended_total{TASK}": "0+2x60"},
    ),
    "OutboxOld": ({"outbox_overdue_seconds": "0+60x60"}, {"outbox_overdue_seconds": "100x60"}),
    "BeatSilent": (
        {"beat_lease_seconds": "0+60x60", "scheduled_tasks": "2x60"},
        {"beat_lease_seconds": "0+60x60", "scheduled_tasks": "0x60"},
    ),
}


def test_every_alert_has_figures_here():
    assert [rule["alert"] for rule in rules()] == [*ALERTS]


@pytest.mark.run
@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_comes_when_it_must_and_not_when_it_must_not(tmp_path, name):
    [severity] = [rule["labels"]["severity"] for rule in rules() if rule["alert"] == name]

    def series(figures: dict[str, str]) -> list[dict[str, str]]:
        return [{"series": each, "values": values} for each, values in figures.items()]

    (tmp_path / "names.yml").write_text((METRICS / "alerts.yml").read_text())
    bad, good = map(series, ALERTS[name])
    quiet = {"eval_time": "1h", "alertname": name}
    tests = [{"interval": "1m", "input_series": good, "alert_rule_test": [quiet]}]
    (tmp_path / "good.yml").write_text(yaml.safe_dump({"rule_files": ["names.yml"], "tests": tests}))
    run(tmp_path, needed("promtool"), "test", "rules", "good.yml")
    tests[0]["input_series"] = bad
    (tmp_path / "bad.yml").write_text(yaml.safe_dump({"rule_files": ["names.yml"], "tests": tests}))
    # It expects no alert, so it fails and shows the one that came.
    shown = run(tmp_path, needed("promtool"), "test", "rules", "bad.yml", status=1)
    assert f'alertname="{name}"' in shown and f'severity="{severity}"' in shown
