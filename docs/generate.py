"""Writes docs/reference/questions.md from copier.yml: `uv run docs/generate.py`."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/reference/questions.md"
HEAD = """# Questions

Made from `copier.yml` by `uv run docs/generate.py`. To give an answer on the command line, use `--data NAME=VALUE`.

| group | question | answers | default | |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the text of the page: a row for each question that Copier can ask."""
    questions = yaml.safe_load((ROOT / "copier.yml").read_text())
    rows = [
        f"| {group(question)} | `{name}` | {answers(question)} | {default(question)} | {question['help']} |"
        for name, question in questions.items()
        if not name.startswith("_") and question.get("when") is not False
    ]
    return HEAD + "\n".join(rows) + "\n"


def group(question: dict) -> str:
    """Return the name of the group of a question, which Copier shows in front of it."""
    return question["qmark"].removesuffix(" ·")


def answers(question: dict) -> str:
    """Return the answers that a question takes."""
    choices = question.get("choices")
    if not choices:
        return {"bool": "`true`, `false`"}.get(question["type"], "text")
    return ", ".join(f"`{choice}`" for choice in (choices.values() if isinstance(choices, dict) else choices))


def default(question: dict) -> str:
    """Return the default of a question."""
    value = question["default"]
    if "{" in str(value):
        return "from the name"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
