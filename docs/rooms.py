"""Draws docs/images/rooms.svg, how the rooms of `apps/tasks` import each other: `uv run python -m docs.rooms`."""

import ast
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

from tests import template
from tests.template import ROOT

# A module imports from its own room and from those before it; `models` is beneath them all.
ROOMS = ("models", "broker", "sending", "worker", "beat", "console")
PICTURE = ROOT / "docs/images/rooms.svg"
WIDTH, MARGIN, HEAD, LINE, GAP = 760, 20, 30, 20, 26
CARD, PER_LINE = 480, 54
STYLE = """
    rect.page { fill: #161b22; stroke: #6e7681; }
    rect.room { fill: #21262d; stroke: #6e7681; }
    text { fill: #e6edf3; font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre; }
    .name { fill: #7ee787; font-weight: bold; }
    .quiet { fill: #9da7b3; }
    path { fill: none; stroke: #79c0ff; }
    path.head { fill: #79c0ff; stroke: none; }
"""


def files_of(renderer: template.Renderer) -> dict[str, str]:
    """Return the files of `apps/tasks` in a project with every feature, by their path in there."""
    project = renderer.project(template.DEFAULTS | template.EVERYTHING)
    folder = "apps/tasks/"
    return {path.removeprefix(folder): text.decode() for path, text in project.items() if path.startswith(folder)}


def imports(path: str, text: str) -> Iterator[tuple[str, bool]]:
    """Yield each module of `apps.tasks` that a module imports, from there on, and whether a function does so."""
    tree = ast.parse(text)
    top = set(map(id, tree.body))
    package = ["apps", "tasks", *Path(path).parent.parts]
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module, level=level, names=names):
                base = package[: len(package) - level + 1] if level else []
                whole = ".".join([*base, *([module] if module else [])])
                found = [whole] if module else [f"{whole}.{each.name}" for each in names]
            case ast.Import(names=names):
                found = [each.name for each in names]
            case _:
                continue
        for name in found:
            if name.startswith("apps.tasks."):
                yield name.removeprefix("apps.tasks."), id(node) not in top


def room(path: str) -> str:
    """Return the room of a module, or the name of a module that is in none."""
    return path.partition("/")[0].removesuffix(".py")


def modules(files: dict[str, str]) -> dict[str, str]:
    """Return the modules that are in a room, and `models`."""
    return {path: text for path, text in files.items() if path.endswith(".py") and room(path) in ROOMS}


def picture(files: dict[str, str]) -> str:
    """Return the text of the picture for the files of `apps/tasks` in a project, by their path in there."""
    rooms = ROOMS[::-1]
    counts = Counter(
        (room(path), name.partition(".")[0])
        for path, text in modules(files).items()
        for name, _ in imports(path, text)
        if room(path) != name.partition(".")[0]
    )
    body, middle, y = [], {}, MARGIN
    for name in rooms:
        inside = {path.split("/")[1].removesuffix(".py") for path in modules(files) if path.startswith(f"{name}/")}
        lines = wrapped(sorted(inside - {"__init__"}))
        height = HEAD + LINE * max(1, len(lines)) + 6
        middle[name] = y + height / 2
        body.append(f'<rect class="room" x="{MARGIN}" y="{y}" width="{CARD}" height="{height}" rx="6"/>')
        body.append(f'<text class="name" x="{MARGIN + 12}" y="{y + 21}">{name}</text>')
        for number, line in enumerate(lines):
            body.append(
                f'<text class="quiet" x="{MARGIN + 12}" y="{y + 21 + LINE * (number + 1)}">{escape(line)}</text>'
            )
        y += height + GAP
    # Short ways inside, long ones around them.
    for lane, (source, target) in enumerate(sorted(counts, key=lambda pair: middle[pair[1]] - middle[pair[0]])):
        start = middle[source] + 4 * (rooms.index(target) - rooms.index(source))
        end = middle[target] - 4 * (rooms.index(target) - rooms.index(source))
        right, edge = MARGIN + CARD, MARGIN + CARD + 34 + 13 * lane
        width = 1 + min(counts[source, target], 8) / 4
        body.append(f'<path stroke-width="{width}" d="M {right} {start} H {edge} V {end} H {right + 8}"/>')
        body.append(f'<path class="head" d="M {right} {end} l 9 -4 v 8 z"/>')
    title = "The rooms of apps/tasks: each imports only from those below it."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">',
            f"  <title>{title}</title>",
            f"  <style>{STYLE}  </style>",
            f'  <rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{y - 1}" rx="8"/>',
            *(f"  {line}" for line in body),
            "</svg>\n",
        ]
    )


def wrapped(names: list[str]) -> list[str]:
    """Return the names in lines that fit a room."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 2 <= PER_LINE:
            lines[-1] += f"  {name}"
        else:
            lines.append(name)
    return lines


def main() -> None:
    """Draw the rooms of a project with every feature."""
    PICTURE.write_text(picture(files_of(template.Renderer())))


if __name__ == "__main__":
    main()
