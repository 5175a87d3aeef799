"""Figures about the template, as ratios within one run: `uv run python -m bench` prints and writes them to results.md.

CPU seconds are those of the process and its children, which a busy machine changes little; wall seconds it does change.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests import template
from tests.browser import Browser
from tests.dev_support import Terminal
from tests.template import ROOT, Renderer
from tests.test_mutants import EQUIVALENT, first_breach, mutants

REPEAT = 5
# What somebody gets who accepts every answer, but for the background-task example, which would keep Celery on.
BY_ENTER = template.DEFAULTS | {"deploy": ["compose"]}
COPIER_ROWS = {
    "copy": "CPU seconds of `copier copy`, without the background-task example",
    "toggle": "CPU seconds of `copier update` that switches Celery off",
}
FIRST_TASK_ROW = "wall seconds from nothing to a finished task, with all packages in uv's cache"
RESULTS = Path(__file__).with_name("results.md")


def cpu_seconds() -> float:
    """Return the CPU seconds that this process and its finished children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def cost(action: Callable[[], object]) -> float:
    """Return the CPU seconds of an action."""
    before = cpu_seconds()
    action()
    return cpu_seconds() - before


def command(*arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "copier", *arguments], cwd=cwd, check=True, capture_output=True)


def empty_template(folder: Path, on: set[str], off: set[str]) -> Path:
    """Make a template of empty files: these, by their paths in our template, with Celery on, and those with it off."""
    folder.mkdir()
    (folder / "copier.yml").write_text(
        "_subdirectory: template\n"
        "use_celery: true\n"
        "project_slug: acme\n"
        "_exclude:\n"
        "  - |\n"
        f"    {{% if use_celery %}}{listed(off - on)}    {{% else %}}{listed(on - off)}    {{% endif %}}\n"
    )
    for name in on | off:
        path = folder / "template" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{{ _copier_answers | to_nice_yaml }}" if "answers_file" in name else "")
    template.commit_all(folder)
    template.git(folder, "tag", "v1.0.0")
    return folder


def listed(names: set[str]) -> str:
    """Return files of the template as lines of `_exclude`."""
    return "\n" + "".join(f"    /{name.removesuffix('.jinja')}\n" for name in sorted(names))


def names(renderer: Renderer, **answers: Any) -> set[str]:
    """Return the files of our template that a project of these answers is made of."""
    return {name for _, name in renderer.paths(renderer.context(BY_ENTER | answers))}


def copier_costs(work: Path) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds of a copy and of a toggle: this template's, and the empty one's."""
    ours = template.snapshot(work / "ours")
    renderer = Renderer()
    on, off = names(renderer), names(renderer, **template.OFF)
    empty = empty_template(work / "empty", on, off)
    least: dict[str, list[float]] = {"copy": [9e9, 9e9], "toggle": [9e9, 9e9]}
    for attempt in range(REPEAT):
        # Alternating, so that whatever slows the machine slows both.
        for column, repository in enumerate((ours, empty)):
            made = work / f"made-{column}-{attempt}"
            answers = ["--data", "project_slug=acme", "--data", "use_background_tasks=false", "--defaults", "--quiet"]
            copied = cost(lambda: command("copy", *answers, str(repository), str(made), cwd=work))  # noqa: B023
            assert len(template.tree(made)) == len(on), made
            template.commit_all(made)
            switch = ["--vcs-ref=:current:", "--defaults", "--quiet", "--data", "use_celery=false"]
            toggled = cost(lambda: command("update", *switch, cwd=made))  # noqa: B023
            assert len(template.tree(made)) == len(off) < len(on), made
            least["copy"][column] = min(least["copy"][column], copied)
            least["toggle"][column] = min(least["toggle"][column], toggled)
    return {name: (pair[0], pair[1]) for name, pair in least.items()}


def first_task(work: Path) -> tuple[float, float]:
    """Return the wall seconds from nothing to a finished task, packages cached: of `copier copy`, and of all of it."""
    begun = time.monotonic()
    made = work / "first"
    command("copy", "--defaults", "--quiet", "--data", "project_slug=acme", str(work / "ours"), str(made), cwd=work)
    copied = time.monotonic() - begun
    with Terminal(made, ["uv", "run", "manage.py", "dev"], clean_environment()) as terminal:
        site = terminal.shows(r"web +(http://[\d.:]+)/").group(1)
        terminal.shows(r"celery@\S+ ready")
        terminal.shows(r"Starting development server")
        assert Browser(site).run_task(20, 22) == "42"
        finished = time.monotonic() - begun
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
    return copied, finished


def clean_environment() -> dict[str, str]:
    """Return the environment without the virtual environment that this runs in."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "DEBUG")}


def sizes() -> list[tuple[str, str]]:
    """Return figures about the template's sources and what it renders."""
    jinja = {n: (ROOT / "template" / n).read_text() for n in template.template_files() if n.endswith(".jinja")}
    counts = {name: text.count("{% if ") for name, text in jinja.items()}
    worst = max(counts, key=lambda name: counts[name])
    renderer = Renderer()
    on, off = (renderer.project(BY_ENTER | answers) for answers in ({}, template.OFF))
    enter_alone = renderer.project(BY_ENTER | {"use_background_tasks": True})
    settings = [len(files["acme/settings.py"].splitlines()) for files in (enter_alone, on, off)]
    survivors = [mutant for mutant in mutants() if str(mutant) not in EQUIVALENT and not first_breach(mutant)]
    outputs = {
        (path, content)
        for answers in template.distinct_answers()
        for path, content in renderer.project(answers).items()
        if path != template.ANSWERS_FILE
    }
    return [
        ("conditions in the template's files", f"{sum(counts.values())}, at most {counts[worst]} in a file ({worst})"),
        ("valid sets of answers", f"{len(template.valid_answers())}"),
        ("distinct projects", f"{len(template.distinct_answers())}"),
        ("distinct files in all of them", f"{len(outputs)}"),
        (
            "mutants of conditions",
            f"{len(mutants())}: {len(survivors)} survive the tests, {len(EQUIVALENT)} change nothing",
        ),
        (
            "files in a project with all defaults; without the background-task example; without Celery",
            counts_of(enter_alone, on, off),
        ),
        ("lines in its settings.py", "; ".join(map(str, settings))),
    ]


def counts_of(*projects: dict[str, bytes]) -> str:
    """Return how many files each project has."""
    return "; ".join(str(len(project)) for project in projects)


def main() -> None:
    """Measure, print and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        costs = copier_costs(Path(folder))
        copied, finished = first_task(Path(folder))
        rows = sizes()
    for name, (ours, empty) in costs.items():
        figure = f"{ours:.2f}, {ours / empty:.2f} times as much as a template with as many empty files"
        rows.append((COPIER_ROWS[name], figure))
    rows.append((FIRST_TASK_ROW, f"{finished:.0f}, of which `copier copy` {copied:.0f}"))
    rows.append(("Copier", version("copier")))
    lines = ["# Figures", "", "Made by `uv run python -m bench`.", "", "| what | figure |", "| --- | --- |"]
    text = "\n".join([*lines, *(f"| {name} | {figure} |" for name, figure in rows)]) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
