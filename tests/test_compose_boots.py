"""`docker compose up --wait` of a rendered project starts everything and no more, and tasks go through it."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests import template
from tests.browser import PATIENCE_SECONDS, Browser, free_port
from tests.containers import NEEDS_ENGINE, OWNER, Stack
from tests.dev_support import wait_until
from tests.kubernetes import Manifest, manifests
from tests.processes import EVERY_SECOND

PASSWORD = "someone:a-secret"
# In everything private that lies in the folder when the image is made.
CANARY = "do-not-ship-me"
PRIVATE = (
    ".env",
    ".env.production",
    ".git/description",
    "db.sqlite3",
    "deploy/compose/.env",
    "deploy/kubernetes/settings.env",
    "media/letter.txt",
)

pytestmark = NEEDS_ENGINE


@contextmanager
def started(folder: Path) -> Iterator[Stack]:
    stack = Stack(folder)
    template.commit_all(folder, "Start")
    for name in PRIVATE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"CANARY={CANARY}\n")
    # As .env.example says.
    with (folder / ".env").open("a") as settings:
        settings.write(f"COMPOSE_PROFILES=flower\nFLOWER_BASIC_AUTH={PASSWORD}\n")
    stack.belong_to(OWNER)
    try:
        stack.make("up")
        yield stack
    finally:
        stack.remove()


ANSWERS = {"redis": {}, "rabbitmq": {"celery_broker": "rabbitmq", "package_manager": "pip"}}


class Stacks:
    """The stacks that tests share, by broker, each started when it is first asked for."""

    def __init__(self, template_repo: Path, folder: Path) -> None:
        self.template_repo, self.folder = template_repo, folder
        self.shared: dict[str, Stack] = {}
        self.ends = ExitStack()

    def get(self, broker: str) -> Stack:
        if broker not in self.shared:
            folder = self.folder / f"{broker}{free_port()}/acme"
            project = template.copy(self.template_repo, folder, **ANSWERS[broker])
            self.shared[broker] = self.ends.enter_context(started(project))
        return self.shared[broker]

    def take(self, broker: str) -> Stack:
        """Return a stack that the test may change: whoever asks for it later gets another one."""
        stack = self.get(broker)
        del self.shared[broker]
        return stack


@pytest.fixture(scope="module")
def stacks(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stacks]:
    made = Stacks(template_repo, tmp_path_factory.mktemp("stacks"))
    with made.ends:
        yield made


@pytest.fixture
def redis_stack(stacks: Stacks) -> Stack:
    return stacks.get("redis")


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def stack(request: pytest.FixtureRequest, stacks: Stacks) -> Stack:
    return stacks.get(request.param)


SERVICES = ["beat", "flower", "postgres", "redis", "web", "worker"]


def test_a_task_from_the_home_page_runs_in_the_worker_container(stack):
    assert Browser(f"http://127.0.0.1:{stack.ports['WEB_PORT']}").run_task(20, 22) == "42"
    assert stack.says("worker", r"acme\.tasks\.add\[\S+\] succeeded")


def test_a_scheduled_task_goes_through_beat(stack):
    stack.compose("exec", "-T", "web", "python", "manage.py", "shell", "-c", EVERY_SECOND)
    assert stack.says("beat", r"Sending due task often \(acme\.tasks\.say_good_morning\)")
    assert stack.says("worker", r"acme\.tasks\.say_good_morning\[\S+\] succeeded")


def test_flower_asks_for_its_password(stack):
    flower = Browser(f"http://127.0.0.1:{stack.ports['FLOWER_PORT']}")
    assert flower.get("/")[0] == 401
    assert flower.get("/", password="someone:else")[0] == 401
    status, page = flower.get("/", password=PASSWORD)
    assert status == 200 and "Flower" in page


def test_flower_without_a_password_does_not_start(redis_stack):
    command = ["run", "--rm", "--no-deps", "-T", "-e", "FLOWER_BASIC_AUTH=", "flower"]
    with pytest.raises(AssertionError, match="set FLOWER_BASIC_AUTH=user:password"):
        redis_stack.compose(*command)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_healthy_and_comes_back_when_it_dies(redis_stack, service):
    assert redis_stack.is_healthy(service)
    assert redis_stack.inspect(service)["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_on_this_machine_alone(redis_stack, service):
    published = redis_stack.inspect(service)["NetworkSettings"]["Ports"]
    assert {binding["HostIp"] for bindings in published.values() for binding in bindings or []} <= {"127.0.0.1"}


@pytest.mark.parametrize("service", ["beat", "flower", "web", "worker"])
def test_containers_do_not_run_as_root_and_their_files_belong_to_the_host_user(redis_stack, service):
    script = f"import os, pathlib; pathlib.Path('{service}.txt').write_text('x'); print(os.getuid())"
    assert redis_stack.compose("exec", "-T", service, "python", "-c", script).strip() == str(OWNER)
    assert (redis_stack.folder / f"{service}.txt").stat().st_uid == OWNER


@pytest.mark.parametrize("service", ["beat", "flower", "worker"])
def test_celery_gets_signals_and_the_time_to_end(redis_stack, service):
    container = redis_stack.inspect(service)
    assert container["HostConfig"]["Init"] is True
    assert container["Config"]["StopTimeout"] >= 10


def test_the_queue_is_written_to_disk_and_never_evicted(redis_stack):
    config = [
        redis_stack.compose("exec", "-T", "redis", "redis-cli", "config", "get", name)
        for name in ("appendonly", "maxmemory-policy")
    ]
    assert [text.split()[1] for text in config] == ["yes", "noeviction"]


def test_the_image_starts_the_web_server_and_holds_no_history_or_secret(redis_stack):
    image = redis_stack.inspect("worker")["Image"]
    config = json.loads(subprocess.check_output(["docker", "inspect", image]))[0]["Config"]
    assert config["Cmd"][:2] == ["gunicorn", "acme.wsgi"]
    assert config["User"] not in ("", "root", "0")
    # Without the folder of the host over it: what is in the image itself.
    look = f"ls -A /app; grep --recursive --files-with-matches {CANARY} /app /home /venv/bin"
    found = subprocess.run(["docker", "run", "--rm", image, "sh", "-c", look], text=True, capture_output=True).stdout
    assert {".env.example", "manage.py", "staticfiles"} <= set(found.split())
    assert CANARY in (redis_stack.folder / ".env").read_text() and "/" not in found, found


def test_the_image_refuses_to_start_without_what_production_needs(redis_stack):
    image = redis_stack.inspect("worker")["Image"]
    refused = subprocess.run(["docker", "run", "--rm", image], text=True, capture_output=True)
    assert refused.returncode != 0
    for name in ("ALLOWED_HOSTS", "CELERY_BROKER_URL", "SECRET_KEY"):
        assert name in refused.stderr


PRODUCTION = {
    "ALLOWED_HOSTS": "127.0.0.1",
    "BEHIND_HTTPS_PROXY": "1",
    "CELERY_BROKER_URL": "redis://redis:6379/0",
    "DATABASE_URL": "postgres://postgres:postgres@postgres:5432/postgres",
    "SECRET_KEY": "-".join(map(str, range(40))),
}


class Pods:
    """Containers with what the manifests of pods give them, in the network of a stack."""

    def __init__(self, stack: Stack, manifests: dict[str, Manifest]) -> None:
        self.manifests = manifests
        worker = stack.inspect("worker")
        self.image, [self.network] = worker["Image"], worker["NetworkSettings"]["Networks"]
        self.started: dict[str, str] = {}

    def start(self, name: str, kind: str = "containers") -> None:
        """Start a pod's container as Kubernetes does."""
        pod = self.manifests[name]
        [container] = pod[kind]
        user, rights = pod["securityContext"], container["securityContext"]
        options = [f"--network={self.network}", f"--user={user['runAsUser']}:{user['runAsGroup']}"]
        options += [f"--cap-drop={capability}" for capability in rights["capabilities"]["drop"]]
        options += ["--read-only"] if rights["readOnlyRootFilesystem"] else []
        options += [] if rights["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
        options += [f"--tmpfs={volume['mountPath']}" for volume in container["volumeMounts"]]
        options.append(f"--memory={container['resources']['limits']['memory'].removesuffix('i')}")
        own = {each["name"]: each["value"] for each in container.get("env", [])}
        options += [f"--env={name}={value}" for name, value in (PRODUCTION | POD_SETTINGS | own).items()]
        command = ["docker", "run", "--detach", *options, self.image, *container["command"]]
        if name in self.started:
            subprocess.run(["docker", "rm", "--force", self.started[name]], check=True, capture_output=True)
        self.started[name] = subprocess.check_output(command, text=True).strip()

    def passes(self, name: str, kind: str) -> bool:
        """Whether a pod passes its probe of this kind, or has none."""
        probe = self.manifests[name]["containers"][0].get(kind, {})
        command = probe.get("exec", {}).get("command", ["true"])
        if "httpGet" in probe:
            command = ["python", "-c", AS_KUBELET, "http://127.0.0.1:{port}{path}".format(**probe["httpGet"])]
        return subprocess.run(["docker", "exec", self.started[name], *command], capture_output=True).returncode == 0

    def exit_code(self, name: str) -> int:
        """Wait for a pod's container to end; return its exit code."""
        return int(subprocess.check_output(["docker", "wait", self.started[name]], timeout=PATIENCE_SECONDS))

    def stop(self, name: str) -> None:
        """Ask a pod's container to end, and kill it after the time that the manifest gives."""
        seconds = self.manifests[name]["terminationGracePeriodSeconds"]
        command = ["docker", "stop", f"--time={seconds}", self.started[name]]
        subprocess.run(command, check=True, capture_output=True)

    def log(self, name: str) -> str:
        command = ["docker", "logs", self.started[name]]
        return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout

    def says(self, name: str, words: str) -> bool:
        """Wait until a pod's log has these words."""
        return wait_until(lambda: words in self.log(name))


# Kubernetes asks a pod by its address.
AS_KUBELET = "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], headers={'Host': '10.1.2.3'}))"
POD_SETTINGS = {
    "CELERY_BROKER_URL": "redis://redis:6379/1",
    "DATABASE_URL": "postgres://postgres:postgres@postgres:5432/pods",
    "FLOWER_BASIC_AUTH": PASSWORD,
}


def test_the_image_serves_in_production(redis_stack):
    worker, port = redis_stack.inspect("worker"), free_port()
    [network] = worker["NetworkSettings"]["Networks"]
    options = [f"--network={network}", f"--publish=127.0.0.1:{port}:8000", "--detach", "--rm"]
    variables = [f"--env={name}={value}" for name, value in PRODUCTION.items()]
    started = ["docker", "run", *options, *variables, worker["Image"]]
    container = subprocess.check_output(started, text=True).strip()
    try:
        browser = Browser(f"http://127.0.0.1:{port}")
        browser.opener.addheaders.append(("X-Forwarded-Proto", "https"))
        assert wait_until(lambda: answers(browser, "/up") == 200)
        status, page = browser.get("/")
        [style] = re.findall(r'href="(/static/[^"]+\.[0-9a-f]{12}\.css)"', page)
        assert (status, browser.get(style)[0]) == (200, 200)
    finally:
        subprocess.run(["docker", "stop", container], check=True, capture_output=True)


@pytest.fixture
def pods(redis_stack: Stack, renderer: template.Renderer, tmp_path: Path) -> Iterator[Pods]:
    """What a cluster would run of the project, with a database and a queue of its own."""
    redis_stack.compose("exec", "-T", "postgres", "createdb", "--username=postgres", "pods")
    made = Pods(redis_stack, manifests(renderer, tmp_path).pods)
    try:
        yield made
    finally:
        subprocess.run(["docker", "rm", "--force", *made.started.values()], check=True, capture_output=True)


def test_pods_wait_for_their_release_and_become_ready_with_no_more_rights_than_their_manifests_give(pods):
    pods.start("web", "initContainers")
    assert pods.says("web", "Waiting for the release")
    pods.start("release")
    assert pods.exit_code("release") == pods.exit_code("web") == 0
    for name in ("beat", "flower", "web", "worker"):
        pods.start(name)
    for name in ("beat", "flower", "web", "worker"):
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert wait_until(lambda name=name, kind=kind: pods.passes(name, kind)), f"{name} {kind}: {pods.log(name)}"
    for name in ("beat", "flower", "web", "worker"):
        pods.stop(name)
        assert pods.exit_code(name) == 0, pods.log(name)


def answers(browser: Browser, path: str) -> int:
    """Return the status of a page, and 0 while nobody is there."""
    with suppress(OSError):
        return browser.get(path)[0]
    return 0


# Last, because these take the stacks from the others.


def test_switched_off_celery_leaves_no_container_and_the_project_runs_without_it(stacks):
    stack = stacks.take("redis")
    assert {"beat", "flower", "redis", "worker"} < stack.containers()
    stack.belong_to(os.getuid())
    template.commit_all(stack.folder)
    template.update(stack.folder, **template.OFF)
    stack.make("install")
    stack.belong_to(OWNER)
    stack.make("up")

    assert stack.containers() == {"postgres", "release", "web"}
    assert stack.is_healthy("web") and stack.is_healthy("postgres")
    status, page = Browser(f"http://127.0.0.1:{stack.ports['WEB_PORT']}").get("/")
    assert status == 200 and "Run a task" not in page
    in_image = "from importlib.util import find_spec; print(find_spec('django') and not find_spec('celery'))"
    assert stack.compose("exec", "-T", "web", "python", "-c", in_image).strip() == "True"
    # Tasks that were queued are not thrown away unasked.
    volumes = stack.run("docker", "volume", "ls", "--filter", stack.label, "--format", "{{ .Name }}").split()
    assert set(volumes) == {f"{stack.name}_postgres-data", f"{stack.name}_redis-data"}


@pytest.mark.slow
def test_make_down_ends_every_container_even_those_of_a_profile_that_is_off_by_now(stacks):
    stack = stacks.take("rabbitmq")
    assert "flower" in stack.containers()
    (stack.folder / ".env").unlink()
    stack.make("down")
    assert stack.containers() == set()
