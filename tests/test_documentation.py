"""What the documentation says is so."""

import re
from pathlib import Path

import pytest

from docs.generate import PAGE, page
from tests.template import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])


def test_the_reference_of_questions_is_the_one_that_copier_yml_gives():
    assert PAGE.read_text() == page(), "run `uv run docs/generate.py`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_first_command_of_the_readme_comes_before_line_fifteen():
    assert any(line.startswith("$ ") for line in (ROOT / "README.md").read_text().splitlines()[:14])


def test_ci_runs_the_test_command_of_the_readme():
    [command] = re.findall(r"^\$ (uv run pytest.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == command


def test_every_decision_says_what_why_and_at_what_cost():
    for path in sorted(ROOT.glob("docs/decisions/*.md")):
        for part in ("**Decision.**", "**Why.**", "**Cost.**"):
            assert part in path.read_text(), path
