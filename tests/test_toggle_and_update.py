"""A toggled or updated project equals a freshly generated one, and nobody's edit is lost silently."""

import itertools
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from tests import template
from tests.processes import run
from tests.template import FORCING, OFF, Answers, Tree, label

MARKERS = re.compile(rb"^(<{7}|>{7}|={7})( |$)", re.MULTILINE)
# What a person adds to each shared file, in a place of the person's own.
ADDED = b"# mine\n"
OTHERWISE = {"celery_broker": "rabbitmq", "package_manager": "pip"}


def recorded(project: Path) -> Answers:
    return yaml.safe_load((project / template.ANSWERS_FILE).read_text())


def difference(one: Tree, other: Tree) -> list[str]:
    """The paths at which two trees differ in presence, mode or content; of the owner's files, in presence alone."""
    return sorted(
        path
        for path in one | other
        if one.get(path) != other.get(path) and not (path in template.OWNERS_FILES and path in one and path in other)
    )


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


# By hand it is the same way, and so goes the walk below.
@pytest.mark.parametrize("by_hand", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["data", "answers-file"])
def test_on_and_off_again_equals_fresh(project, render, by_hand):
    made = project(**OFF)
    off = template.tree(made)
    toggle(made, by_hand, use_celery=True)
    assert difference(template.tree(made), fresh(made, render)) == []
    toggle(made, by_hand, use_celery=False)
    assert difference(template.tree(made), off) == []


@pytest.mark.parametrize(
    "answers",
    [
        {"celery_pool": "threads"},
        {
            "project_name": "Zebra",
            "description": "Rents zebras.",
            "author_name": "Zoe",
            "author_email": "zoe@example.com",
        },
        *(
            pytest.param({name: template.SWITCHES[name][1]}, marks=pytest.mark.slow)
            for name in sorted(template.SWITCHES.keys() - {"celery_pool", "deploy"})
        ),
    ],
    ids=label,
)
def test_each_answer_that_is_edited_by_hand_reaches_the_project(project, render, answers):
    made = project(deploy=["compose", "procfile"])
    toggle(made, by_hand=True, **answers)
    assert difference(template.tree(made), fresh(made, render)) == []


def test_an_update_renames_no_package(project):
    made = project()
    for by_hand in (False, True):
        with pytest.raises(Exception, match="an update cannot rename it"):
            toggle(made, by_hand, project_slug="zebra")
        template.git(made, "reset", "--hard")
        assert not (made / "zebra").exists() and (made / "acme/settings.py").exists()


def test_the_edits_in_files_that_went_are_found_in_a_folder_of_a_larger_repository(template_repo, tmp_path):
    made = template.copy(template_repo, tmp_path / "backend", **template.DEFAULTS)
    template.git(tmp_path, "init")
    template.commit_all(tmp_path, "Start")
    with (made / "acme/tasks.py").open("a") as file:
        file.write("MINE = 1\n")
    template.commit_all(tmp_path, "Edit")
    template.update(made, use_celery=False)
    for text in (
        (template.ROOT / "docs/how-to/update.md").read_text(),
        (template.ROOT / "includes/messages.jinja").read_text(),
    ):
        [command] = re.findall(r"git diff [^`\n]*--diff-filter=D \| xargs .*", text)
        assert "+MINE = 1" in run(made, "bash", "-c", command)


@pytest.mark.parametrize("forcing", FORCING, ids=label)
@pytest.mark.parametrize("use_celery", [pytest.param(True, marks=pytest.mark.slow), False], ids=["kept", "removed"])
def test_dropping_the_last_feature_that_needs_celery_follows_use_celery(project, render, forcing, use_celery):
    made = project(**forcing, use_celery=use_celery)
    without = {name: template.DEFAULTS[name] for name in forcing}
    toggle(made, **without)
    assert (made / "apps/tasks").exists() == use_celery
    assert difference(template.tree(made), fresh(made, render)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_over_all_switches_ends_where_a_fresh_project_is(project, render, seed):
    walk = random.Random(seed)
    made = project(**walk.choice(template.valid_answers()))
    for step in range(6):
        names = walk.sample(sorted(template.SWITCHES), walk.randint(1, 3))
        answers = {name: walk.choice(template.SWITCHES[name]) for name in names}
        toggle(made, by_hand=step % 3 == 0, **answers)
        assert difference(template.tree(made), fresh(made, render)) == [], answers


def shared_files(project: Path) -> list[Path]:
    """The files of a project that are there with and without Celery."""
    on_only = ("apps/tasks", "apps/web/clock.py", "tests/tasks", "acme/celery.py", "acme/tasks.py", "flowerconfig.py")
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


@pytest.mark.parametrize(
    "manager, path", [("uv", "uv.lock"), pytest.param("pip", "constraints.txt", marks=pytest.mark.slow)]
)
def test_what_the_owner_has_locked_is_left_alone_and_the_tested_versions_follow(project, render, manager, path):
    made = project(package_manager=manager)
    (made / path).write_text("# mine\n")
    template.commit_all(made, "Mine")
    for use_celery in (False, True):
        toggle(made, use_celery=use_celery)
        assert (made / path).read_text() == "# mine\n"
        assert ("celery==" in (made / "tested-versions.txt").read_text()) == use_celery
    assert difference(template.tree(made), fresh(made, render)) == []


def test_a_lock_that_was_deleted_comes_anew_with_the_next_update(project, render):
    made = project()
    (made / "uv.lock").unlink()
    template.commit_all(made, "Without")
    toggle(made, **OFF)
    assert (made / "uv.lock").read_bytes() == fresh(made, render)["uv.lock"][1]


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


# What the next release changes in files: a text, a dependency, and a question with a block of its own.
NEXT_RELEASE = {
    "copier.yml": {
        "use_ai_chat:\n": "use_search:\n  type: bool\n  default: true\n\nuse_ai_chat:\n",
        '      "services":': '      "search": use_search,\n      "services":',
    },
    "template/README.md.jinja": {
        "## Run it\n": "{% if features.search %}\n## Search\n\n{% endif %}\n## Run it at once\n"
    },
    "template/pyproject.toml.jinja": {'"django-htmx>=': '"django-htmx>=1.24,>='},
}


@pytest.fixture(scope="module")
def releases(template_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with this release, v1.0.0, and the next one, v2.0.0, with a file more and a file less."""
    repo = tmp_path_factory.mktemp("releases") / "template"
    template.git(repo.parent, "clone", "--quiet", str(template_repo), str(repo))
    for name, changes in NEXT_RELEASE.items():
        text = (repo / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, f"{name}: {old}"
            text = text.replace(old, new)
        (repo / name).write_text(text)
    (repo / "template/apps/tasks/added.py").write_text('"""New in this release."""\n')
    (repo / "template/apps/tasks/README.md").unlink()
    template.commit_all(repo, "Release")
    template.git(repo, "tag", "v2.0.0")
    return repo


@pytest.fixture(scope="module")
def released(releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`released(version, **answers)` generates a project of a release once; for tests that only read or copy it."""
    made: dict[tuple[str, str], Path] = {}

    def released(version: str, **answers: Any) -> Path:
        key = (version, label(answers))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("released") / "acme"
            given = template.DEFAULTS | answers
            copier.run_copy(str(releases), made[key], data=given, defaults=True, quiet=True, vcs_ref=version)
        return made[key]

    return released


CHAT = {"use_ai_chat": True}
# From what to what a project goes on the way; a pair of equals changes no answer.
ON_THE_WAY = [({}, OFF), (OFF, {}), ({}, CHAT)]
MORE_ON_THE_WAY = [pair for pair in itertools.product([{}, OFF, CHAT], repeat=2) if pair not in ON_THE_WAY]


@pytest.mark.parametrize(
    "start, to", [*ON_THE_WAY, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_ON_THE_WAY)], ids=label
)
def test_a_new_release_reaches_a_project_that_is_toggled_on_the_way(released, tmp_path, start, to):
    """Equal to fresh. There is no earlier release yet, so this one is the earlier, and the next is made up here."""
    made = tmp_path / "acme"
    shutil.copytree(released("v1.0.0", **start), made)
    template.commit_all(made, "Start")
    answers = {name: template.DEFAULTS[name] for name in start} | to
    copier.run_update(made, data=answers, defaults=True, overwrite=True, quiet=True)
    assert difference(template.tree(made), template.tree(released("v2.0.0", **to))) == []


def test_a_teammate_updates_from_where_the_team_hosts_the_template(releases, tmp_path):
    mine, hosted = tmp_path / "clone", tmp_path / "hosted.git"
    template.git(tmp_path, "clone", "--quiet", str(releases), str(mine))
    template.git(tmp_path, "init", "--quiet", "--bare", str(hosted))
    copier.run_copy(str(mine), tmp_path / "acme", data=template.DEFAULTS, defaults=True, quiet=True, vcs_ref="v1.0.0")
    template.commit_all(tmp_path / "acme", "Start")
    template.git(mine, "push", "--quiet", "--mirror", str(hosted))
    edit_answers_file(tmp_path / "acme", _src_path=f"git+file://{hosted}")
    # What a teammate has: the project, and not the folder that it was made from.
    shutil.rmtree(mine)
    copier.run_update(tmp_path / "acme", defaults=True, overwrite=True, quiet=True)
    assert (tmp_path / "acme/apps/tasks/added.py").exists()


def test_recopy_over_a_project_leaves_stale_files_that_do_nothing(project, template_repo):
    """`copier recopy` never deletes; the files that stay must be of no effect."""
    made = project()
    copier.run_recopy(made, data=OFF, defaults=True, overwrite=True, quiet=True)
    for path in sorted((made / "tests/tasks").glob("test_*.py")):
        assert 'pytest.importorskip("celery")' in path.read_text(), path
    assert "apps.tasks" not in (made / "acme/settings.py").read_text() + (made / "acme/urls.py").read_text()
