"""With LOG_FORMAT=json each line is an object, and one id leads from a page to its tasks and their retries."""

import json
import re

import pytest

from tests.dev_support import wait_until
from tests.processes import Program, installed
from tests.trial_page import visited

pytestmark = pytest.mark.run

REQUEST_ID = "X-Request-ID"


def lines(program: Program) -> list[dict[str, str]]:
    """Return the lines that are objects."""
    return [json.loads(line) for line in program.text.splitlines() if line.startswith("{")]


def test_the_id_of_a_page_leads_to_its_task_after_the_commit_through_the_outbox_and_through_a_retry(
    template_repo, tmp_path
):
    project, _ = installed(template_repo, tmp_path, "3.13", use_flower=False)
    visitors = ("first-visit", "second-visit")
    with visited(project, tmp_path, *({REQUEST_ID: each} for each in visitors), LOG_FORMAT="json") as trial:
        assert tuple(each[REQUEST_ID] for each in trial.answers) == visitors

        def failed() -> set[str]:
            return {each["request_id"] for each in lines(trial.worker) if "on purpose" in each.get("exception", "")}

        assert wait_until(lambda: failed() >= set(visitors)), trial.worker.text
    for visitor in visitors:
        assert_traced(visitor, lines(trial.web), lines(trial.worker))
    assert plain_lines(trial.web, "Booting worker") == plain_lines(trial.worker, "mingle: all alone") == []


def assert_traced(visitor: str, web: list[dict[str, str]], worker: list[dict[str, str]]) -> None:
    """Fail unless the lines of a page and of its tasks, and no other ones, have the id of its visitor."""
    assert [each["message"] for each in web if each.get("request_id") == visitor][:1] == ["before the commit"]
    own = [each for each in worker if each.get("request_id") == visitor]
    attempts = [each for each in own if each["message"].startswith("attempt")]
    assert {(each["message"], each["task_name"]) for each in attempts} == {
        ("attempt 0", "acme.trials.stumble"),
        ("attempt 1", "acme.trials.stumble"),
    }
    [task] = {each["task_id"] for each in attempts}
    said = [each for each in worker if each.get("task_id") == task]
    for words in ("received", "retry", "succeeded"):
        assert any(words in each["message"] for each in said), words
    assert {each["task_name"] for each in own if each["message"] == "printed"} == {"acme.trials.finish"}


def plain_lines(program: Program, words: str) -> list[str]:
    """Return the lines after these words that are no objects, but for those of a main process about itself."""
    after = program.text.partition(words)[2].partition("\n")[2].splitlines()
    # Gunicorn's main process loads no settings, and Celery prints when it is told to stop.
    own = re.compile(rf"\[{program.process.pid}\]|^worker: (Warm|Hitting)|^$")
    return [line for line in after if not (line.startswith("{") or own.search(line))]
