"""Flip any one condition of the template and a check fails: conditions nobody checks are conditions nobody needs.

Every `{% if %}`, every inline `if`, every `ask:`, every value of `features` and each side of every `and` and `or` is
negated, forced true and forced false; every look-up in a table of choices, `{…}[features.broker]`, is forced to each of
them, and their values change places. All of it in the syntax tree that Jinja compiles; then the declarative checks of
`contract.py` look at the outcome.
"""

import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import yaml
from copier._jinja_ext import SandboxedEnvironment
from jinja2 import TemplateError, nodes

from tests import contract, template
from tests.template import ROOT, Answers, Renderer

Change = Callable[[nodes.Expr], nodes.Expr]
CHANGES: dict[str, Change] = {
    "negated": nodes.Not,
    "true": lambda _: nodes.Const(True),
    "false": lambda _: nodes.Const(False),
}
# Mutants that no check can kill, because what they render is right: each with the reason.
EQUIVALENT: dict[str, str] = {}


class Mutant(NamedTuple):
    """One changed condition: the file it is in, its text's place in the file, its number there, and the change."""

    file: str
    source: str
    number: int
    change: str

    def __str__(self) -> str:
        return f"{self.file}:{line_of(self)}:{self.number}:{self.change}"


def conditions(tree: nodes.Template, source: str) -> Iterator[tuple[nodes.Node, str]]:
    """Each condition in a syntax tree: the node that holds it, and the attribute that it stands in."""
    for node in tree.find_all((nodes.If, nodes.CondExpr)):
        yield node, "test"
    for node in tree.find_all((nodes.And, nodes.Or)):
        yield node, "left"
        yield node, "right"
    for node in tree.find_all(nodes.Getitem):
        if isinstance(node.node, nodes.Dict):
            yield node, "arg"
            yield node, "node"
    if source in asked_if():
        for node in tree.find_all(nodes.Output):
            yield node, "nodes"
    if source == template.questions()["features"]["default"]:
        for pair in tree.find_all(nodes.Pair):
            if pair.key.value not in ("broker", "python_version"):
                yield pair, "value"


def changes(node: nodes.Node, attribute: str) -> dict[str, Change]:
    """What can be wrong with a condition, by name."""
    if not isinstance(node, nodes.Getitem):
        return CHANGES
    if attribute == "node":
        return {"swapped": swapped}
    return {f"always {pair.key.value}": partial(always, pair.key.value) for pair in node.node.items}


def always(choice: object, _: nodes.Expr) -> nodes.Expr:
    return nodes.Const(choice)


def swapped(table: nodes.Dict) -> nodes.Dict:
    """The same choices, each with the value of the one before."""
    values = [pair.value for pair in table.items]
    return nodes.Dict(
        [nodes.Pair(pair.key, value) for pair, value in zip(table.items, values[-1:] + values, strict=False)]
    )


@cache
def asked_if() -> set[str]:
    return {question["ask"] for question in template.questions().values() if "ask" in question}


def change(tree: nodes.Template, mutant: Mutant) -> nodes.Template:
    """Apply a mutant to the syntax tree of its text."""
    node, attribute = list(conditions(tree, mutant.source))[mutant.number]
    old = getattr(node, attribute)
    new = changes(node, attribute)[mutant.change]
    setattr(node, attribute, [new(expression) for expression in old] if isinstance(old, list) else new(old))
    for created in tree.find_all((nodes.Const, nodes.Dict, nodes.Not, nodes.Pair)):
        created.set_lineno(1)
        created.set_environment(tree.environment)
    return tree


def environment_of(mutant: Mutant) -> SandboxedEnvironment:
    """A Jinja environment in which the mutant's condition is changed wherever its text is compiled."""

    class Mutated(SandboxedEnvironment):
        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            return change(tree, mutant) if source == mutant.source else tree

    return template.make_environment(Mutated)


def texts() -> Iterator[tuple[str, str]]:
    """Every text with Jinja in it, with its file: the templates, the macros, and the strings of copier.yml."""
    for name in template.template_files():
        if name.endswith(".jinja") and name.removesuffix(".jinja") not in template.TESTED_VERSIONS:
            yield f"template/{name}", (ROOT / "template" / name).read_text()
    for path in sorted((ROOT / "includes").iterdir()):
        yield f"includes/{path.name}", path.read_text()
    for text in sorted(set(strings(yaml.safe_load((ROOT / "copier.yml").read_text())))):
        if "{" in text:
            yield "copier.yml", text


def strings(value: Any) -> Iterator[str]:
    """The strings inside nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


@cache
def mutants() -> tuple[Mutant, ...]:
    environment = template.make_environment()
    return tuple(
        Mutant(file, source, number, name)
        for file, source in texts()
        for number, condition in enumerate(conditions(environment.parse(source), source))
        for name in changes(*condition)
    )


def line_of(mutant: Mutant) -> int:
    """The line of the changed condition in its file."""
    tree = template.make_environment().parse(mutant.source)
    first = (ROOT / mutant.file).read_text().find(mutant.source[:20]) if mutant.file == "copier.yml" else 0
    before = (ROOT / mutant.file).read_text()[: max(first, 0)].count("\n")
    return before + list(conditions(tree, mutant.source))[mutant.number][0].lineno


@cache
def valid_for_one_python() -> tuple[Answers, ...]:
    """Every valid set of answers, and each target alone; the image's Python decides nothing.

    Neighbours differ in much: a fault shows soon.
    """
    answers = [answers for answers in template.valid_answers() if answers["python_version"] == "3.13"]
    alone = (template.DEFAULTS | {"deploy": [target]} for target in template.TARGETS)
    return (*alone, *random.Random(0).sample(answers, len(answers)))


@cache
def plain() -> Renderer:
    """The renderer of the template as it is."""
    return Renderer()


def file_breaches(renderer: Renderer, name: str) -> Iterator[str]:
    """Check one template file on every distinct output that it has."""
    original = plain()
    path = original.string(name, original.context(template.DEFAULTS)).removesuffix(".jinja")
    rows = [row for row in contract.CONTRACT if row.path == path and row.text]
    read = template.names_read(name)
    seen = set()
    for answers in template.distinct_answers():
        context = original.context(answers)
        key = (
            *(context["features"][feature] for feature in read.features),
            *(str(context[mapping]) for mapping in read.mappings),
        )
        if key in seen or (path, name) not in original.paths(context):
            continue
        seen.add(key)
        yield from contract.breaches(answers, {path: renderer.file(name, context).encode()}, rows)


def other_breaches(renderer: Renderer) -> Iterator[str]:
    """Check what the answers lead to, which files are left out, what is refused and what is said."""
    yield from contract.literal_breaches(renderer)
    yield from contract.variable_breaches(renderer)
    yield from contract.validation_breaches(renderer)
    yield from contract.source_breaches(renderer)
    paths = [row for row in contract.CONTRACT if row.text is None]
    for answers in valid_for_one_python():
        yield from contract.answer_breaches(renderer, answers)
        there = {path: b"" for path, _ in renderer.paths(renderer.context(answers))}
        yield from contract.breaches(answers, there, paths)
        yield from contract.message_breaches(renderer, answers)


def first_breach(mutant: Mutant) -> str:
    """What the checks say first about a mutant; a template that does not even render is said, too."""
    renderer = Renderer(environment_of(mutant))
    name = mutant.file.removeprefix("template/")
    try:
        return next(file_breaches(renderer, name) if name != mutant.file else other_breaches(renderer), "")
    except (TemplateError, ValueError, TypeError) as error:
        return f"does not render: {error}"


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in mutants()}))
def test_every_changed_condition_is_noticed(file):
    survivors = [
        str(mutant)
        for mutant in mutants()
        if mutant.file == file and str(mutant) not in EQUIVALENT and not first_breach(mutant)
    ]
    assert not survivors, "\n".join(survivors)


def test_the_template_unchanged_passes_all_checks_that_mutants_meet():
    files = {mutant.file.removeprefix("template/") for mutant in mutants() if mutant.file.startswith("template/")}
    renderer = Renderer()
    assert [breach for name in sorted(files) for breach in file_breaches(renderer, name)] == []
    assert list(other_breaches(renderer)) == []


def test_every_equivalent_mutant_on_the_list_exists():
    assert set(EQUIVALENT) <= set(map(str, mutants()))
