"""Answers mean what they say: features follow from them in one way, and bad ones are refused at once."""

import keyword
import sys
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from tests import contract, template
from tests.contract import BAD_SLUGS, NEITHER_YES_NOR_NO, NO_ADDRESSES, NO_LINES, OFFERED_SLUGS, YES_OR_NO
from tests.template import FORCING, OFF, label


def refusal(template_repo: Path, folder: Path, **answers: Any) -> str:
    """Try to generate a project; return the sentence of the refusal, or nothing."""
    try:
        template.copy(template_repo, folder, **answers)
    except ValueError as error:
        return str(error)
    return ""


def recorded(project: Path) -> dict[str, Any]:
    return yaml.safe_load((project / template.ANSWERS_FILE).read_text())


def test_features_and_questions_follow_from_the_answers_by_the_truth_table(renderer):
    broken = [breach for answers in template.valid_answers() for breach in contract.answer_breaches(renderer, answers)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("forcing", FORCING, ids=label)
def test_a_feature_that_needs_celery_gives_the_same_tree_whatever_use_celery_says(render, forcing):
    off, on = (template.tree(render(**forcing, use_celery=answer)) for answer in (False, True))
    assert {path for path in off | on if off.get(path) != on.get(path)} == {template.ANSWERS_FILE}


@pytest.mark.parametrize("forcing", FORCING, ids=label)
def test_the_answer_use_celery_is_kept_under_a_feature_that_overrules_it(render, forcing):
    answers = recorded(render(**forcing, use_celery=False))
    assert (answers["use_celery"], answers["features"]["celery"]) == (False, True)


def test_the_broker_and_flower_answers_are_kept_while_celery_is_off(render):
    answers = recorded(render(use_celery=False, celery_broker="rabbitmq", use_flower=False))
    assert (answers["celery_broker"], answers["use_flower"]) == ("rabbitmq", False)


@pytest.mark.parametrize(
    "forcing, reason",
    list(zip(FORCING, ("the background-task example", "per-unit subscriptions", "AI chat"), strict=True)),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_message_after_copy_says_why_celery_is_on(template_repo, tmp_path, capsys, forcing, reason):
    copier.run_copy(
        str(template_repo), tmp_path / "acme", data=template.DEFAULTS | OFF | forcing, defaults=True, quiet=False
    )
    assert f"Celery is on because of {reason}, even though use_celery is false." in capsys.readouterr().err


@pytest.mark.parametrize("package_manager, command", [("uv", "uv run manage.py dev"), ("pip", "python manage.py dev")])
def test_the_message_after_copy_names_the_command_that_runs_the_project(
    template_repo, tmp_path, capsys, package_manager, command
):
    answers = template.DEFAULTS | {"package_manager": package_manager}
    copier.run_copy(str(template_repo), tmp_path / "acme", data=answers, defaults=True, quiet=False)
    assert command in capsys.readouterr().err


def said_after_copy(source: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    copier.run_copy(source, folder, data=template.DEFAULTS, defaults=True, quiet=False)
    return capsys.readouterr().err


def test_who_copies_from_a_folder_reads_that_teammates_cannot_update_from_it(template_repo, tmp_path, capsys):
    warning = "A teammate who updates the project needs an address"
    assert warning in said_after_copy(str(template_repo), tmp_path / "folder", capsys)
    assert warning not in said_after_copy(f"git+file://{template_repo}", tmp_path / "address", capsys)


@pytest.mark.parametrize(
    "name", ["asked", "celery_reasons", "commands", "dashed_slug", "features", "processes", "variables"]
)
def test_computed_values_cannot_be_set(template_repo, tmp_path, name):
    assert f"{name} is computed" in refusal(template_repo, tmp_path / "acme", **{name: "{}"})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("name", [name for name, choices in template.SWITCHES.items() if True in choices])
@pytest.mark.parametrize("answer", NEITHER_YES_NOR_NO)
def test_what_is_neither_yes_nor_no_is_refused(template_repo, tmp_path, name, answer):
    assert f"{name}: {answer} is neither yes nor no" in refusal(template_repo, tmp_path / "acme", **{name: answer})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("answer, value", YES_OR_NO)
def test_every_common_word_for_yes_and_no_is_understood(template_repo, tmp_path, answer, value):
    # The answers file is all that is asked for.
    only_answers = ["*", f"!{template.ANSWERS_FILE}"]
    assert (
        recorded(template.copy(template_repo, tmp_path, exclude=only_answers, use_celery=answer))["use_celery"] is value
    )


@pytest.mark.parametrize("name", ["package_manager", "python_version", "docker_mode", "subscriptions", "celery_broker"])
def test_a_choice_that_does_not_exist_is_refused(template_repo, tmp_path, name):
    assert refusal(template_repo, tmp_path / "acme", **{name: "other"})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize(
    "slug, reason",
    BAD_SLUGS,
)
def test_a_bad_slug_is_refused_with_a_sentence(template_repo, tmp_path, slug, reason):
    assert reason in refusal(template_repo, tmp_path / "acme", project_slug=slug)
    assert not (tmp_path / "acme").exists()


def test_no_module_of_this_python_and_no_keyword_is_a_slug(renderer):
    validator = template.questions()["project_slug"]["validator"]
    names = {*sys.stdlib_module_names, *keyword.kwlist, *keyword.softkwlist}
    accepted = [
        name for name in names if name.isidentifier() and not renderer.string(validator, {"project_slug": name}).strip()
    ]
    assert accepted == []


@pytest.mark.parametrize(
    "name, slug",
    OFFERED_SLUGS,
)
def test_the_slug_offered_for_any_name_is_a_good_one(renderer, name, slug):
    question = template.questions()["project_slug"]
    offered = renderer.string(question["default"], {"project_name": name})
    assert offered == slug
    assert not renderer.string(question["validator"], {"project_slug": offered}).strip()


@pytest.mark.parametrize("name", ["project_name", "description", "author_name"])
@pytest.mark.parametrize("text", NO_LINES)
def test_a_text_that_is_no_line_is_refused(template_repo, tmp_path, name, text):
    assert f"{name}: " in refusal(template_repo, tmp_path / "acme", **{name: text})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_is_refused(template_repo, tmp_path, address):
    assert "is not an e-mail address" in refusal(template_repo, tmp_path / "acme", author_email=address)
    assert not (tmp_path / "acme").exists()


def test_who_answers_nothing_gets_celery_and_the_background_task_example(template_repo, tmp_path):
    copier.run_copy(str(template_repo), tmp_path / "acme", defaults=True, quiet=True)
    features = recorded(tmp_path / "acme")["features"]
    assert {name for name, value in features.items() if value is True} == {
        *(
            "background_tasks",
            "celery",
            "containers",
            "flower",
            "image",
            "production_compose",
            "redis",
            "services",
            "uv",
        )
    }


def test_the_answers_that_tests_combine_are_all_that_can_be_given():
    given = {}
    for name, question in template.questions().items():
        choices = question.get("choices") or [False, True] * (question["type"] == "bool")
        given[name] = {*(choices.values() if isinstance(choices, dict) else choices)}
    combined = {name: {*choices} for name, choices in template.SWITCHES.items() if name != "deploy"}
    assert {name: choices for name, choices in given.items() if choices} == combined | {"deploy": {*template.TARGETS}}
    assert template.SWITCHES["deploy"] == ([], template.TARGETS)


def test_every_question_has_help_a_default_and_where_it_is_open_a_validator():
    for name, question in template.questions().items():
        assert "default" in question, name
        if question.get("when") is False:
            assert "validator" in question, name
            continue
        assert question["help"].rstrip().endswith(".") and "?" in question["help"], name
        assert question.get("choices") or question.get("validator"), name


def test_nobody_is_asked_to_trust_the_template():
    assert not {"_tasks", "_migrations", "_jinja_extensions"} & set(template.settings())


def test_gevent_is_refused_with_ai_chat_and_gives_way_to_prefork_when_the_chat_comes_later(
    template_repo, project, tmp_path
):
    sentence = "celery_pool: AI chat runs async tasks, which gevent cannot run. Choose prefork or threads"
    assert sentence in refusal(template_repo, tmp_path / "refused", celery_pool="gevent", use_ai_chat=True)
    assert not (tmp_path / "refused").exists()
    made = project(celery_pool="gevent")
    template.update(made, use_ai_chat=True)
    assert recorded(made)["celery_pool"] == "prefork"
    assert "gevent" not in (made / "pyproject.toml").read_text()


@pytest.mark.parametrize("answer", [["compose", "nowhere"], "nowhere"])
def test_targets_are_a_list_of_those_that_there_are(template_repo, tmp_path, answer):
    with pytest.raises((TypeError, ValueError), match=r"deploy|Not a YAML list"):
        template.copy(template_repo, tmp_path / "acme", deploy=answer)
    assert not (tmp_path / "acme").exists()
