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
# A task of the project's owner, whose row tells that it has run, and a page that sends it.
TASK = """

@shared_task(bind=True)
def note(self, number: int) -> None:
    \"\"\"Work for a while, and write down that this number is done.\"\"\"
    time.sleep(1)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO notes VALUES (%s, %s)", [number, f"{self.request.id}@{self.request.hostname}"])


@login_not_required
def order(request, number: int) -> HttpResponse:
    \"\"\"Send the task.\"\"\"
    note.delay(number)
    return HttpResponse("sent")
"""
IMPORTS = """import time

from celery import shared_task
from django.contrib.auth.decorators import login_not_required
from django.db import connection
from django.http import HttpResponse
"""
CREATE = (
    'from django.db import connection; connection.cursor().execute("CREATE TABLE notes (number integer, run text)")'
)
# What a release adds: a table that refers to the users, and a migration that takes its time.
MODEL = """

class {name}(models.Model):
    user = models.ForeignKey(User, on_delete=models.CASCADE)
"""
MIGRATION = """import time

from django.conf import settings
from django.db import migrations, models


def work(apps, schema_editor):
    time.sleep({seconds})
    {end}


class Migration(migrations.Migration):
    dependencies = [("users", "{before}")]
    operations = [
        migrations.CreateModel(
            "{name}",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)),
            ],
        ),
        migrations.RunPython(work, migrations.RunPython.noop),
    ]
"""


class Site:
    """A production stack on this machine, as a visitor and as its operator."""

    def __init__(self, project: Path) -> None:
        self.project, self.stack = project, Stack(project / FOLDER)
        self.address = f"https://localhost:{self.stack.ports['HTTPS_PORT']}"
        self.trusted: ssl.SSLContext | None = None

    def deploy(self, *arguments: str) -> str:
        """Start it, or bring the next release; return what the last line says."""
        done = self.script("deploy", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr + self.stack.logs()
        return done.stdout.splitlines()[-1]

    def write_release(self, name: str, seconds: float, end: str = "") -> None:
        """Change a page, and add a table with a migration that takes some seconds."""
        page, migrations = self.project / "templates/base.html", self.project / "apps/users/migrations"
        page.write_text(page.read_text().replace("<body", f"<!-- {name} --><body", 1))
        before = max(path.stem for path in migrations.glob("0*.py"))
        migration = MIGRATION.format(name=name, seconds=seconds, end=end, before=before)
        (migrations / f"{int(before[:4]) + 1:04}_{name.lower()}.py").write_text(migration)
        with (self.project / "apps/users/models.py").open("a") as models:
            models.write(MODEL.format(name=name))
        template.commit_all(self.project, name)

    @contextmanager
    def unwanted_release(self, name: str, seconds: float) -> Iterator[None]:
        """Write a release whose migration fails, and take it back when the block ends."""
        self.write_release(name, seconds, end="raise RuntimeError")
        try:
            yield
        finally:
            subprocess.run(["git", "reset", "--quiet", "--hard", "HEAD~"], cwd=self.project, check=True)

    def release(self) -> None:
        """Migrate the database to the version that is written, and start nothing."""
        self.stack.compose("build", "release")
        self.stack.compose("run", "--rm", "-T", "release")

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
    (project / "apps/web/tasks.py").write_text(IMPORTS + TASK)
    urls = project / "apps/web/urls.py"
    urls.write_text(
        urls.read_text() + 'from .tasks import order\nurlpatterns.append(path("order/<int:number>", order))\n'
    )
    # A loaded machine confirms a message late. Its sender would send it again, and no deployment could help it.
    compose = project / FOLDER / "compose.yaml"
    compose.write_text(compose.read_text().replace("@rabbitmq:5672//", "@rabbitmq:5672//?read_timeout=30"))
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
        made.deploy()
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
    ports = [(each["Service"], port) for each in containers for port in each["Publishers"] if port["PublishedPort"]]
    assert {service for service, port in ports if port["URL"] != "127.0.0.1"} == {"caddy"}
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


def test_only_the_server_itself_reaches_flower_and_needs_its_password(site):
    address = f"http://127.0.0.1:{site.stack.ports['FLOWER_PORT']}/"
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
    """Let some visitors ask for pages, each for one after the other, until the block ends; yields their visits.

    Another one orders a task five times a second. In the end each of these tasks has run once.
    """
    visits, ordered, over = [], [], threading.Event()

    def visit(path: str = "/accounts/login/") -> Visit:
        started = time.monotonic()
        try:
            outcome = str(site.get(path)[0])
        except OSError as error:
            outcome = repr(error)
        visits.append(Visit(outcome, time.monotonic() - started))
        return visits[-1]

    def look() -> None:
        while not over.is_set():
            visit()

    def order() -> None:
        while not over.wait(0.2):
            ordered.append(len(ordered))
            visit(f"/order/{ordered[-1]}")

    site.query("DELETE FROM notes")
    threads = [threading.Thread(target=each) for each in [look] * count + [order]]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wait_until(lambda: len(set(site.query("SELECT number FROM notes"))) == len(ordered))
    # With the id of the message and the worker, which tell what has run twice, and why.
    rows = [row.split("|") for row in site.query("SELECT number, run FROM notes ORDER BY number")]
    times = Counter(number for number, _ in rows)
    figures = {
        "requests": len(visits),
        "failed requests": sum(visit.outcome != "200" for visit in visits),
        "longest request": round(max(visit.seconds for visit in visits), 2),
        "tasks": len(ordered),
        "lost tasks": len(set(ordered) - set(map(int, times))),
        "tasks run twice": [row for row in rows if times[row[0]] > 1],
    }
    print(figures)
    assert Counter(visit.outcome for visit in visits) == {"200": len(visits)}, figures
    # The ones that ran when their worker was stopped had the time to end.
    assert (figures["lost tasks"], figures["tasks run twice"]) == (0, []), figures


# The second one is longer than Caddy lets a request wait.
@pytest.mark.parametrize("seconds", [5, pytest.param(90, marks=pytest.mark.slow)])
def test_a_release_and_the_way_back_cost_no_request_and_no_task(site, seconds):
    name = f"Next{seconds}"
    site.write_release(name, seconds)
    for arguments, comes in [((), True), (("--back",), False)]:
        with visitors(site):
            said = site.deploy(*arguments)
            print(arguments, said)
        assert re.fullmatch(r"deploy: https://localhost serves this version after \d+ seconds\.", said)
        assert (f"<!-- {name} -->" in site.get("/accounts/login/")[1]) is comes
    assert site.query(f"SELECT count(*) FROM users_{name.lower()}") == ["0"]


@pytest.mark.parametrize("seconds", [1, pytest.param(90, marks=pytest.mark.slow)])
def test_a_release_that_fails_changes_nothing(site, seconds):
    containers = site.stack.compose("ps", "--quiet")
    with site.unwanted_release(f"Bad{seconds}", seconds), visitors(site):
        failed = site.script("deploy")
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.endswith("What ran before still runs, and nothing has changed.\n"), failed.stderr
    assert site.stack.compose("ps", "--quiet") == containers
    assert f"<!-- Bad{seconds} -->" not in site.get("/accounts/login/")[1]


def test_a_backup_of_before_a_release_is_restored_and_migrated(site, tmp_path):
    site.query("INSERT INTO notes VALUES (-1, '')")
    backup = tmp_path / "kept.dump"
    made = site.script("backup", str(backup))
    assert made.returncode == 0 and f"Wrote {backup}." in made.stdout, made.stderr
    assert backup.stat().st_mode & 0o077 == 0
    assert site.script("backup", str(backup)).returncode == 1
    site.query("DELETE FROM notes")
    site.write_release("Later", 0)
    site.release()
    site.query("INSERT INTO notes VALUES (-2, '')")

    # What no backup is, and one whose end is missing, change nothing.
    broken = tmp_path / "broken.dump"
    broken.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    running = site.stack.compose("ps", "--quiet")
    for arguments in ([], [str(tmp_path / "none.dump")], [str(broken)]):
        refused = site.script("restore", *arguments)
        assert refused.returncode == 1 and "\nrestore: " in f"\n{refused.stderr}", refused.stderr
    assert (site.stack.compose("ps", "--quiet"), site.get("/up")[0]) == (running, 200)

    restored = site.script("restore", str(backup))
    assert restored.returncode == 0, restored.stderr
    assert site.query("SELECT number FROM notes WHERE number < 0") == ["-1"]
    assert site.query("SELECT count(*) FROM users_later") == ["0"]
    assert site.get("/accounts/login/")[0] == 200
    site.release()

    site.query("INSERT INTO notes VALUES (-3, '')")
    with site.unwanted_release("Broken", 0):
        site.stack.compose("build", "release")
        failed = site.script("restore", str(backup))
    assert failed.returncode == 1 and failed.stderr.endswith("with the database that it had.\n"), failed.stderr
    assert sorted(site.query("SELECT number FROM notes WHERE number < 0")) == ["-1", "-3"]
    assert site.get("/accounts/login/")[0] == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.dump", "kept.dump"]


def test_the_last_backups_are_kept_here_and_all_of_them_elsewhere(site):
    """Elsewhere is a folder of the container here. What rclone does with other addresses is its own affair."""
    elsewhere = site.stack.folder / "elsewhere"
    elsewhere.mkdir()
    settings = site.stack.folder / ".env"
    text = settings.read_text()
    settings.write_text(f"{text}BACKUPS_KEPT=2\nBACKUP_REMOTE=offsite:/elsewhere\nRCLONE_CONFIG_OFFSITE_TYPE=local\n")
    override = site.stack.folder / "compose.override.yaml"
    override.write_text("services: {offsite: {volumes: [./elsewhere:/elsewhere]}}\n")
    try:
        for _ in range(3):
            done = site.script("backup")
            assert done.returncode == 0, done.stderr
    finally:
        settings.write_text(text)
        override.unlink()
    names = sorted(path.name for path in elsewhere.iterdir())
    assert len(names) == 3
    assert sorted(path.name for path in (site.stack.folder / "backups").iterdir()) == names[1:]


def test_a_backup_asks_the_address_that_notices_its_absence(site):
    settings = site.stack.folder / ".env"
    text = settings.read_text()
    # Nothing listens there at first, so the backup says that it has failed. The web server answers to the other one.
    for address, code in [("http://web:1/up", 1), ("http://web:8000/up", 0)]:
        settings.write_text(f"{text}BACKUP_PING_URL={address}\n")
        try:
            done = site.script("backup")
        finally:
            settings.write_text(text)
        assert done.returncode == code, done.stderr
    assert "/deploy/compose/backups" not in subprocess.check_output(
        ["git", "status", "--short"], cwd=site.project, text=True
    )
