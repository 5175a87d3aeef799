"""Draws docs/images/toggle.svg, what `use_celery: false` changes in a project: `uv run python -m docs.toggle`.

The figures are those of `git diff --numstat` after a real copy and a real update.
"""

import tempfile
from html import escape
from pathlib import Path

from tests import template
from tests.template import ROOT

PICTURE = ROOT / "docs/images/toggle.svg"
# Folders that are Celery's alone are shown as one line, so that a new module in them changes nothing here.
CELERYS_OWN = ("apps/tasks/", "tests/tasks/")
COMMAND = "uvx copier update --vcs-ref=:current: --defaults --data use_celery=false"
LINE_HEIGHT, MARGIN, WIDTH = 22, 20, 760
COUNTS_X, BAR_X, BAR_MOST = 300, 400, 320
# The card has a dark background of its own, as a terminal has, so it can be read on a light page and on a dark one.
STYLE = """
    rect.card { fill: #161b22; stroke: #6e7681; }
    text { fill: #e6edf3; font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre; }
    .quiet { fill: #9da7b3; }
    text.minus { fill: #ff7b72; }
    text.plus { fill: #7ee787; }
    rect.minus { fill: #f85149; }
    rect.plus { fill: #3fb950; }
"""


def changes(project: Path) -> dict[str, tuple[int, int] | None]:
    """Switch Celery off in a committed project; return lines added and deleted by path, or None for what is removed."""
    template.update(project, use_celery=False)
    template.git(project, "add", "--all")
    found: dict[str, tuple[int, int] | None] = {}
    for line in template.git(project, "diff", "--cached", "--numstat").splitlines():
        added, deleted, path = line.split("\t")
        if (project / path).exists():
            found[path] = int(added), int(deleted)
        else:
            found[next(filter(path.startswith, CELERYS_OWN), path)] = None
    return found


def picture(found: dict[str, tuple[int, int] | None]) -> str:
    """Return the text of the picture of these changes: what stays with its lines, then what is removed."""
    stays = {path: lines for path, lines in found.items() if lines}
    removed = [path for path, lines in found.items() if lines is None]
    most = max(sum(lines) for lines in stays.values())
    body = [f'<text x="{MARGIN}" y="{baseline(0)}"><tspan class="quiet">$ </tspan>{escape(COMMAND)}</text>']
    for number, (path, (added, deleted)) in enumerate(stays.items(), 1):
        body.append(row(number, path, added, deleted, most))
    for number, path in enumerate(removed, len(stays) + 1):
        body.append(f'<text x="{MARGIN}" y="{baseline(number)}" class="quiet">{escape(path)}</text>')
        body.append(f'<text x="{COUNTS_X}" y="{baseline(number)}" class="minus">removed</text>')
    height = baseline(len(found)) + MARGIN
    title = f"Switching Celery off edits {len(stays)} files of a project and removes {', '.join(removed)}."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"  <title>{escape(title)}</title>",
            f"  <style>{STYLE}  </style>",
            f'  <rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            *(f"  {line}" for line in body),
            "</svg>\n",
        ]
    )


def row(number: int, path: str, added: int, deleted: int, most: int) -> str:
    """Return one file with its lines added and deleted, and a bar for each."""
    y = baseline(number)
    plus, minus = (max(3, round(BAR_MOST * lines / most)) if lines else 0 for lines in (added, deleted))
    return (
        f'<text x="{MARGIN}" y="{y}">{escape(path)}</text>'
        f'<text x="{COUNTS_X}" y="{y}" class="plus">{f"+{added}" if added else ""}</text>'
        f'<text x="{COUNTS_X + 40}" y="{y}" class="minus">{f"-{deleted}" if deleted else ""}</text>'
        f'<rect class="plus" x="{BAR_X}" y="{y - 11}" width="{plus}" height="12"/>'
        f'<rect class="minus" x="{BAR_X + plus}" y="{y - 11}" width="{minus}" height="12"/>'
    )


def baseline(number: int) -> int:
    """Return the height at which a line of text stands. There is a gap below the first one."""
    return MARGIN + 14 + LINE_HEIGHT * number + (8 if number else 0)


def main() -> None:
    """Generate a project, switch Celery off in it, and draw what has changed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = template.copy(template.snapshot(folder / "template"), folder / "acme")
        template.commit_all(project, "Start")
        PICTURE.write_text(picture(changes(project)))


if __name__ == "__main__":
    main()
