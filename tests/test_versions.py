"""A project installs the versions that its release was tested with, until its owner asks for others."""

import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import versions
from tests import template
from tests.processes import environment, needed, run
from tests.template import OFF, ROOT

Package = dict[str, Any]


def packages(lock: bytes) -> list[Package]:
    return tomllib.loads(lock.decode())["package"]


def is_own(package: Package) -> bool:
    return package["source"] == {"virtual": "."}


def needed_by(package: Package, extras: tuple[str, ...] = ()) -> Iterator[Package]:
    """What a package in a lock depends on, with these extras; of the project itself also all of its own, and `dev`."""
    groups = package.get("dev-dependencies", {}).values()
    optional = package.get("optional-dependencies", {})
    chosen = [needed for extra, needed in optional.items() if extra in extras or is_own(package)]
    for dependencies in (package.get("dependencies", []), *groups, *chosen):
        yield from dependencies


def reached(lock: bytes) -> set[tuple[str, str]]:
    """The packages in a lock that the project needs, by name and version."""
    locked = packages(lock)
    found: set[tuple] = set()
    waiting = [{"name": package["name"]} for package in locked if is_own(package)]
    while waiting:
        asked = waiting.pop()
        extras = tuple(asked.get("extra", ()))
        for package in locked:
            key = (package["name"], package["version"], extras)
            is_meant = package["name"] == asked["name"] and asked.get("version", key[1]) == key[1]
            if is_meant and key not in found:
                found.add(key)
                waiting.extend(needed_by(package, extras))
    return {(name, version) for name, version, _ in found}


@pytest.fixture(scope="module")
def projects(renderer: template.Renderer) -> list[dict[str, bytes]]:
    """One project for each set of dependencies that answers can lead to."""
    found = {}
    for answers in template.distinct_answers():
        files = renderer.project(answers | {"package_manager": "uv"})
        found.setdefault(files["pyproject.toml"], files)
    assert len(found) == len(versions.projects())
    return list(found.values())


def test_each_lock_is_one_that_uv_takes_as_it_is_with_nothing_installed_and_nothing_asked(projects, tmp_path):
    refused = []
    for number, files in enumerate(projects):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("pyproject.toml", "uv.lock", "README.md"):
            (folder / name).write_bytes(files[name])
        command = (needed("uv"), "lock", "--check", "--offline", "--no-cache", "--no-python-downloads")
        done = subprocess.run(command, cwd=folder, env=environment(), text=True, capture_output=True)
        refused += [done.stderr] if done.returncode else []
    assert not refused


def test_each_lock_has_what_the_project_needs_and_nothing_else(projects):
    for files in projects:
        lock = files["uv.lock"]
        listed = [(package["name"], package["version"]) for package in packages(lock)]
        assert set(listed) == reached(lock) and len(set(listed)) == len(listed)


SLUGS = ["acme", "my__project_", "zebra", "django_allauth_ui"]


def uv_lock(folder: Path, files: Mapping[str, bytes], *options: str) -> None:
    """Write what uv needs of a project into a folder, and run `uv lock` there."""
    for name in ("pyproject.toml", "uv.lock", "README.md"):
        (folder / name).write_bytes(files[name])
    subprocess.run([needed("uv"), "lock", *options], cwd=folder, env=environment(), check=True)


@pytest.mark.parametrize("slug", SLUGS)
def test_a_lock_names_the_project_as_uv_does_and_in_its_place(renderer, tmp_path, slug):
    files = renderer.project(template.DEFAULTS | {"project_slug": slug})
    # That uv takes it shows the name: with another one, the project would be missing from the lock.
    uv_lock(tmp_path, files, "--check", "--offline", "--no-cache")
    names = [package["name"] for package in packages(files["uv.lock"])]
    assert names == sorted(names) and re.sub("_+", "-", slug.strip("_")) in names


@pytest.mark.newest
@pytest.mark.parametrize("slug", SLUGS)
def test_a_lock_that_uv_writes_anew_is_the_same(renderer, tmp_path, slug):
    """uv asks the package index for this, and a file that was added there since then changes the lock."""
    files = renderer.project(template.DEFAULTS | {"project_slug": slug})
    # A lock that is not the current one is written anew: here by another version of the project.
    files["pyproject.toml"] = files["pyproject.toml"].replace(b'version = "0.1.0"', b'version = "0.1.1"')
    uv_lock(tmp_path, files)
    written = (tmp_path / "uv.lock").read_text()
    own = f'name = "{re.sub("_+", "-", slug.strip("_"))}"\nversion = "0.1.1"'
    assert own in written
    assert written.replace(own, own.replace("0.1.1", "0.1.0")) == files["uv.lock"].decode()


def test_the_constraints_are_the_versions_of_the_lock(projects):
    for files in projects:
        locked = {(each["name"], each["version"]) for each in packages(files["uv.lock"]) if not is_own(each)}
        assert {*versions.PIN.findall(files["tested-versions.txt"].decode())} == locked


def test_pip_gets_the_same_constraints_and_the_versions_of_its_own_tools(renderer):
    uv, pip = (
        {*versions.PIN.findall(renderer.project(template.DEFAULTS | manager)["tested-versions.txt"].decode())}
        for manager in ({"package_manager": "uv"}, {"package_manager": "pip"})
    )
    assert uv < pip and {name for name, _ in pip - uv} == {"pip", "setuptools"}


def test_pip_builds_with_the_version_that_was_tested(render):
    made = render(package_manager="pip")
    tested = dict(versions.PIN.findall((made / "tested-versions.txt").read_text()))
    build = tomllib.loads((made / "pyproject.toml").read_text())["build-system"]
    assert build["requires"] == [f"setuptools=={tested['setuptools']}"]


def test_no_package_of_a_project_is_a_slug(renderer):
    """A project's own package is called by its slug, and no project can depend on a package of its own name."""
    validator = template.questions()["project_slug"]["validator"]
    names = [name.replace("-", "_") for name, _ in versions.PIN.findall(versions.TESTED.read_text())]
    assert {"celery", "django_allauth", "stripe"} < set(names)
    assert [name for name in names if not renderer.string(validator, {"project_slug": name}).strip()] == []


# What the owner does ---------------------------------------------------------


def locked_versions(project: Path) -> dict[str, str]:
    return {package["name"]: package["version"] for package in packages((project / "uv.lock").read_bytes())}


def with_other_version(project: Path, name: str, version: str) -> None:
    """Lock another version of a package, as the owner may."""
    run(project, needed("uv"), "lock", f"--upgrade-package={name}=={version}")
    assert locked_versions(project)[name] == version


@pytest.mark.run
def test_make_install_keeps_what_is_locked_and_adds_tested_versions_of_what_is_new(project):
    made = project(**OFF)
    with_other_version(made, "django-htmx", "1.24.0")
    template.commit_all(made, "Mine")
    template.update(made, use_celery=True)
    # Not the newest, so that the file is seen to decide.
    tested = made / "tested-versions.txt"
    tested.write_text(re.sub(r"^flower==.*$", "flower==2.0.1", tested.read_text(), flags=re.MULTILINE))
    run(made, needed("make"), "install")
    found = locked_versions(made)
    assert (found["django-htmx"], found["flower"]) == ("1.24.0", "2.0.1")
    assert run(made, ".venv/bin/python", "-c", "import flower; print(flower.__version__)").strip() == "2.0.1"


@pytest.mark.run
def test_make_tested_takes_the_versions_of_the_release(project):
    made = project(**OFF)
    shipped = locked_versions(made)
    with_other_version(made, "django-htmx", "1.24.0")
    run(made, needed("make"), "tested")
    assert locked_versions(made) == shipped


# The repository's own tests --------------------------------------------------


def test_uv_itself_is_of_one_version_in_ci_and_in_images():
    [version] = re.findall(r"install --quiet uv==(\S+)", (ROOT / ".ci/run").read_text())
    image = (ROOT / "template/Dockerfile.jinja").read_text()
    assert re.findall(r"ghcr.io/astral-sh/uv:(\S+)", image) == [version.rpartition(".")[0]]
