"""Fixtures that the promises share."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import template

# Here, because the process that prints for several workers reads no file of a folder below.
from tests.faults.table import pytest_terminal_summary as pytest_terminal_summary
from tests.processes import Bytecode

# The tests in it are those of a project, and run there.
collect_ignore = ["shop"]


def pytest_configure(config: pytest.Config) -> None:
    """Take with the tests what killed programs leave behind: whatever the tests start has a temporary folder of theirs.

    Its name is short, because sockets lie in it.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.mkdtemp(prefix="tests-")
        # PostgreSQL's user goes through it.
        os.chmod(folder, 0o755)
        os.environ["TMPDIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("lengthy") is None)


template.remember_what_was_compiled()


@pytest.fixture(scope="session", autouse=True)
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let all processes of this run compile a module once."""
    base = tmp_path_factory.getbasetemp()
    Bytecode.store = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bytecode"


@pytest.fixture(scope="session")
def template_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a tagged repository."""
    return template.snapshot(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def render(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`render(**answers)` generates a project once per set of answers; for tests that only read it."""
    made: dict[str, Path] = {}

    def render(**answers: Any) -> Path:
        key = json.dumps(answers, sort_keys=True)
        if key not in made:
            made[key] = template.copy(template_repo, tmp_path_factory.mktemp("project") / "acme", **answers)
        return made[key]

    return render


@pytest.fixture
def project(template_repo: Path, tmp_path: Path) -> Callable[..., Path]:
    """`project(**answers)` generates a project and commits it; for tests that change it."""

    def project(**answers: Any) -> Path:
        made = template.copy(template_repo, tmp_path / "acme", **answers)
        template.commit_all(made, "Start")
        return made

    return project


@pytest.fixture(scope="session")
def renderer() -> template.Renderer:
    """The fast renderer of the template as it is."""
    return template.Renderer()
