"""The rooms of `apps/tasks`: few, small, and open in one direction."""

import ast
import re
import shutil

import pytest

from docs.rooms import PICTURE, ROOMS, files_of, imports, modules, picture, room
from tests import template
from tests.processes import installed, run

TOP = {*(f"{name}.py" for name in ("__init__", "apps", "models")), "README.md", "migrations", *ROOMS[1:]}
LONGEST = 250
# Celery asks for the class of its tasks, and Django for the configuration of an app, before there are models.
EARLY = {
    "apps.py",
    "console/apps.py",
    "sending/backend.py",
    "sending/outbox.py",
    "sending/running.py",
    "sending/task.py",
}


@pytest.fixture(scope="module")
def files(renderer: template.Renderer) -> dict[str, str]:
    """The modules of `apps/tasks` in a project with every feature, by their path in there."""
    return files_of(renderer)


def test_the_top_level_has_ten_entries_at_most(files):
    assert {path.partition("/")[0] for path in files} == TOP and len(TOP) <= 10


def test_no_file_is_long(files):
    lines = {path: text.count("\n") for path, text in files.items() if path.endswith(".py")}
    assert not {path: number for path, number in lines.items() if number > LONGEST}


def test_imports_go_one_way(files):
    wrong = [
        f"{path} imports {name}"
        for path, text in modules(files).items()
        for name, _ in imports(path, text)
        if ROOMS.index(name.partition(".")[0]) > ROOMS.index(room(path))
    ]
    assert not wrong


def test_no_imports_go_in_a_circle(files):
    known = modules(files)
    targets = {path.removesuffix(".py").replace("/", "."): path for path in known}
    ways = {
        path: {targets[name] for name, inside in imports(path, text) if name in targets and not inside}
        for path, text in known.items()
    }
    while leaves := [path for path, wanted in ways.items() if not wanted & ways.keys()]:
        for path in leaves:
            del ways[path]
    assert not ways


def test_functions_import_only_where_celery_starts_too_early_for_models(files):
    inside = {path for path, text in files.items() if path.endswith(".py") and any(i for _, i in imports(path, text))}
    assert inside == EARLY


def test_each_inner_part_of_celery_and_kombu_is_on_the_list(files):
    trees = {path: ast.parse(text) for path, text in files.items() if path.endswith(".py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    ours = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef)}
    ours |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    private = {
        (path, node.attr)
        for path, node in nodes
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)
        if node.attr not in ours or ast.unparse(node.value) == "super()"
    }
    listed = files["broker/parts.py"]
    # Django's `_meta` and Python's `os._exit` are documented.
    assert not {each for each in private if each[1] not in listed and each[1] not in ("_meta", "_exit")}


def test_each_room_says_what_it_promises_and_who_calls_it(files):
    for name in ROOMS[1:]:
        docstring = ast.get_docstring(ast.parse(files[f"{name}/__init__.py"]))
        assert docstring and "call" in docstring, name
        assert f"`{name}/`" in files["README.md"], name


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("worker/rows.py", "from .replay import pack", [("worker.replay", False)]),
        ("worker/rows.py", "from ..models import FailedTask", [("models", False)]),
        ("worker/rows.py", "def f():\n    from apps.tasks.beat import lease", [("beat", True)]),
        ("apps.py", "from . import models", [("models", False)]),
        ("worker/rows.py", "import apps.tasks.beat.lease\nimport os", [("beat.lease", False)]),
    ],
)
def test_an_import_is_seen_however_it_is_written(path, text, found):
    assert list(imports(path, text)) == found


def test_the_picture_shows_the_rooms_as_they_are(files):
    assert PICTURE.read_text() == picture(files), "run `uv run python -m docs.rooms`"


@pytest.mark.run
def test_a_project_runs_without_the_panel_that_the_readme_says_may_be_deleted(template_repo, tmp_path):
    project, programs = installed(template_repo, tmp_path, "3.13", use_flower=False)
    console = project / "apps/tasks/console"
    for name in ("forms.py", "urls.py", "views.py"):
        (console / name).unlink()
    shutil.rmtree(console / "templates/tasks")
    (project / "tests/tasks/test_panel.py").unlink()
    config = (console / "apps.py").read_text()
    config = config.partition("    def home_panel_context")[0].replace('    home_panel = "tasks/panel.html"\n', "")
    (console / "apps.py").write_text(config)
    urls = (project / "acme/urls.py").read_text()
    (project / "acme/urls.py").write_text(re.sub(r".*apps\.tasks\.console\.urls.*\n", "", urls))
    tests = ("tests/web/test_home.py", "tests/tasks/test_health.py")
    assert " passed" in run(project, programs / "python", "-m", "pytest", "-q", *tests)
