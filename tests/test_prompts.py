"""What a person sees who answers at the prompts."""

import os
import sys

import pytest

from tests import template
from tests.dev_support import Terminal

SHARED = [
    "What is the project called?",
    "What is its Python package called?",
    "What does it do, in a sentence?",
    "Who writes it?",
    "Which address reaches the author?",
    "What installs the packages?",
    "Which Python do the image and CI use?",
    "What runs in Docker during development?",
]
OF_CELERY = ["Which broker carries the tasks", "Watch workers and tasks in a browser"]


@pytest.mark.run
def test_without_celery_nobody_is_asked_about_its_broker_or_flower(template_repo, tmp_path):
    """Every question takes Enter for its default; that all are put is in test_documentation.py."""
    given = {"subscriptions": "none", "use_ai_chat": False, "use_async": False, "use_background_tasks": False}
    data = [f"--data={name}={value}" for name, value in (given | template.OFF).items()]
    command = [sys.executable, "-m", "copier", "copy", *data, str(template_repo), "acme"]
    with Terminal(tmp_path, command, os.environ | {"TERM": "xterm", "COLUMNS": "200"}) as terminal:
        for question in SHARED:
            terminal.shows(question.replace("?", r"\?"))
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
