"""With their variables set, Sentry and OpenTelemetry follow a page to its task: one trace, whatever happens between."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.dev_support import wait_until
from tests.processes import installed, run, sqlite
from tests.template import ROOT
from tests.trial_page import visit, visited

pytestmark = pytest.mark.run

FIRST, SECOND = "a" * 32, "b" * 32
SPAN = "c" * 16
# A load balancer asks by the address of the container, which is no allowed host.
PROBE = {"Host": "10.0.0.1"}
ON_BOTH_SERVERS = pytest.mark.parametrize(
    "use_async", [pytest.param(False, id="wsgi"), pytest.param(True, id="asgi", marks=pytest.mark.slow)]
)
# The one who decodes spans is the project, which has the package for it.
DECODE = """
import json, sys
from pathlib import Path
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
for path in sys.argv[1:]:
    for resource in ExportTraceServiceRequest.FromString(Path(path).read_bytes()).resource_spans:
        named = {each.key: each.value.string_value for each in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                print(json.dumps([span.trace_id.hex(), span.name, span.status.code, named["service.name"]]))
"""
# Beat and commands have no request or task whose end would end the trace.
REFUSED = """
import django
django.setup()
from kombu.exceptions import OperationalError
from opentelemetry import trace
from acme.tasks import add
try:
    add.delay(1, 2)
except OperationalError:
    print("refused, still in its trace:", trace.get_current_span().get_span_context().is_valid)
"""


class Collector(ThreadingHTTPServer):
    """Takes what Sentry's client and OpenTelemetry's exporter send."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taker)
        self.requests: list[tuple[str, bytes]] = []

    def taken(self, path: str) -> list[bytes]:
        """Return what has come in at this path."""
        return [body for at, body in self.requests if at == path]


class Taker(BaseHTTPRequestHandler):
    """Answers every request with 200."""

    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Run a collector; yields it and its address."""
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector, f"127.0.0.1:{collector.server_port}"
        finally:
            collector.shutdown()
            thread.join()


@ON_BOTH_SERVERS
def test_sentry_follows_a_page_to_its_task_after_the_commit_through_the_outbox_and_through_a_retry(
    template_repo, tmp_path, use_async
):
    extra = ("--extra", "sentry")
    project, _ = installed(template_repo, tmp_path, "3.13", *extra, use_flower=False, use_async=use_async)

    def events(trace: str) -> list[dict]:
        bodies = [body.decode().splitlines() for body in collector.taken("/api/1/envelope/")]
        lines = [json.loads(line) for body in bodies for line in body if line.startswith("{")]
        return [each for each in lines if each.get("contexts", {}).get("trace", {}).get("trace_id") == trace]

    def seen(trace: str) -> set[tuple[str, str]]:
        """Return the names of the transactions, and the errors, of a trace."""
        own = events(trace)
        errors = {each["exception"]["values"][-1]["value"] for each in own if "exception" in each}
        return {(each["type"], each["transaction"]) for each in own if each.get("type")} | {
            ("error", each) for each in errors
        }

    def attempts() -> int:
        return sum(each.get("transaction") == "acme.trials.stumble" for each in events(FIRST))

    expected = {
        ("transaction", "/trial"),
        ("transaction", "acme.trials.stumble"),
        ("transaction", "acme.trials.finish"),
        ("error", "on purpose"),
    }
    headers = [{"sentry-trace": f"{trace}-{SPAN}-1"} for trace in (FIRST, SECOND)]
    with collecting() as (collector, address):
        dsn = f"http://key@{address}/1"
        with visited(project, tmp_path, *headers, SENTRY_DSN=dsn, SENTRY_TRACES_SAMPLE_RATE="1.0") as trial:
            outbox = {("transaction", "send acme.trials.stumble")}
            wait_until(lambda: seen(FIRST) >= expected and seen(SECOND) >= expected | outbox and attempts() >= 2)
            assert (seen(FIRST), seen(SECOND)) == (expected, expected | outbox), trial.worker.text
            assert attempts() >= 2
            visit(trial.address, PROBE, "up")
    assert outgoing(project) == 0


def outgoing(project: Path) -> int:
    """Return how many tasks would be sent again: a durable task whose headers get lost is never done."""
    [(rows,)] = sqlite(project, "SELECT count(*) FROM tasks_outgoingtask")
    return rows


@ON_BOTH_SERVERS
def test_opentelemetry_follows_a_page_to_its_task_after_the_commit_through_the_outbox_and_through_a_retry(
    template_repo, tmp_path, use_async
):
    extra = ("--extra", "opentelemetry")
    project, programs = installed(template_repo, tmp_path, "3.13", *extra, use_flower=False, use_async=use_async)

    def spans() -> list[list]:
        files = []
        for number, body in enumerate(collector.taken("/v1/traces")):
            files.append(tmp_path / f"{number}.spans")
            files[-1].write_bytes(body)
        return [json.loads(line) for line in run(project, programs / "python", "-c", DECODE, *files).splitlines()]

    def seen(trace: str) -> set[tuple[str, bool]]:
        return {(name, code == 2) for identity, name, code, _ in spans() if identity == trace}

    expected = {
        ("GET trial", False),
        ("apply_async/acme.trials.stumble", False),
        ("run/acme.trials.stumble", False),
        ("apply_async/acme.trials.finish", False),
        ("run/acme.trials.finish", True),
    }
    headers = [{"traceparent": f"00-{trace}-{SPAN}-01"} for trace in (FIRST, SECOND)]
    with collecting() as (collector, address):
        # By itself, a process sends its spans every five seconds; this one only at its end. Uvicorn ends by the signal
        # that stops it, so there it is too late.
        delay = "200" if use_async else "3600000"
        variables = {"OTEL_BSP_SCHEDULE_DELAY": delay, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}"}
        with visited(project, tmp_path, *headers, **variables) as trial:
            visit(trial.address, PROBE, "up")
            assert wait_until(lambda: trial.worker.text.count("unexpected: ValueError('on purpose')") >= 2)
            if use_async:
                assert wait_until(lambda: ("GET trial", False) in seen(FIRST) & seen(SECOND))
        assert seen(FIRST) >= expected and seen(SECOND) >= expected, (seen(FIRST), seen(SECOND), trial.worker.text)
        assert sum(each[:2] == [FIRST, "run/acme.trials.stumble"] for each in spans()) >= 2
        assert {service for *_, service in spans()} == {"acme"}
        nowhere = variables | {"CELERY_BROKER_URL": "redis://127.0.0.1:1", "DJANGO_SETTINGS_MODULE": "acme.settings"}
        assert "in its trace: False" in run(project, programs / "python", "-c", REFUSED, DEBUG="1", **nowhere)
    assert outgoing(project) == 0


@pytest.mark.parametrize(
    ("manager", "given", "options"),
    [
        ("uv", "", []),
        ("uv", "sentry", ["--extra", "sentry"]),
        ("uv", "sentry opentelemetry", ["--extra", "sentry", "--extra", "opentelemetry"]),
        ("pip", "", ["."]),
        ("pip", "sentry,opentelemetry", [".[sentry,opentelemetry]"]),
    ],
)
def test_an_image_gets_the_extras_that_its_dockerfile_names(render, manager, given, options):
    text = (render(package_manager=manager) / "Dockerfile").read_text().replace("\\\n", "")
    assert '\nARG EXTRAS=""\n' in text
    [install] = re.findall(r"(?:uv sync --frozen|pip install -c constraints.txt (?!--upgrade)).*", text)
    printed = run(ROOT, "sh", "-c", f"EXTRAS={given!r}; printf '%s\\n' {install}").splitlines()
    start = {"uv": "uv sync --frozen --no-default-groups", "pip": "pip install -c constraints.txt"}[manager].split()
    assert printed == start + options
