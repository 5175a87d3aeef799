"""K5: a project of the template before `apps/tasks` had rooms is updated, and no edit of its owner is lost silently."""

import re
import shutil
import subprocess
from pathlib import Path

import copier
import pytest

from tests import template
from tests.processes import needed, run

# The last commit with all modules of `apps/tasks` in one folder.
BEFORE = "86f8707"
HOW_TO = (template.ROOT / "docs/how-to/update.md").read_text()
MOVES = dict(re.findall(r"^\| `(apps/tasks/\w+\.py)` \| `([\w/]+\.py)`", HOW_TO, re.MULTILINE))
# The line of each file to which its owner adds a word.
EDITS = {
    "apps/tasks/admin.py": "from django.contrib import admin, messages",
    "apps/tasks/alive.py": "import os",
    "apps/tasks/broker.py": "SENDER_SECONDS = 0.5",
    "apps/tasks/checks.py": "RABBITMQ_CONSUMER_TIMEOUT_SECONDS = 1800",
    "apps/tasks/lease.py": "WATCH_SECONDS = 1.0",
    "apps/tasks/outbox.py": "BATCH = 100",
    "apps/tasks/queues.py": "DELIVERY_LIMIT = 100",
    "apps/tasks/scheduler.py": "RETRY_SECONDS = 1.0",
    "apps/tasks/views.py": "GIVE_UP_SECONDS = 600",
    "apps/tasks/worker.py": "LOOK_SECONDS = 5.0",
}


@pytest.fixture(scope="module")
def updated(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the state before, with the edits of its owner, updated to this state and not committed."""
    folder = tmp_path_factory.mktemp("move")
    repo, project = folder / "template", folder / "acme"
    archive = ["git", "archive", BEFORE, "copier.yml", "includes", "template"]
    before = subprocess.run(archive, cwd=template.ROOT, capture_output=True)
    if before.returncode:
        pytest.skip(f"This clone does not have the commit {BEFORE}: {before.stderr.decode()}")
    repo.mkdir()
    subprocess.run(["tar", "-x"], cwd=repo, input=before.stdout, check=True)
    template.commit_all(repo, "Before")
    template.git(repo, "tag", "v1.0.0")
    for name in ("includes", "template"):
        shutil.rmtree(repo / name)
    shutil.copytree(template_repo, repo, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
    template.commit_all(repo, "Now")
    template.git(repo, "tag", "v2.0.0")
    copier.run_copy(str(repo), project, data=template.DEFAULTS, defaults=True, quiet=True, vcs_ref="v1.0.0")
    template.commit_all(project, "Start")
    for name, line in EDITS.items():
        text = (project / name).read_text()
        assert text.count(f"{line}\n") == 1, f"{name}: {line}"
        (project / name).write_text(text.replace(f"{line}\n", f"{line}  # mine\n"))
    template.commit_all(project, "Mine")
    copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    return project


def shell(folder: Path, command: str) -> str:
    """Run a command of the how-to in a folder; return what it printed, and fail if it fails."""
    return run(folder, needed("bash"), "-c", command)


def commands() -> list[str]:
    """The commands of the how-to about files that move, without prompts."""
    section = HOW_TO.partition("## When a release moves")[2]
    return [re.sub(r"^\$ ", "", block, flags=re.M) for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL)]


def test_the_table_has_every_module_that_has_moved_and_where_it_is(updated):
    gone = template.git(updated, "diff", "--name-only", "--diff-filter=D").splitlines()
    modules = {name for name in gone if re.fullmatch(r"apps/tasks/\w+\.py", name)}
    assert modules == MOVES.keys()
    assert all((updated / new).is_file() for new in MOVES.values())


def test_the_command_of_the_how_to_and_of_the_message_shows_each_edit_in_a_file_that_moved(updated):
    shown = shell(updated, commands()[0]).splitlines()
    assert [line for line in shown if "# mine" in line] == [f"+{line}  # mine" for _, line in sorted(EDITS.items())]
    messages = (template.ROOT / "includes/messages.jinja").read_text()
    assert commands()[0].strip() in messages


@pytest.mark.parametrize("name", EDITS)
def test_the_how_to_carries_an_edit_to_where_its_file_has_moved(updated, name):
    recipe = commands()[1].replace("apps/tasks/outbox.py", name)
    recipe = recipe.replace("apps/tasks/sending/outbox.py", MOVES[name])
    shell(updated, recipe)
    assert f"{EDITS[name]}  # mine\n" in (updated / MOVES[name]).read_text()
