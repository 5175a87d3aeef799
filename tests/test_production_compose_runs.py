"""`deploy/compose`: a rendered project alone becomes a site with TLS, and its next release loses no task or request."""

import json
import re
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import template
from tests.browser import PATIENCE_SECONDS
from tests.containers import NEEDS_ENGINE, Stack
from tests.dev_support import wait_until
from tests.processes import EVERY_SECOND

pytestmark = NEEDS_ENGINE

FOLDER = "deploy/compose"
ANSWERS = {"deploy": ["compose"], "docker_mode": "none"}
PASSWORD = "someone:a-secret"
TASKS = 200
# A task of the project's owner: a row tells that it has run.
TASK = """

@shared_task
def note(number: int) -> None:
    \"\"\"Work for a while, and write down that this number is done.\"\"\"
    time.sleep(0.5)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO notes VALUES (%s)", [number])
"""
CREATE = 'from django.db import connection; connection.cursor().execute("CREATE TABLE notes (number integer)")'
SEND = f"from acme.tasks import note; [note.delay(number) for number in range({TASKS})]"


class Site:
    """A production stack on this machine, as a visitor and as its operator."""

    def __init__(self, project: Path) -> None:
        self.project, self.stack = project, Stack(project / FOLDER)
        self.address = f"https://localhost:{self.stack.ports['HTTPS_PORT']}"
        self.trusted: ssl.SSLContext | None = None

    def up(self) -> None:
        """Start it, or bring the next release, by the command at the head of the file."""
        [command] = re.findall(r"^#   (docker compose up .*)$", (self.stack.folder / "compose.yaml").read_text(), re.M)
        self.stack.run(*command.split())

    def trust(self) -> None:
        """Trust the authority that Caddy has made for itself, and no other."""
        certificate = "/data/caddy/pki/authorities/local/root.crt"
        self.trusted = ssl.create_default_context(cadata=self.stack.compose("exec", "-T", "caddy", "cat", certificate))

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self.ask(self.address + path, **headers)

    def ask(self, address: str, **headers: str) -> tuple[int, str]:
        """Return the status and the text of a page; raises where there is no answer."""
        request = urllib.request.Request(address, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS, context=self.trusted) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def shell(self, code: str) -> str:
        """Run Python code of the project on one of the web servers; return what it prints."""
        return self.stack.compose("exec", "-T", "web", "python", "manage.py", "shell", "--verbosity=0", "-c", code)

    def query(self, sql: str) -> list[str]:
        command = ("exec", "-T", "postgres", "psql", "-U", "app", "-d", "app", "-qtAc", sql)
        return self.stack.compose(*command).split()

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts of the folder, from another folder."""
        command = [f"{FOLDER}/{name}", *arguments]
        return subprocess.run(command, cwd=self.project, env=self.stack.environment, text=True, capture_output=True)


@pytest.fixture(scope="module", params=["rabbitmq", pytest.param("redis", marks=pytest.mark.slow)])
def site(template_repo: Path, tmp_path_factory: pytest.TempPathFactory, request) -> Iterator[Site]:
    answers = ANSWERS | {"celery_broker": request.param}
    project = template.copy(template_repo, tmp_path_factory.mktemp("production") / "acme", **answers)
    tasks = project / "acme/tasks.py"
    code = tasks.read_text().replace("import logging\n", "import logging\nimport time\n")
    tasks.write_text(
        code.replace("import shared_task\n", "import shared_task\nfrom django.db import connection\n") + TASK
    )
    template.commit_all(project, "Start")
    made = Site(project)
    given = {"DOMAIN": "localhost", "SECRET_KEY": "a1" * 32, "POSTGRES_PASSWORD": "b2" * 16, "HEALTH_TOKEN": "c3" * 16}
    given |= {"RABBITMQ_PASSWORD": "d4" * 16} if request.param == "rabbitmq" else {}
    text = (made.stack.folder / ".env.example").read_text()
    for name, value in given.items():
        text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
    text += f"COMPOSE_PROFILES=flower\nFLOWER_BASIC_AUTH={PASSWORD}\n"
    (made.stack.folder / ".env").write_text(text)
    try:
        made.up()
        made.trust()
        made.shell(CREATE)
        yield made
    finally:
        made.stack.remove()


def test_pages_come_over_tls_from_caddy_alone(site):
    status, page = site.get("/")
    [style] = re.findall(r'href="(/static/[^"]+\.[0-9a-f]{12}\.css)"', page)
    assert (status, site.get(style)[0]) == (200, 200)
    containers = json.loads(f"[{','.join(site.stack.compose('ps', '--format', 'json').splitlines())}]")
    published = {each["Service"] for each in containers if any(port["PublishedPort"] for port in each["Publishers"])}
    assert published == {"caddy"}
    running = Counter(each["Service"] for each in containers)
    assert (running["web"], running["worker"], running["beat"]) == (2, 2, 1)


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection."""

    def redirect_request(self, *_: object) -> None:
        return None


def test_plain_http_is_sent_on_to_https(site):
    request = urllib.request.Request(f"http://localhost:{site.stack.ports['HTTP_PORT']}/up")
    with pytest.raises(urllib.error.HTTPError) as stayed:
        urllib.request.build_opener(Stay).open(request, timeout=PATIENCE_SECONDS)
    assert stayed.value.code in (301, 308) and stayed.value.headers["Location"].startswith("https://localhost")


def test_flower_is_behind_tls_and_its_password(site):
    address = f"https://localhost:{site.stack.ports['FLOWER_PORT']}/"
    assert wait_until(lambda: site.ask(address)[0] == 401)


def test_all_health_checks_are_fine_and_need_the_token(site):
    assert site.get("/health/")[0] in (401, 403, 404)
    assert wait_until(lambda: site.get("/health/", Authorization=f"Bearer {'c3' * 16}")[0] == 200)


def test_a_scheduled_task_goes_through_beat_and_the_worker(site):
    site.shell(EVERY_SECOND)
    assert site.stack.says("worker", r"acme\.tasks\.say_good_morning\[\S+\] succeeded")
    site.shell("from django_celery_beat.models import PeriodicTask; PeriodicTask.objects.get(name='often').delete()")


class Visit(NamedTuple):
    """One request of a visitor: what became of it, and how many seconds it took."""

    outcome: str
    seconds: float


@contextmanager
def visitors(site: Site, count: int = 4) -> Iterator[list[Visit]]:
    """Let some visitors ask for pages, each for one after the other, until the block ends; yields their visits."""
    visits, over = [], threading.Event()

    def visit() -> None:
        while not over.is_set():
            started = time.monotonic()
            try:
                outcome = str(site.get("/accounts/login/")[0])
            except OSError as error:
                outcome = repr(error)
            visits.append(Visit(outcome, time.monotonic() - started))

    threads = [threading.Thread(target=visit) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_the_next_release_loses_no_task_and_no_request(site, record_property):
    page = site.project / "templates/base.html"
    page.write_text(page.read_text().replace("<body", "<!-- the next release --><body", 1))
    site.shell(SEND)
    assert wait_until(lambda: len(site.query("SELECT number FROM notes")) > 0)
    with visitors(site) as visits:
        before = len(site.query("SELECT number FROM notes"))
        started = time.monotonic()
        site.up()
        seconds = time.monotonic() - started
        assert wait_until(lambda: "the next release" in site.get("/accounts/login/")[1])
    assert before < TASKS
    assert wait_until(lambda: len(set(site.query("SELECT number FROM notes"))) == TASKS)
    runs = Counter(site.query("SELECT number FROM notes"))
    twice = sum(times > 1 for times in runs.values())
    figures = {
        "seconds of the update": round(seconds, 1),
        "requests": len(visits),
        "failed requests": sum(visit.outcome != "200" for visit in visits),
        "longest request": round(max(visit.seconds for visit in visits), 1),
        "tasks done before": before,
        "lost tasks": TASKS - len(runs),
        "tasks run twice": twice,
    }
    print(figures)
    assert Counter(visit.outcome for visit in visits) == {"200": len(visits)}, figures
    # The ones that ran when their worker was stopped had the time to end.
    assert (figures["lost tasks"], twice) == (0, 0), figures


def test_a_backup_brings_the_database_back_and_what_is_none_changes_nothing(site, tmp_path):
    site.query("INSERT INTO notes VALUES (-1)")
    backup = tmp_path / "kept.dump"
    made = site.script("backup", str(backup))
    assert made.returncode == 0 and f"Wrote {backup}." in made.stdout, made.stderr
    assert backup.stat().st_mode & 0o077 == 0
    assert site.script("backup", str(backup)).returncode == 1
    site.query("DELETE FROM notes")

    broken = tmp_path / "broken.dump"
    broken.write_bytes(backup.read_bytes()[:100])
    for arguments in ([], [str(tmp_path / "none.dump")], [str(broken)]):
        refused = site.script("restore", *arguments)
        assert refused.returncode == 1 and refused.stdout == "" and refused.stderr.startswith("restore: "), (
            refused.stderr
        )
    assert site.get("/up")[0] == 200

    restored = site.script("restore", str(backup))
    assert restored.returncode == 0, restored.stderr
    assert "-1" in site.query("SELECT number FROM notes")
    assert site.get("/")[0] == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.dump", "kept.dump"]
