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
USE_CELERY = "Run tasks in the background and on a schedule with Celery?"
BROKER = "Which broker carries the tasks"
FLOWER = "Watch workers and tasks in a browser"


@pytest.mark.run
@pytest.mark.parametrize(
    "given, put, not_put",
    [
        ({"use_ai_chat": True}, [BROKER, FLOWER], [USE_CELERY]),
        ({"use_ai_chat": False, "use_celery": False}, [], [BROKER, FLOWER]),
    ],
    ids=["forced", "off"],
)
def test_enter_alone_generates_a_project_and_meets_no_question_without_effect(
    template_repo, tmp_path, given, put, not_put
):
    """Every question takes Enter for its default; those that decide nothing are not put."""
    given = {"use_background_tasks": False, "subscriptions": "none", "use_async": False} | given
    known = {name: value for name, value in given.items() if name in template.questions()}
    data = [f"--data={name}={value}" for name, value in known.items()]
    command = [sys.executable, "-m", "copier", "copy", *data, str(template_repo), "acme"]
    with Terminal(tmp_path, command, os.environ | {"TERM": "xterm", "COLUMNS": "200"}) as terminal:
        for question in [*SHARED, *put]:
            terminal.shows(question.replace("?", r"\?"))
            os.write(terminal.window, b"\r")
        assert terminal.exit_code() == 0, terminal.text
        assert not [question for question in not_put if question in terminal.text]
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
