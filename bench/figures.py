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

from tests import template
from tests.browser import Browser
from tests.dev_support import Terminal
from tests.template import ROOT, Renderer
from tests.test_mutants import EQUIVALENT, mutants

REPEAT = 5
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


def empty_template(folder: Path, files: list[str]) -> Path:
    """Make a template with as many files, at the same depth and with the same suffixes, but with nothing in them."""
    text = "_subdirectory: template\nuse_celery: true\nproject_slug: acme\n"
    (folder / "copier.yml").parent.mkdir(parents=True)
    (folder / "copier.yml").write_text(text)
    for name in files:
        path = folder / "template" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{{ _copier_answers | to_nice_yaml }}" if "answers_file" in name else "")
    template.commit_all(folder)
    template.git(folder, "tag", "v1.0.0")
    return folder


def copier_costs(work: Path) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds of a copy and of a toggle: this template's, and the empty one's."""
    ours = template.snapshot(work / "ours")
    empty = empty_template(work / "empty", [name for name in template.template_files()])
    least: dict[str, list[float]] = {"copy": [9e9, 9e9], "toggle": [9e9, 9e9]}
    for attempt in range(REPEAT):
        # Alternating, so that whatever slows the machine slows both.
        for column, repository in enumerate((ours, empty)):
            made = work / f"made-{column}-{attempt}"
            answers = ["--data", "project_slug=acme", "--defaults", "--quiet"]
            copied = cost(lambda: command("copy", *answers, str(repository), str(made), cwd=work))  # noqa: B023
            template.commit_all(made)
            off = ["--vcs-ref=:current:", "--defaults", "--quiet", "--data", "use_celery=false"]
            toggled = cost(lambda: command("update", *off, cwd=made))  # noqa: B023
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
    on, off = (renderer.project(template.DEFAULTS | answers) for answers in ({}, template.OFF))
    settings = [len(files["acme/settings.py"].splitlines()) for files in (on, off)]
    outputs = {
        (path, content)
        for answers in template.distinct_answers()
        for path, content in renderer.project(answers).items()
        if path != template.ANSWERS_FILE
    }
    return [
        ("conditions in files of the template", f"{sum(counts.values())}, at most {counts[worst]} in a file ({worst})"),
        ("valid sets of answers", f"{len(template.valid_answers())}"),
        ("distinct projects", f"{len(template.distinct_answers())}"),
        ("distinct files over all of them", f"{len(outputs)}"),
        ("mutants of conditions", f"{len(mutants())}, of which {len(EQUIVALENT)} are equivalent"),
        ("files of a project, Celery on and off", f"{len(on)} and {len(off)}"),
        ("lines of its settings.py, Celery on and off", f"{settings[0]} and {settings[1]}"),
    ]


def main() -> None:
    """Measure, print and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        costs = copier_costs(Path(folder))
        copied, finished = first_task(Path(folder))
        rows = sizes()
    for name, (ours, empty) in costs.items():
        figure = f"{ours:.2f}, {ours / empty:.2f} times as much as an empty template with as many files"
        rows.append((f"CPU seconds of `copier {'copy' if name == 'copy' else 'update'}` ({name})", figure))
    rows.append(
        ("wall seconds from nothing to a finished task", f"{finished:.0f}, of which `copier copy` {copied:.0f}")
    )
    rows.append(("Copier", version("copier")))
    lines = ["# Figures", "", "Made by `uv run python -m bench`.", "", "| what | figure |", "| --- | --- |"]
    text = "\n".join([*lines, *(f"| {name} | {figure} |" for name, figure in rows)]) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
