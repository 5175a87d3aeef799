"""Answers mean what they say: features follow from them in one way, and bad ones are refused before a file is written."""

import keyword
import sys
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from tests import template
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


def test_celery_is_on_exactly_where_it_is_asked_for_or_required(renderer):
    wrong = [
        label(answers)
        for answers in template.valid_answers()
        if renderer.context(answers)["features"]["celery"] != template.has_celery(answers)
    ]
    assert not wrong, "\n".join(wrong)


def expected_features(answers: template.Answers) -> dict[str, Any]:
    celery = template.has_celery(answers)
    return {
        "ai_chat": answers["use_ai_chat"],
        "background_tasks": answers["use_background_tasks"],
        "broker": answers["celery_broker"] if celery else "",
        "celery": celery,
        "containers": answers["docker_mode"] == "full",
        "flower": celery and answers["use_flower"],
        "per_unit": answers["subscriptions"] == "per_unit",
        "pip": answers["package_manager"] == "pip",
        "python_version": answers["python_version"],
        "rabbitmq": celery and answers["celery_broker"] == "rabbitmq",
        "redis": celery and answers["celery_broker"] == "redis",
        "services": answers["docker_mode"] in ("services", "full"),
        "subscriptions": answers["subscriptions"] in ("standard", "per_unit"),
        "uv": answers["package_manager"] == "uv",
    }


def test_features_follow_from_the_answers_by_the_truth_table(renderer):
    wrong = [
        label(answers)
        for answers in template.valid_answers()
        if renderer.context(answers)["features"] != expected_features(answers)
    ]
    assert not wrong, "\n".join(wrong)


def test_questions_without_effect_are_not_put(renderer):
    for answers in template.valid_answers():
        forced = template.has_celery(answers | OFF)
        asked = renderer.asked(answers)
        assert ("use_celery" in asked) != forced, label(answers)
        assert ("celery_broker" in asked) == ("use_flower" in asked) == template.has_celery(answers), label(answers)
        assert {*template.TEXTS, "package_manager", "python_version", "docker_mode"} <= set(asked)


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
        str(template_repo), tmp_path / "acme", data=template.TEXTS | OFF | forcing, defaults=True, quiet=False
    )
    assert f"Celery is required by {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("package_manager, command", [("uv", "uv run manage.py dev"), ("pip", "python manage.py dev")])
def test_the_message_after_copy_names_the_command_that_runs_the_project(
    template_repo, tmp_path, capsys, package_manager, command
):
    answers = template.TEXTS | {"package_manager": package_manager}
    copier.run_copy(str(template_repo), tmp_path / "acme", data=answers, defaults=True, quiet=False)
    assert command in capsys.readouterr().err


@pytest.mark.parametrize("name", ["celery_reasons", "commands", "features"])
def test_computed_values_cannot_be_set(template_repo, tmp_path, name):
    assert f"{name} is computed" in refusal(template_repo, tmp_path / "acme", **{name: "{}"})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("name", ["use_ai_chat", "use_background_tasks", "use_celery", "use_flower"])
@pytest.mark.parametrize("answer", ["maybe", "2", "tru", "", "None"])
def test_what_is_neither_yes_nor_no_is_refused(template_repo, tmp_path, name, answer):
    assert f"{name}: {answer} is neither yes nor no" in refusal(template_repo, tmp_path / "acme", **{name: answer})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("answer, value", [("yes", True), ("true", True), ("1", True), ("off", False), ("No", False)])
def test_every_common_word_for_yes_and_no_is_understood(render, answer, value):
    assert recorded(render(use_celery=answer))["use_celery"] is value


@pytest.mark.parametrize("name", ["package_manager", "python_version", "docker_mode", "subscriptions", "celery_broker"])
def test_a_choice_that_does_not_exist_is_refused(template_repo, tmp_path, name):
    assert refusal(template_repo, tmp_path / "acme", **{name: "other"})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize(
    "slug, reason",
    [
        ("class", "a keyword"),
        ("email", "standard library"),
        ("tomllib", "standard library"),
        ("celery", "may install"),
        ("django", "may install"),
        ("apps", "uses itself"),
        ("tests", "uses itself"),
        ("2fast", "no package name"),
        ("my-project", "no package name"),
        ("My_Project", "no package name"),
        ("überfein", "no package name"),
        ("a b", "no package name"),
        ("../up", "no package name"),
        ("", "no package name"),
        ("x" * 51, "no package name"),
    ],
)
def test_a_bad_slug_is_refused_with_a_sentence(template_repo, tmp_path, slug, reason):
    assert reason in refusal(template_repo, tmp_path / "acme", project_slug=slug)
    assert not (tmp_path / "acme").exists()


def test_no_module_of_this_python_and_no_keyword_is_a_slug(renderer):
    validator = template.questions()["project_slug"]["validator"]
    names = {*sys.stdlib_module_names, *keyword.kwlist, *keyword.softkwlist}
    accepted = [
        name
        for name in names
        if name.isidentifier() and not renderer.string(validator, {"project_slug": name}).strip()
    ]
    assert accepted == []


@pytest.mark.parametrize(
    "name, slug",
    [
        ("My Project", "my_project"),
        ("Bob's “Big” Shop", "bobs_big_shop"),
        ("Ünï – cödé", "n_c_d"),
        ("日本語", "my_project"),
        ("2048", "project_2048"),
        ("Email", "email_project"),
        ("Celery", "celery_project"),
        ("a" * 80, "a" * 40),
        ("--x--", "x"),
    ],
)
def test_the_slug_offered_for_any_name_is_a_good_one(renderer, name, slug):
    question = template.questions()["project_slug"]
    offered = renderer.string(question["default"], {"project_name": name})
    assert offered == slug
    assert not renderer.string(question["validator"], {"project_slug": offered}).strip()


@pytest.mark.parametrize("name", ["project_name", "description", "author_name"])
@pytest.mark.parametrize("text", ["", "   ", "two\nlines", "a\ttab", "x" * 301, "bell\x07", "\u2028"])
def test_a_text_that_is_no_line_is_refused(template_repo, tmp_path, name, text):
    assert f"{name}: " in refusal(template_repo, tmp_path / "acme", **{name: text})
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("address", ["nobody", "a@b@c", "a b@c.example", 'a"@b.example'])
def test_what_is_no_address_is_refused(template_repo, tmp_path, address):
    assert "is no e-mail address" in refusal(template_repo, tmp_path / "acme", author_email=address)


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
