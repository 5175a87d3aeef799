"""A variable is one entry in a list, and every file that names variables is a rendering of it.

That the settings read what .env.example offers, and the reverse, is in test_off_leaves_no_trace.py.
"""

import re

import pytest

from tests import template
from tests.template import Answers, label

# The files in which a target names variables.
FILES = {
    "compose": ("deploy/compose/.env.example", "deploy/compose/compose.yaml"),
    "fly": ("fly.toml",),
    "kamal": (".kamal/secrets", "config/deploy.yml"),
    "kubernetes": ("deploy/kubernetes/settings.env.example", "deploy/kubernetes/worker.yaml"),
    "procfile": ("app.json",),
    "render": ("render.yaml",),
}
# What add-ons set.
BY_ADD_ONS = {"DATABASE_URL", "CELERY_BROKER_URL"}
ANSWERS = (*template.pair_cover(), template.DEFAULTS | template.EVERYTHING)


@pytest.mark.parametrize("answers", ANSWERS, ids=label)
def test_each_target_names_every_variable_that_production_needs_or_may_have(renderer, answers: Answers):
    answers = answers | {"deploy": template.TARGETS}
    files, variables = renderer.project(answers), renderer.context(answers)["variables"]
    wanted = {name for name, variable in variables.items() if variable.get("production")}
    for target, paths in FILES.items():
        text = "".join(files[path].decode() for path in paths if path in files)
        named = set(re.findall(r"\b[A-Z][A-Z_]+\b", text)) | (BY_ADD_ONS if target == "procfile" else set())
        assert wanted <= named, f"{target}: {wanted - named}"


@pytest.mark.parametrize("answers", [template.EVERYTHING], ids=label)
def test_no_secret_stands_in_a_file_that_git_keeps(renderer, answers: Answers):
    answers = template.DEFAULTS | answers | {"deploy": template.TARGETS}
    files, asked = renderer.project(answers), renderer.context(answers)["asked"]
    examples = [variable["example"] for variable in asked.values() if variable["secret"] and "example" in variable]
    assert len(examples) >= 3
    for path in ("fly.toml", "config/deploy.yml", "app.json", "render.yaml"):
        assert [example for example in examples if example in files[path].decode()] == [], path


def test_every_entry_says_in_known_words_what_targets_need(renderer):
    variables = renderer.context(template.DEFAULTS | template.EVERYTHING)["variables"]
    keys = {"about", "active", "example", "generated", "production", "secret", "title"}
    for name, variable in variables.items():
        assert variable.keys() <= keys, name
        assert variable.get("production", "target") in ("target", "needed", "optional"), name
        if variable.get("production") in ("needed", "optional"):
            assert variable["about"] and isinstance(variable["secret"], bool), name
            assert variable["secret"] or variable["example"], name


def test_copier_itself_reads_the_list(render):
    text = (render(use_ai_chat=True) / ".env.example").read_text()
    assert "\n# DEFAULT_AI_MODEL=openai-chat:gpt-5-mini\n" in text and "\nDEBUG=1\n" in text
