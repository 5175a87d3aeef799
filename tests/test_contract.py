"""Every path and text is in a project exactly where the contract says so."""

import pytest

from tests import contract, template
from tests.template import label


def test_the_contract_holds_on_every_distinct_output(renderer):
    broken = [
        f"{label(answers)}: {breach}"
        for answers in template.distinct_answers()
        for breach in contract.breaches(answers, renderer.project(answers))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("answers", template.pair_cover(), ids=label)
def test_the_contract_holds_on_what_copier_writes(copie, template_repo, answers):
    made = copie.copy(extra_answers=answers, template_dir=template_repo)
    assert made.exit_code == 0, made.exception
    files = {path: content for path, (_, content) in template.tree(made.project_dir).items()}
    assert contract.breaches(answers, files) == []


@pytest.mark.parametrize("answers", template.pair_cover()[:4], ids=label)
def test_the_fast_renderer_writes_what_copier_writes(render, renderer, answers):
    written = {path: content for path, (_, content) in template.tree(render(**answers)).items()}
    rendered = renderer.project(answers)
    rendered[template.ANSWERS_FILE] = written[template.ANSWERS_FILE]
    assert {path for path in written | rendered if written.get(path) != rendered.get(path)} == set()
