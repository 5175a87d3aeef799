"""What the template renders is what a reviewer would merge: clean, valid, and the same wherever a fact stands twice."""

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import template
from tests.processes import needed
from tests.template import label

NAMES = [
    "Bob's Shop",
    'The "Best" Shop',
    "Ünïcode 日本語 ✓",
    "x" * 80,
    "back\\slash",
    "{{ not }} {% a tag %}",
    "#1: a & b",
]


@pytest.fixture(scope="module")
def outputs(renderer: template.Renderer) -> dict[str, list[bytes]]:
    """Every distinct output of every file, over all distinct projects."""
    found: dict[str, dict[bytes, None]] = {}
    for answers in template.distinct_answers():
        for path, content in renderer.project(answers).items():
            found.setdefault(path, {})[content] = None
    found.pop(template.ANSWERS_FILE)
    return {path: list(contents) for path, contents in found.items()}


@pytest.fixture(scope="module")
def variants(outputs: dict[str, list[bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in which every distinct output of every file stands at its place, beside one of each other file."""
    root = tmp_path_factory.mktemp("variants")
    for number in range(max(map(len, outputs.values()))):
        for path, contents in outputs.items():
            if number < len(contents) or path == "pyproject.toml":
                file = root / f"{number:02}" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(contents[min(number, len(contents) - 1)])
    return root


def run(*command: str, cwd: Path) -> str:
    """Run a tool of this repository's environment; return what it printed if it failed."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True)
    return done.stdout + done.stderr if done.returncode else ""


def places(variants: Path, *patterns: str) -> list[str]:
    """The files that match, relative to the folder of all variants."""
    found = sorted(str(path.relative_to(variants)) for pattern in patterns for path in variants.glob(f"*/{pattern}"))
    assert found, patterns
    return found


@pytest.mark.parametrize("command", [("check",), ("format", "--check", "--diff")], ids=" ".join)
def test_python_is_clean_and_formatted_by_the_rules_of_the_project(variants, command):
    assert not run("ruff", *command, "--no-cache", "--quiet", ".", cwd=variants)


def test_html_is_clean_and_formatted(variants):
    assert not run("djlint", "--check", "--lint", "--quiet", "--configuration", "00/pyproject.toml", "00", cwd=variants)


def test_html_is_copied_as_it_is():
    named = [name for name in template.template_files() if re.search(r"\.(html|txt|css|js)\.jinja$", name)]
    assert [name for name in named if name.removesuffix(".jinja") not in template.TESTED_VERSIONS] == []


def test_yaml_is_clean(variants):
    rules = "{extends: default, rules: {document-start: disable, line-length: {max: 130}, truthy: {check-keys: false}}}"
    files = places(variants, "docker-compose.yml", ".github/**/*.yml", ".pre-commit-config.yaml")
    assert not run("yamllint", "--strict", "-d", rules, *files, cwd=variants)


@pytest.mark.parametrize(
    "schema, pattern",
    [
        ("compose-spec", "docker-compose.yml"),
        ("dependabot", ".github/dependabot.yml"),
        ("github-workflows", ".github/workflows/*.yml"),
    ],
)
def test_yaml_fits_its_schema(variants, schema, pattern):
    files = places(variants, pattern)
    assert not run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files, cwd=variants)


def test_no_action_can_change_under_the_name_that_the_workflow_has(variants):
    files = places(variants, ".github/workflows/*.yml")
    used = [line for path in files for line in (variants / path).read_text().splitlines()]
    actions = {line.split("uses: ")[1] for line in used if "uses: " in line}
    assert len(actions) == 3
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action)] == []


def test_toml_is_clean_and_formatted(variants):
    rules = itertools.chain.from_iterable(("-o", f"array_auto_{change}=false") for change in ("collapse", "expand"))
    assert not run("taplo", "format", "--check", "--diff", *rules, *places(variants, "pyproject.toml"), cwd=variants)


def shell_scripts(outputs: dict[str, list[bytes]]) -> Iterator[str]:
    """Yield what a shell reads in compose files and workflows."""
    for compose in compose_files(outputs):
        for service in compose["services"].values():
            # Without a list of words, a health check is a line for the shell.
            yield from [test] if isinstance(test := service.get("healthcheck", {}).get("test"), str) else []
            words = shlex.split(service.get("command", ""))
            yield from words[2:] if words[:2] == ["sh", "-c"] else []
    for content in outputs[".github/workflows/ci.yml"]:
        for job in yaml.safe_load(content)["jobs"].values():
            yield from (step["run"] for step in job["steps"] if "run" in step)


def test_shell_is_clean(outputs, tmp_path):
    scripts = sorted(set(shell_scripts(outputs)))
    assert any("--remove-stale" in script for script in scripts), "the release command is not among them"
    for number, script in enumerate(scripts):
        (tmp_path / f"{number}.sh").write_text(f"#!/bin/sh\n{script.rstrip()}\n")
    files = [template.ROOT / ".ci/run", *sorted(tmp_path.iterdir())]
    assert not run("shellcheck", *map(str, files), cwd=template.ROOT)


def test_dockerfiles_are_clean(variants):
    # DL3042: pip's cache is a mount, which is not part of the image.
    assert not run("hadolint", "--ignore", "DL3042", *places(variants, "Dockerfile"), cwd=variants)


def test_make_reads_every_makefile(variants):
    make = needed("make")
    for path in places(variants, "Makefile"):
        assert not run(make, "--dry-run", "--makefile", path, "install", "dev", "test", "lint", cwd=variants)


@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not on PATH")
def test_docker_compose_accepts_every_compose_file(variants):
    if run("docker", "compose", "version", cwd=variants):
        pytest.skip("docker has no compose plugin")
    for path, profile in itertools.product(places(variants, "docker-compose.yml"), ("", "flower")):
        assert not run("docker", "compose", "--profile", profile, "--file", path, "config", "--quiet", cwd=variants)


@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not on PATH")
def test_the_message_after_an_update_calls_the_containers_what_docker_compose_calls_them(renderer, tmp_path):
    if run("docker", "compose", "version", cwd=tmp_path):
        pytest.skip("docker has no compose plugin")
    folder = tmp_path / "_My Acme-2.0_x"
    folder.mkdir()
    (folder / "docker-compose.yml").write_text("services: {web: {image: web}}")
    config = ["docker", "compose", "config", "--format", "json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
    name = json.loads(subprocess.check_output(config, cwd=folder, env=environment))["name"]
    context = renderer.context(template.DEFAULTS | {"docker_mode": "none"})
    context["_copier_conf"].dst_path = folder
    message = renderer.string(template.settings()["_message_after_update"], context)
    assert f"--project-name {name} down" in message
    assert f"--force {name}_postgres-data {name}_rabbitmq-data {name}_redis-data" in message


def test_files_end_with_one_newline_and_lines_without_space(outputs):
    bad = [
        path
        for path, contents in outputs.items()
        for content in contents
        if content and (not content.endswith(b"\n") or content.endswith(b"\n\n") or re.search(rb"[ \t]\n", content))
    ]
    assert bad == []


def test_no_two_blank_lines_outside_of_python(outputs):
    bad = [path for path, contents in outputs.items() if not path.endswith(".py") and b"\n\n\n" in b"".join(contents)]
    assert bad == []


# Compose --------------------------------------------------------------------


def compose_files(outputs: dict[str, list[bytes]]) -> Iterator[dict[str, Any]]:
    for content in outputs["docker-compose.yml"]:
        yield yaml.safe_load(content)


def compose_faults(compose: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each fault that no schema sees."""
    services = compose["services"]
    if "version" in compose:
        yield "version: is obsolete"
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    if unused := set(compose["volumes"]) - used:
        yield f"volumes nobody uses: {unused}"
    if undeclared := {name for name in used if not name.startswith(".")} - set(compose["volumes"]):
        yield f"volumes nobody declares: {undeclared}"
    for name, service in services.items():
        once = service.get("restart") == "no"
        if not once and "healthcheck" not in service:
            yield f"{name}: no health check"
        if not once and service.get("restart") != "unless-stopped":
            yield f"{name}: restart is {service.get('restart')}"
        for port in service.get("ports", []):
            if not re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-\d+\}:\d+", port):
                yield f"{name}: {port} is not on 127.0.0.1 from a variable"
        if "image" in service and not re.search(r":\w", service["image"]):
            yield f"{name}: {service['image']} is not pinned"
        if service.get("command", "").startswith("celery"):
            if not service.get("init") or "stop_grace_period" not in service:
                yield f"{name}: needs init and stop_grace_period"
            if "user" not in service:
                yield f"{name}: runs as root"
        for other, condition in service.get("depends_on", {}).items():
            if other not in services:
                yield f"{name}: waits for {other}, which is not there"
            elif condition["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name}: waits for the health of {other}, which has no check"
            elif condition["condition"] == "service_completed_successfully" and services[other]["restart"] != "no":
                yield f"{name}: waits for the end of {other}, which never ends"
        needed = {"release"} | {"redis", "rabbitmq"} & set(services)
        if service.get("command", "").startswith("celery") and not needed <= set(service["depends_on"]):
            yield f"{name}: does not wait for broker and release"
    if "redis" in services and "--appendonly yes --maxmemory-policy noeviction" not in services["redis"]["command"]:
        yield "redis: forgets or evicts tasks"
    if "flower" in services and services["flower"].get("profiles") != ["flower"]:
        yield "flower: is no profile of its own"
    if ("worker" in services) != ("beat" in services):
        yield "worker without beat"
    worker = services.get("worker")
    if worker and int(worker["environment"]["WORKER_STOP_SECONDS"]) >= int(worker["stop_grace_period"][:-1]):
        yield "worker: is killed before it gives its tasks back"


def test_compose_files_hold_together(outputs):
    faults = [fault for compose in compose_files(outputs) for fault in compose_faults(compose)]
    assert faults == []


BREAK_COMPOSE = {
    "version: is obsolete": lambda compose: compose.update(version="3"),
    "volumes nobody uses": lambda compose: compose["volumes"].update(left={}),
    "volumes nobody declares": lambda compose: compose["volumes"].clear(),
    "no health check": lambda compose: compose["services"]["web"].pop("healthcheck"),
    "restart is": lambda compose: compose["services"]["worker"].pop("restart"),
    "is not on 127.0.0.1": lambda compose: compose["services"]["web"].update(ports=["8000:8000"]),
    "is not pinned": lambda compose: compose["services"]["postgres"].update(image="postgres"),
    "needs init": lambda compose: compose["services"]["worker"].pop("init"),
    "runs as root": lambda compose: compose["services"]["beat"].pop("user"),
    "which is not there": lambda compose: compose["services"].pop("redis"),
    "which never ends": lambda compose: compose["services"]["release"].update(restart="unless-stopped"),
    "which has no check": lambda compose: compose["services"]["redis"].pop("healthcheck"),
    "does not wait for broker": lambda compose: compose["services"]["worker"]["depends_on"].pop("redis"),
    "forgets or evicts": lambda compose: compose["services"]["redis"].update(command="redis-server"),
    "no profile": lambda compose: compose["services"]["flower"].pop("profiles"),
    "worker without beat": lambda compose: compose["services"].pop("beat"),
    "killed before it gives": lambda compose: compose["services"]["worker"].update(stop_grace_period="25s"),
}


@pytest.mark.parametrize("fault", BREAK_COMPOSE)
def test_the_check_of_compose_files_finds(renderer, fault):
    compose = yaml.safe_load(renderer.project(template.DEFAULTS)["docker-compose.yml"])
    BREAK_COMPOSE[fault](compose)
    assert any(fault in found for found in compose_faults(compose))


# Conditions -----------------------------------------------------------------


def jinja_sources() -> Iterator[tuple[str, str]]:
    for name in template.template_files():
        if name.endswith(".jinja"):
            yield name, (template.ROOT / "template" / name).read_text()


def test_templates_test_features_only():
    bad = [
        f"{name}: {test}"
        for name, source in jinja_sources()
        for test in re.findall(r"\{% (?:el)?if (.*?) %\}", source)
        if not re.fullmatch(r"(not )?features\.\w+( (and|or) (not )?features\.\w+)*", test)
    ]
    assert bad == []


def test_conditions_are_few_flat_and_on_lines_of_their_own():
    for name, source in jinja_sources():
        # Every feature has its own section in settings.py, its line in INSTALLED_APPS, and packages in pyproject.toml.
        # Nobody reads what a command writes to edit it.
        is_written = name.removesuffix(".jinja") in template.TESTED_VERSIONS
        assert is_written or source.count("{% if ") <= (
            14 if name in ("{{project_slug}}/settings.py.jinja", "pyproject.toml.jinja") else 8
        ), name
        depth = 0
        for line in source.splitlines():
            if "{% if " in line or "{% endif" in line or "{% else" in line:
                assert re.fullmatch(r"\{% (if .*|endif|else) %\}", line), f"{name}: {line}"
            depth += line.count("{% if ") - line.count("{% endif")
            assert depth <= 1, f"{name}: {line}"


def test_no_block_of_celery_ends_a_list(outputs):
    """People append to lists: the last entry has to be one that stays."""
    for content in outputs["pyproject.toml"]:
        project = tomllib.loads(content.decode())
        assert project["project"]["dependencies"][-1].startswith("whitenoise")
        assert project["dependency-groups"]["dev"][-1].startswith("ruff")
    for content in outputs["docker-compose.yml"]:
        compose = yaml.safe_load(content)
        assert list(compose["services"])[-1] in ("postgres", "web")
        assert list(compose["volumes"])[-1] == "postgres-data"


# Names ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_name_survives_everywhere(renderer, name):
    answers = template.DEFAULTS | {"project_name": name, "description": name, "author_name": name}
    files = renderer.project(answers)
    settings = ast.parse(files["acme/settings.py"])
    values = {
        node.targets[0].id: node.value.value
        for node in settings.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    assert values["PROJECT_NAME"] == name
    project = tomllib.loads(files["pyproject.toml"].decode())["project"]
    assert (project["description"], project["authors"][0]["name"]) == (name, name)
    assert files["README.md"].decode().startswith(f"# {name}\n\n{name}\n")
    assert yaml.safe_load(files[template.ANSWERS_FILE])["project_name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_any_name_keeps_python_formatted(renderer, tmp_path, name):
    files = renderer.project(template.DEFAULTS | {"project_name": name})
    for path in ("acme/settings.py", "acme/urls.py", "pyproject.toml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(files[path])
    assert not run("ruff", "format", "--check", "--diff", "--no-cache", "--quiet", ".", cwd=tmp_path)


def bound_names(content: bytes) -> Iterator[tuple[int, str, bool]]:
    """Yield the names that a module binds anywhere, with the line, and whether that is the package of this name."""
    for node in ast.walk(ast.parse(content)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, each.asname or each.name.split(".")[0], not each.asname) for each in names)
            case ast.ImportFrom(names=names):
                yield from ((node.lineno, each.asname or each.name, False) for each in names)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name, False
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name, False
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name, False


def python_files(outputs: dict[str, list[bytes]]) -> Iterator[tuple[str, bytes]]:
    for path, contents in outputs.items():
        if path.endswith(".py"):
            yield from ((path, content) for content in contents)


def test_no_name_of_ours_is_that_of_a_package_or_folder_of_the_project(outputs):
    """`import apps.shop` binds the name `apps`: what else has this name in a module breaks at that line."""
    taken = {path.split("/")[0].removesuffix(".py") for path in outputs if path.endswith(".py")}
    shadowed = {
        f"{path}:{line}: {name}"
        for path, content in python_files(outputs)
        for line, name, is_package in bound_names(content)
        if name in taken and not is_package
    }
    assert shadowed == set()


@pytest.mark.parametrize(
    "line",
    [
        *("from django.apps import apps", "import django.apps as apps", "apps = 1", "(apps := 1)", "def apps(): ..."),
        *("class apps: ...", "def ready(apps): ...", "for apps in (): ...", "with one as apps: ..."),
    ],
)
def test_the_look_at_names_finds(line):
    assert [name for _, name, is_package in bound_names(line.encode()) if not is_package].count("apps") == 1


def test_image_tags_are_the_same_everywhere(outputs):
    text = b"".join(itertools.chain.from_iterable(outputs.values())).decode()
    tags: dict[str, set[str]] = {}
    for image, tag in re.findall(r"(?:image: |FROM |--from=)([\w./-]+):([\w.-]+)", text):
        tags.setdefault(image, set()).add(tag)
    tags.pop("python")
    assert {image: found for image, found in tags.items() if len(found) > 1} == {}


@pytest.mark.parametrize("answers", template.pair_cover()[:3], ids=label)
def test_generation_gives_the_same_bytes_each_time(template_repo, tmp_path, answers):
    one, two = (template.tree(template.copy(template_repo, tmp_path / name / "acme", **answers)) for name in "ab")
    assert one == two
