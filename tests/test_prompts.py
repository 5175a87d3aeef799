"""What a person sees who answers at the prompts."""

import itertools
import os
import re
import sys
from typing import Any

import pytest

from tests import template
from tests.dev_support import Terminal

SHARED = [
    ("Project", "What is the project called?"),
    ("Project", "What is its Python package called?"),
    ("Project", "What does it do, in a sentence?"),
    ("Project", "Who writes it?"),
    ("Project", "What is the author's e-mail address?"),
    ("Tools", "Which tool installs the packages?"),
    ("Tools", "Which Python do the image and CI use?"),
    ("Tools", "What runs in Docker during development?"),
    ("Tools", "Where will it run in production?"),
]
OF_CELERY = ["Which broker carries the tasks", "How does a worker run tasks", "Watch workers and tasks in a browser"]
# The width of a terminal that nobody has resized.
COLUMNS = 80
GROUPS = ["Project", "Tools", "Features", "Celery"]


def asked() -> dict[str, dict[str, Any]]:
    """Return the questions that Copier puts to a person, by name."""
    return {name: each for name, each in template.questions().items() if each.get("when") is not False}


def test_every_question_fits_on_one_line_of_a_terminal():
    lines = {name: f"{question['qmark']} {question['help']}" for name, question in asked().items()}
    assert {name: line for name, line in lines.items() if len(line) > COLUMNS or "\n" in line} == {}


def test_questions_come_in_groups_that_their_first_word_names():
    groups = [question["qmark"].removesuffix(" ·") for question in asked().values()]
    assert [group for group, _ in itertools.groupby(groups)] == GROUPS


@pytest.mark.run
def test_without_celery_nobody_is_asked_about_its_broker_or_flower(template_repo, tmp_path):
    """Every question takes Enter for its default; that all are put is in test_documentation.py."""
    given = {"subscriptions": "none", "use_ai_chat": False, "use_async": False, "use_background_tasks": False}
    data = [f"--data={name}={value}" for name, value in (given | template.OFF).items()]
    command = [sys.executable, "-m", "copier", "copy", *data, str(template_repo), "acme"]
    with Terminal(tmp_path, command, os.environ | {"TERM": "xterm", "COLUMNS": "200"}) as terminal:
        for group, question in SHARED:
            terminal.shows(f"{group} ·[^\n]*{re.escape(question)}")
            os.write(terminal.window, b"\r")
        assert terminal.exit_code() == 0, terminal.text
        assert not [question for question in OF_CELERY if question in terminal.text]
    assert (tmp_path / "acme/my_project/settings.py").exists()


@pytest.mark.run
def test_a_bad_answer_is_refused_at_the_prompt_and_can_be_mended(template_repo, tmp_path):
    data = [f"--data={name}={template.DEFAULTS[name]}" for name in template.DEFAULTS if name != "project_slug"]
    command = [sys.executable, "-m", "copier", "copy", *data, str(template_repo), "acme"]
    with Terminal(tmp_path, command, os.environ | {"TERM": "xterm", "COLUMNS": "200"}) as terminal:
        terminal.shows(r"Python package called\?")
        # Ctrl-U clears what is offered.
        os.write(terminal.window, b"\x15email\r")
        terminal.shows("email is a module")
        os.write(terminal.window, b"\x15mailer\r")
        assert terminal.exit_code() == 0, terminal.text
    assert (tmp_path / "acme/mailer/settings.py").exists()
