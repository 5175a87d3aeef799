"""A line that a person adds anywhere in a shared file outlives a toggle in its place, or conflicts visibly.

The scan tries every line of every file, so it takes Copier's three steps on a single file (diff against the old tree,
`git apply --reject`, `git merge-file` where that fails) instead of one whole `copier update` per line. Another test
takes a sample through `copier update` itself and compares.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import template
from tests.template import OFF, Answers

MINE = "a line of mine"
# With every target, because the same lines stand in many of their files, and for several processes.
SHIPPED = {"deploy": template.TARGETS}
TOGGLES = {
    "on-off": (SHIPPED, OFF | SHIPPED),
    "off-on": (OFF | SHIPPED, SHIPPED),
    "rabbitmq-off": ({"celery_broker": "rabbitmq", "docker_mode": "services"}, OFF),
    "redis-rabbitmq": (SHIPPED, {"celery_broker": "rabbitmq"} | SHIPPED),
    "rabbitmq-redis": ({"celery_broker": "rabbitmq"} | SHIPPED, SHIPPED),
    "full-services": ({}, {"docker_mode": "services"}),
    "jobs-off": ({"use_background_tasks": True}, OFF),
    "off-jobs": (OFF, {"use_background_tasks": True}),
    "flower-none": (SHIPPED, {"use_flower": False} | SHIPPED),
    "none-flower": ({"use_flower": False} | SHIPPED, SHIPPED),
    "uv-pip": ({}, {"package_manager": "pip"}),
    "pip-uv": ({"package_manager": "pip"}, {}),
    "wsgi-asgi": ({}, {"use_async": True}),
    "chat-none": ({"use_ai_chat": True}, {}),
    "none-chat": ({}, {"use_ai_chat": True}),
    "per_unit-none": ({"subscriptions": "per_unit"}, {}),
    "none-per_unit": ({}, {"subscriptions": "per_unit"}),
    "metrics-none": ({"use_metrics": True} | SHIPPED, SHIPPED),
    "none-metrics": (SHIPPED, {"use_metrics": True} | SHIPPED),
}
# Those of a kind with another one.
MORE_TOGGLES = (
    "chat-none",
    "flower-none",
    "full-services",
    "jobs-off",
    "metrics-none",
    "none-chat",
    "none-flower",
    "none-per_unit",
    "off-jobs",
    "per_unit-none",
    "rabbitmq-off",
    "rabbitmq-redis",
)
CONFLICT = re.compile(r"^<{7} ", re.MULTILINE)


def comment(path: str) -> str:
    """A line of one's own, in the file's way of writing comments; a list item where files are lists of items."""
    return f"<!-- {MINE} -->\n" if path.endswith(".md") else f"# {MINE}\n"


def git(folder: Path, *arguments: str, given: str = "") -> str:
    """Run git without a test of its exit code, as Copier does in these steps."""
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | alone, input=given, text=True, capture_output=True
    ).stdout


def merged(folder: Path, old: str, edited: str, new: str) -> str:
    """What Copier makes of a file that was `old`, was edited to `edited`, and is `new` in the new tree."""
    for name, text in {"a": old, "b": edited, "file": new, "old": old, "new": new, "edited": edited}.items():
        (folder / name).write_text(text)
    patch = git(folder, "diff", "--no-index", "--unified=3", "a", "b")
    patch = patch.replace("a/a", "a/file").replace("b/b", "b/file")
    git(folder, "apply", "--reject", given=patch)
    rejected = folder / "file.rej"
    if rejected.exists():
        rejected.unlink()
        (folder / "file").write_text(edited)
        git(folder, "merge-file", "file", "old", "new")
    return (folder / "file").read_text()


LANDMARK = re.compile(r"^(\[|#+ |\.PHONY: |\w[\w-]*:$)|^# .* -{10,}$")


def address(lines: list[str], number: int) -> tuple[str, ...]:
    """Where a line stands: the title of its part of the file, what it is indented under, and itself."""
    chain = [lines[number]]
    for line in reversed(lines[:number]):
        if line.strip() and indent(line) < indent(chain[-1]):
            chain.append(line)
    title = next((lines[above] for above in range(number - 1, -1, -1) if is_title(lines, above)), "")
    return (title, *reversed(chain))


def is_title(lines: list[str], number: int) -> bool:
    """Whether a part of the file begins with this line; a comment that follows another line is no title."""
    comment_below = lines[number].startswith("# ") and number > 0 and lines[number - 1].strip() != ""
    return bool(LANDMARK.search(lines[number])) and not comment_below


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def neighbours(lines: list[str], place: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses of the nearest lines around a place that say something; empty at the ends of a file."""
    before = next((number for number in range(place - 1, -1, -1) if lines[number].strip()), None)
    after = next((number for number in range(place, len(lines)) if lines[number].strip()), None)
    return tuple(() if number is None else address(lines, number) for number in (before, after))


def verdict(old: list[str], place: int, outcome: str, new: list[str]) -> str:
    """Return what became of the line added before line `place` of `old`: "" where it is well."""
    if CONFLICT.search(outcome):
        return "" if MINE in outcome else "lost"
    lines = outcome.splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if MINE in line]
    if len(found) != 1:
        return "lost" if not found else "doubled"
    rest = lines[: found[0]] + lines[found[0] + 1 :]
    if rest != new:
        return "the rest of the file changed"
    was, now = neighbours(old, place), neighbours(new, found[0])
    return "" if was[0] == now[0] or was[1] == now[1] else f"moved from between {was} to between {now}"


def shared(renderer: template.Renderer, toggle: tuple[Answers, Answers]) -> dict[str, tuple[list[str], list[str]]]:
    """The lines of each file that both trees have and that differs between them, before and after."""
    old, new = (renderer.project(template.DEFAULTS | answers) for answers in toggle)
    return {
        path: (old[path].decode().splitlines(keepends=True), new[path].decode().splitlines(keepends=True))
        for path in sorted(old.keys() & new.keys())
        if old[path] != new[path] and path not in (template.ANSWERS_FILE, *template.OWNERS_FILES)
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in MORE_TOGGLES else name for name in TOGGLES]
)
def test_a_line_added_at_every_place_is_kept_or_conflicts(renderer, tmp_path, name):
    template.git(tmp_path, "init", "--quiet")
    harmed = []
    for path, (old, new) in shared(renderer, TOGGLES[name]).items():
        for place in range(len(old) + 1):
            edited = [*old[:place], comment(path), *old[place:]]
            outcome = merged(tmp_path, "".join(old), "".join(edited), "".join(new))
            if harm := verdict(old, place, outcome, new):
                harmed.append(f"{path}:{place + 1}: {harm}")
    assert not harmed, f"{len(harmed)}:\n" + "\n".join(harmed)


# Where a person adds an app: below the last of the apps, and as the last of the URLs.
AN_APP = {
    "acme/settings.py": ('    "apps.web",\n', '    "apps.mine",\n'),
    "acme/urls.py": ('    path("admin/", admin.site.urls),\n', '    path("mine/", include("apps.mine.urls")),\n'),
}


@pytest.mark.parametrize("name", TOGGLES)
def test_an_app_of_ones_own_never_conflicts(renderer, tmp_path, name):
    old, new = (renderer.project(template.DEFAULTS | answers) for answers in TOGGLES[name])
    template.git(tmp_path, "init", "--quiet")
    for path, (above, line) in AN_APP.items():
        mine, expected = (project[path].decode().replace(above, above + line) for project in (old, new))
        assert line in mine and merged(tmp_path, old[path].decode(), mine, new[path].decode()) == expected


@pytest.mark.parametrize("name", ["on-off", "off-on"])
@pytest.mark.parametrize("part", [1, *(pytest.param(part, marks=pytest.mark.slow) for part in (2, 3))])
def test_copier_itself_does_what_the_scan_takes_it_to_do(project, renderer, tmp_path, name, part):
    """One line at a quarter, at half and at three quarters of every shared file, and a real `copier update`."""
    before, after = TOGGLES[name]
    made = project(**before)
    expected = {}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    template.git(scratch, "init", "--quiet")
    for path, (old, new) in shared(renderer, TOGGLES[name]).items():
        place = len(old) * part // 4
        edited = "".join([*old[:place], comment(path), *old[place:]])
        (made / path).write_text(edited)
        expected[path] = merged(scratch, "".join(old), edited, "".join(new))
    template.commit_all(made, "Mine")
    template.update(made, **({"use_celery": True} | after))
    labels = re.compile(r"^(<{7}|\|{7}|>{7}) .*$", re.MULTILINE)
    for path, text in expected.items():
        assert labels.sub(r"\1", (made / path).read_text()) == labels.sub(r"\1", text), path


ALIKE = "services:\n" + "".join(
    f"  {name}:\n    build: .\n    env_file: .env\n    init: true\n    restart: always\n    user: app\n    tty: true\n"
    for name in ("beat", "web", "worker")
)


def test_the_scan_finds_a_line_that_moves_between_blocks_that_are_alike(tmp_path):
    """A check of the check: in a compose file of equal bodies the merge does move lines, and the scan says so."""
    template.git(tmp_path, "init", "--quiet")
    old = ALIKE.splitlines(keepends=True)
    new = old[:1] + old[8:15]
    harmed = []
    for place in range(len(old) + 1):
        edited = [*old[:place], comment("compose.yml"), *old[place:]]
        outcome = merged(tmp_path, "".join(old), "".join(edited), "".join(new))
        harmed.append(verdict(old, place, outcome, new))
    assert any(harm.startswith("moved") for harm in harmed)
