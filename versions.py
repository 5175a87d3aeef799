"""Write down which packages a release was tested with: `uv run versions.py`, or `uv run versions.py --upgrade`.

Three files of the template say so, and the repository's own `uv.lock` says it of the tools. Without an option, they
are brought in line with `template/pyproject.toml.jinja`, and every version stays. With `--upgrade`, each package moves
to the newest release that fits; run the tests, those marked `newest` first, before you commit that. With `--behind`,
nothing is written: the packages of which there is a newer release are listed.

A lock file fits one set of dependencies. Each set that the answers can lead to is therefore locked by uv itself, all of
them with the versions from one lock of their union. Where the outcomes differ, the template has a condition.
"""

import argparse
import itertools
import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests import template

ROOT = Path(__file__).resolve().parent
LOCK = ROOT / "template/uv.lock.jinja"
TESTED = ROOT / "template/tested-versions.txt.jinja"
PYPROJECT = ROOT / "template/pyproject.toml.jinja"
SEPARATOR = "[[package]]\n"
# What decides which packages a project has; the order is that in which conditions name them.
FEATURES = ("ai_chat", "asgi", "celery", "flower", "gevent", "metrics", "rabbitmq", "redis", "subscriptions")
# What pip needs beside the dependencies: itself, and what it builds the empty package of the project with.
PIP_TOOLS = ("pip", "setuptools")
PIN = re.compile(r"^([\w-]+)==([\w.]+)", re.MULTILINE)
TESTED_HEADER = """\
# The versions that the template's release was tested with. `copier update` brings those of the next release.
"""
LOCK_END = """\
{# uv sorts the packages by name, and the project is one of them. #}
{% set blocks = others.split("[[package]]\\n")[1:] %}
{% set before, after = blocks | select("lt", own) | list, blocks | select("gt", own) | list %}
{% for block in before + [own] + after %}
[[package]]
{{ block if not loop.last else block | trim ~ "\\n" -}}
{% endfor %}
"""


class Project(NamedTuple):
    """One set of dependencies: the features that lead to it, and the pyproject.toml."""

    features: dict[str, bool]
    pyproject: str


@cache
def projects() -> tuple[Project, ...]:
    """Return one project for each set of dependencies that answers can lead to."""
    renderer, found = template.Renderer(), {}
    for answers in template.valid_answers():
        context = renderer.context(answers)
        text = renderer.file(PYPROJECT.name, context)
        found.setdefault(text, Project({name: context["features"][name] for name in FEATURES}, text))
    return tuple(found.values())


def union() -> str:
    """Return a pyproject.toml that asks for all that any project asks for."""
    parsed = [tomllib.loads(project.pyproject) for project in projects()]
    dependencies = {each for one in parsed for each in one["project"]["dependencies"]}
    development = {each for one in parsed for each in one["dependency-groups"]["dev"]}
    extras: dict[str, set[str]] = {}
    for one in parsed:
        for name, needed in one["project"]["optional-dependencies"].items():
            extras.setdefault(name, set()).update(needed)
    head = {name: parsed[0]["project"][name] for name in ("name", "version", "requires-python")}
    lines = [f'{name} = "{value}"' for name, value in head.items()]
    lines += [f"dependencies = {toml_list(dependencies)}", "[project.optional-dependencies]"]
    lines += [f"{name} = {toml_list(needed)}" for name, needed in extras.items()]
    lines += ["[dependency-groups]", f"dev = {toml_list(development)}"]
    return "\n".join(["[project]", *lines, "[tool.uv]", "package = false", ""])


def toml_list(items: Iterable[str]) -> str:
    """Return a list of texts as TOML writes it."""
    return "[" + ", ".join(f'"{each}"' for each in sorted(items)) + "]"


# Asking uv ------------------------------------------------------------------


def uv(*arguments: str, cwd: Path, given: str | None = None) -> str:
    """Run uv in a folder and return what it printed; end with its message if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "UV_EXCLUDE_NEWER")}
    done = subprocess.run(["uv", *arguments], cwd=cwd, env=environment, input=given, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"uv {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def locked(pyproject: str, preferred: str, *options: str) -> str:
    """Return the uv.lock of a project, with the versions of another lock where they fit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(pyproject)
        if preferred:
            (folder / "uv.lock").write_text(preferred)
        uv("lock", "--quiet", *options, cwd=folder)
        return (folder / "uv.lock").read_text()


def shipped_lock() -> str:
    """Return a lock with every package of the template's, for uv to take its versions from; empty if there is none."""
    if not LOCK.exists():
        return ""
    text = re.sub(r"^\{[%#].*\n", "", LOCK.read_text(), flags=re.MULTILINE)
    # The first package is the project itself; of one that differs by its extras the last has them all.
    found = {(name_of(each), version_of(each)): each for each in packages(text) if "{{" not in each}
    return SEPARATOR.join([text.partition('\nname = "')[0] + "\n", *found.values()])


# From many locks to one template ---------------------------------------------


class Piece(NamedTuple):
    """A piece of a file, and the numbers of the projects that have it."""

    text: str
    owners: frozenset[int]


@cache
def condition(owners: frozenset[int]) -> str:
    """Return the shortest condition on features that holds for these projects and no others; empty for all of them.

    Raises ValueError if no short one does.
    """
    if len(owners) == len(projects()):
        return ""
    literals = [(f"features.{name}", name, True) for name in FEATURES]
    literals += [(f"not features.{name}", name, False) for name in FEATURES]
    holds = {
        text: {number for number, project in enumerate(projects()) if project.features[name] is value}
        for text, name, value in literals
    }
    for size in range(1, 5):
        for chosen in itertools.combinations(holds, size):
            if set().union(*(holds[text] for text in chosen)) == owners:
                return " or ".join(chosen)
            if set.intersection(*(holds[text] for text in chosen)) == owners:
                return " and ".join(chosen)
    raise ValueError(f"No condition of four features tells these projects from the others: {sorted(owners)}")


def conditional(pieces: Iterable[Piece]) -> str:
    """Return the pieces as the text of a template; neighbours with the same owners share a condition."""
    lines = []
    for owners, group in itertools.groupby(pieces, key=lambda piece: piece.owners):
        text, when = "".join(piece.text for piece in group), condition(owners)
        lines.append(f"{{% if {when} %}}\n{text}{{% endif %}}\n" if when else text)
    return "".join(lines)


def packages(lock: str) -> list[str]:
    """Return what stands in a lock of each package, without the line that begins it."""
    return [f"{text.rstrip()}\n\n" for text in lock.split(SEPARATOR)[1:]]


def is_own(package: str) -> bool:
    """Return whether this is the package of the project itself."""
    return "\nsource = { virtual = " in package


def name_of(package: str) -> str:
    """Return the name of a package in a lock."""
    return package.split('"')[1]


def version_of(package: str) -> str:
    """Return the version of a package in a lock."""
    return package.split('"')[3]


def merged_packages(locks: Sequence[str]) -> list[Piece]:
    """Return each package that any of the locks has, the project itself apart, in uv's order."""
    owners: dict[str, set[int]] = {}
    for number, lock in enumerate(locks):
        for package in filter(lambda each: not is_own(each), packages(lock)):
            owners.setdefault(package, set()).add(number)
    # Sorted by name alone: of one package with two versions uv's own order stays.
    found = [Piece(SEPARATOR + package, frozenset(numbers)) for package, numbers in owners.items()]
    return sorted(found, key=lambda piece: name_of(piece.text))


def merged_lines(texts: Sequence[str]) -> list[Piece]:
    """Return the lines of the project's own package in each lock, each with the numbers of the locks that have it.

    Between lines that all of them have stand lists, whose items are indented and sorted.
    """
    lines: list[tuple[str, set[int]]] = []
    for number, text in enumerate(texts):
        place = 0
        for line in text.splitlines(keepends=True):
            while place < len(lines) and comes_before(lines[place][0], line):
                place += 1
            if place == len(lines) or lines[place][0] != line:
                lines.insert(place, (line, set()))
            lines[place][1].add(number)
            place += 1
    return [Piece(line, frozenset(owners)) for line, owners in lines]


def comes_before(one: str, line: str) -> bool:
    """Return whether an item of a list stands before this line, which is another item or the end of the list."""
    return one.startswith("    ") and (one < line or not line.startswith("    "))


def lock_template(locks: Sequence[str]) -> str:
    """Return the template of uv.lock, from the lock of each project."""
    [head] = {lock.partition(SEPARATOR)[0] for lock in locks}
    own = conditional(merged_lines([next(filter(is_own, packages(lock))) for lock in locks]))
    return (
        "{# Written by `uv run versions.py`. #}\n"
        + head
        + f"{{% set own %}}\n{own.replace(name_of(own), '{{ dashed_slug }}', 1)}{{% endset %}}\n"
        + f"{{% set others %}}\n{conditional(merged_packages(locks))}{{% endset %}}\n"
        + LOCK_END
    )


# Constraints ----------------------------------------------------------------


def markers(lock: str) -> dict[tuple[str, str], str]:
    """Return the marker with which the project asks for each version of a package that is locked in several."""
    [own] = tomllib.loads(SEPARATOR + next(filter(is_own, packages(lock))))["package"]
    return {(each["name"], each["version"]): each["marker"] for each in own["dependencies"] if "version" in each}


def tested_template(locks: Sequence[str], tools: dict[str, str]) -> str:
    """Return the template of the constraints file: every package by name, and what pip needs for itself."""
    marker_of = {key: marker for lock in locks for key, marker in markers(lock).items()}
    owners: dict[str, frozenset[int]] = {}
    for text, numbers in merged_packages(locks):
        key = name_of(text), version_of(text)
        line = "==".join(key) + (f" ; {marker_of[key]}" if key in marker_of else "") + "\n"
        owners[line] = owners.get(line, frozenset()) | numbers
    lines = "".join(f"{name}=={tools[name]}\n" for name in PIP_TOOLS)
    return (
        "{# Written by `uv run versions.py`. #}\n"
        + TESTED_HEADER
        + f"{{% if features.pip %}}\n{lines}{{% endif %}}\n"
        + conditional(itertools.starmap(Piece, owners.items()))
    )


def tool_versions(upgrade: bool) -> dict[str, str]:
    """Return the version of each of pip's own tools: the newest, or else the one that the template names."""
    if TESTED.exists() and not upgrade:
        known = dict(PIN.findall(TESTED.read_text()))
        return {name: known[name] for name in PIP_TOOLS}
    options = ("--quiet", "--no-header", "--no-annotate")
    listed = uv("pip", "compile", *options, "-", cwd=ROOT, given="\n".join(PIP_TOOLS))
    return dict(PIN.findall(listed))


# The command ----------------------------------------------------------------


def versions_in(lock: str) -> dict[str, str]:
    """Return the versions of each package in a lock, as one text, by name; without the project itself."""
    found: dict[str, list[str]] = {}
    for package in filter(lambda each: not is_own(each), packages(lock)):
        found.setdefault(name_of(package), []).append(version_of(package))
    return {name: ", ".join(each) for name, each in found.items()}


def behind() -> list[str]:
    """Return a line for each package whose newest release that fits is not the one that was tested."""
    tested, newest = versions_in(shipped_lock()), versions_in(locked(union(), ""))
    moved = [f"{name}: {tested.get(name)} -> {each}" for name, each in newest.items() if each != tested.get(name)]
    return [*moved, f"{len(moved)} of {len(newest)} packages have a newer release than the tested one."]


def main() -> None:
    """Write the files; nothing is written if uv cannot lock a project."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="move every package to its newest release")
    parser.add_argument("--behind", action="store_true", help="list the packages that have a newer release")
    options = parser.parse_args()
    if options.behind:
        print("\n".join(behind()))
        return
    upgrade = options.upgrade
    tools = tool_versions(upgrade)
    build = re.sub(r'"setuptools==[\w.]+"', f'"setuptools=={tools["setuptools"]}"', PYPROJECT.read_text())
    whole = locked(union(), "" if upgrade else shipped_lock())
    # Each project gets the versions of the lock of them all.
    locks = [locked(project.pyproject, whole, "--offline") for project in projects()]
    written = {LOCK: lock_template(locks), TESTED: tested_template(locks, tools), PYPROJECT: build}
    for path, text in written.items():
        path.write_text(text)
    if upgrade:
        uv("lock", "--upgrade", "--quiet", cwd=ROOT)


if __name__ == "__main__":
    main()
