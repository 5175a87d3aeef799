"""A toggled or updated project equals a freshly generated one, and nobody's edit is lost silently."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from tests import template
from tests.template import FORCING, OFF, Answers, Tree, label

MARKERS = re.compile(rb"^(<{7}|>{7}|={7})( |$)", re.MULTILINE)
# What a person adds to each shared file, in a place of the person's own.
ADDED = b"# mine\n"
OTHERWISE = {"celery_broker": "rabbitmq", "package_manager": "pip"}


def recorded(project: Path) -> Answers:
    return yaml.safe_load((project / template.ANSWERS_FILE).read_text())


def apart_from_answers(files: Tree) -> Tree:
    return {path: content for path, content in files.items() if path != template.ANSWERS_FILE}


def difference(one: Tree, other: Tree) -> list[str]:
    """The paths at which two trees differ in presence, mode or content."""
    return sorted(path for path in one | other if one.get(path) != other.get(path))


def edit_answers_file(project: Path, **answers: Any) -> None:
    """Change answers by hand, as the comment in the file invites to, and commit."""
    path = project / template.ANSWERS_FILE
    text = path.read_text()
    for name, value in answers.items():
        text = re.sub(rf"^{name}: .*$", yaml.safe_dump({name: value}).strip(), text, flags=re.MULTILINE)
    path.write_text(text)
    template.commit_all(project, "Change my mind")


def update_from_answers_file(project: Path) -> None:
    """`copier update --vcs-ref=:current: --defaults`, no answer given."""
    template.update(project)


def toggle(project: Path, by_hand: bool = False, **answers: Any) -> None:
    """Change answers and update, either way, and commit the outcome."""
    if by_hand:
        edit_answers_file(project, **answers)
        update_from_answers_file(project)
    else:
        template.update(project, **answers)
    assert not template.git(project, "diff", "--name-only", "--diff-filter=U"), "conflicts"
    template.commit_all(project, "Update")


def fresh(project: Path, render: Callable[..., Path]) -> Tree:
    """What a new project with this one's answers looks like."""
    answers = {name: recorded(project)[name] for name in template.DEFAULTS}
    return template.tree(render(**answers))


@pytest.mark.parametrize("by_hand", [False, True], ids=["data", "answers-file"])
@pytest.mark.parametrize("answers", [{}, pytest.param(OTHERWISE, marks=pytest.mark.slow)], ids=label)
def test_off_and_on_again_equals_fresh(project, render, answers, by_hand):
    made = project(**answers)
    on = template.tree(made)
    toggle(made, by_hand, use_celery=False)
    assert difference(template.tree(made), fresh(made, render)) == []
    toggle(made, by_hand, use_celery=True)
    assert difference(template.tree(made), on) == []


@pytest.mark.parametrize("by_hand", [False, True], ids=["data", "answers-file"])
def test_on_and_off_again_equals_fresh(project, render, by_hand):
    made = project(**OFF)
    off = template.tree(made)
    toggle(made, by_hand, use_celery=True)
    assert difference(template.tree(made), fresh(made, render)) == []
    toggle(made, by_hand, use_celery=False)
    assert difference(template.tree(made), off) == []


@pytest.mark.parametrize("forcing", FORCING, ids=label)
@pytest.mark.parametrize("use_celery", [True, False], ids=["kept", "removed"])
def test_dropping_the_last_feature_that_needs_celery_follows_use_celery(project, render, forcing, use_celery):
    made = project(**forcing, use_celery=use_celery)
    without = {name: template.DEFAULTS[name] for name in forcing}
    toggle(made, **without)
    assert (made / "apps/tasks").exists() == use_celery
    assert difference(template.tree(made), fresh(made, render)) == []


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_a_random_walk_over_all_switches_ends_where_a_fresh_project_is(project, render, seed):
    walk = random.Random(seed)
    made = project(**walk.choice(template.valid_answers()))
    for _ in range(8):
        names = walk.sample(sorted(template.SWITCHES), walk.randint(1, 3))
        answers = {name: walk.choice(template.SWITCHES[name]) for name in names}
        toggle(made, by_hand=walk.random() < 1 / 3, **answers)
        assert difference(template.tree(made), fresh(made, render)) == [], answers


def shared_files(project: Path) -> list[Path]:
    """The files of a project that are there with and without Celery."""
    on_only = ("apps/tasks", "tests/tasks", "acme/celery.py", "acme/tasks.py", "flowerconfig.py")
    return [
        project / path
        for path in sorted(template.tree(project))
        if not path.startswith(on_only) and path != template.ANSWERS_FILE and (project / path).is_file()
    ]


def test_what_a_person_adds_to_every_file_outlives_toggles(project, render):
    made = project()
    mine = shared_files(made)
    for path in mine:
        path.write_bytes(ADDED + path.read_bytes())
    (made / "apps/blog").mkdir()
    (made / "apps/blog/models.py").write_bytes(ADDED)
    migration = made / "apps/users/migrations/0002_mine.py"
    migration.write_bytes(ADDED)
    template.commit_all(made, "Mine")
    toggle(made, **OFF)
    toggle(made, use_celery=True)
    assert [path for path in [*mine, migration] if not path.read_bytes().startswith(ADDED)] == []
    rest = {
        path: (mode, content.removeprefix(ADDED))
        for path, (mode, content) in template.tree(made).items()
        if path not in {"apps/blog/models.py", "apps/users/migrations/0002_mine.py"}
    }
    assert difference(rest, fresh(made, render)) == []


def test_an_update_without_news_changes_nothing(project):
    made = project()
    update_from_answers_file(made)
    assert template.git(made, "status", "--porcelain", "--ignored") == ""


def test_no_toggle_leaves_rejects_markers_or_empty_folders(project):
    made = project()
    toggle(made, **OFF)
    files = template.tree(made)
    assert [path for path, (_, content) in files.items() if path.endswith((".rej", ".orig", "/"))] == []
    assert [path for path, (_, content) in files.items() if MARKERS.search(content)] == []


def test_a_changed_section_that_goes_conflicts_visibly(project):
    made = project()
    settings = made / "acme/settings.py"
    settings.write_text(settings.read_text().replace('"args": (16, 16),', '"args": (17, 17),'))
    template.commit_all(made, "Mine")
    template.update(made, **OFF)
    assert template.git(made, "diff", "--name-only", "--diff-filter=U").split() == ["acme/settings.py"]
    assert "(17, 17)" in settings.read_text()


def test_the_message_after_update_names_what_went_and_how_to_get_it_back(project, capsys):
    made = project()
    (made / "acme/tasks.py").write_text("# mine\n")
    template.commit_all(made, "Mine")
    copier.run_update(made, data=OFF, defaults=True, overwrite=True, quiet=False, vcs_ref=copier.VcsRef.CURRENT)
    said = capsys.readouterr().err
    for part in ("acme/celery.py", "acme/tasks.py", "apps/tasks", "git checkout HEAD -- FILE", "--diff-filter=U"):
        assert part in said
    template.git(made, "checkout", "HEAD", "--", "acme/tasks.py")
    assert (made / "acme/tasks.py").read_text() == "# mine\n"


def test_a_new_release_reaches_a_toggled_project(template_repo, tmp_path):
    """From the release before to this one, with a switch flipped on the way: equal to fresh."""
    repo = tmp_path / "template"
    template.git(tmp_path, "clone", "--quiet", str(template_repo), str(repo))
    made = template.copy(repo, tmp_path / "acme")
    template.commit_all(made, "Start")
    readme = repo / "template/README.md.jinja"
    readme.write_text(readme.read_text().replace("## Run it", "## Run it at once"))
    (repo / "template/apps/tasks/added.py").write_text('"""New in this release."""\n')
    template.commit_all(repo, "Release")
    template.git(repo, "tag", "v2.0.0")
    copier.run_update(made, data=OFF, defaults=True, overwrite=True, quiet=True)
    assert difference(template.tree(made), template.tree(template.copy(repo, tmp_path / "off", **OFF))) in (
        [],
        [template.ANSWERS_FILE],
    )
    assert recorded(made)["_commit"] == "v2.0.0"


def test_recopy_over_a_project_leaves_stale_files_that_do_nothing(project, template_repo):
    """`copier recopy` never deletes; the files that stay must be of no effect."""
    made = project()
    copier.run_recopy(made, data=OFF, defaults=True, overwrite=True, quiet=True)
    for path in sorted((made / "tests/tasks").glob("test_*.py")):
        assert 'pytest.importorskip("celery")' in path.read_text(), path
    assert "apps.tasks" not in (made / "acme/settings.py").read_text() + (made / "acme/urls.py").read_text()
