"""The template under test: its valid answers, real copies of it, and a fast renderer for questions about one file.

`copy` and `update` call Copier itself. `Renderer` repeats the part of Copier that matters for a conditional (answers in
order, computed values, exclusions, files) in memory, a thousand times as fast; a test compares the two.
"""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import copier
import yaml
from copier._jinja_ext import SandboxedEnvironment
from jinja2 import Environment, FileSystemLoader, StrictUndefined, nodes
from pathspec import GitIgnoreSpec

ROOT = Path(__file__).resolve().parent.parent
ANSWERS_FILE = ".copier-answers.yml"
# As the template spells its name.
ANSWERS_FILE_NAME = "_copier_conf.answers_file"
# Written by `versions.py`; `test_versions.py` proves of every set of dependencies that they are right.
TESTED_VERSIONS = ("tested-versions.txt", "uv.lock")
# What templates read besides `features` and texts.
MAPPINGS = ("asked", "commands", "processes", "variables")
# What the template writes once and then leaves to the project's owner.
OWNERS_FILES = ("constraints.txt", "uv.lock")

Answers = dict[str, Any]
T = TypeVar("T")
# What a file is: its permission bits and its content.
Tree = dict[str, tuple[int, bytes]]

TEXTS: Answers = {
    "project_name": "Acme",
    "project_slug": "acme",
    "description": "A web application made with Django.",
    "author_name": "Your Name",
    "author_email": "you@example.com",
}
# Where a project can run. What one of them adds depends on no other, so all and none are enough; a test has each alone.
TARGETS = ["compose", "kubernetes", "kamal", "procfile", "render", "fly"]
SWITCHES: dict[str, tuple[Any, ...]] = {
    "package_manager": ("uv", "pip"),
    "python_version": ("3.13", "3.11", "3.12"),
    "docker_mode": ("full", "services", "none"),
    "deploy": ([], TARGETS),
    "use_async": (False, True),
    "use_background_tasks": (False, True),
    "subscriptions": ("none", "standard", "per_unit"),
    "use_ai_chat": (False, True),
    "use_celery": (True, False),
    "celery_broker": ("redis", "rabbitmq"),
    "celery_pool": ("prefork", "threads", "gevent"),
    "use_flower": (True, False),
    "use_metrics": (False, True),
}
# The first choice of each: Celery, and nothing that forces it. Copier's own defaults add the background-task example.
DEFAULTS: Answers = TEXTS | {name: choices[0] for name, choices in SWITCHES.items()}

# Answers under which Celery leaves, and each feature that keeps it.
OFF: Answers = {"use_celery": False}
FORCING: tuple[Answers, ...] = ({"use_background_tasks": True}, {"subscriptions": "per_unit"}, {"use_ai_chat": True})
# Every feature that a project can have.
EVERYTHING: Answers = {
    "use_ai_chat": True,
    "use_async": True,
    "use_background_tasks": True,
    "subscriptions": "per_unit",
    "use_metrics": True,
}


def has_celery(answers: Mapping[str, Any]) -> bool:
    """Whether the project has Celery by the rule in the README, told here without the template's own words."""
    return (
        answers["use_celery"]
        or answers["use_background_tasks"]
        or answers["use_ai_chat"]
        or answers["subscriptions"] == "per_unit"
    )


@cache
def valid_answers() -> tuple[Answers, ...]:
    """Every valid set of answers: all combinations of the switches, but the one that is refused."""
    combinations = (dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values()))
    return tuple(TEXTS | each for each in combinations if not (each["use_ai_chat"] and each["celery_pool"] == "gevent"))


@cache
def pair_cover() -> tuple[Answers, ...]:
    """Few sets of answers in which every two values of two switches meet at least once."""

    def pairs(answers: Answers) -> set[tuple]:
        return set(itertools.combinations([(name, str(answers[name])) for name in SWITCHES], 2))

    # A sample is enough to choose from, and much faster.
    candidates = random.Random(0).sample(valid_answers(), 1000)
    wanted = set().union(*map(pairs, candidates))
    chosen: list[Answers] = []
    while wanted:
        best = max(candidates, key=lambda answers: len(pairs(answers) & wanted))
        chosen.append(best)
        wanted -= pairs(best)
    return tuple(chosen)


def label(answers: Mapping[str, Any]) -> str:
    """A short name of a set of answers: what differs from the defaults."""
    changed = [f"{name}={answers[name]}" for name in SWITCHES if answers.get(name, DEFAULTS[name]) != DEFAULTS[name]]
    return ",".join(changed) or "defaults"


@cache
def distinct_answers() -> tuple[Answers, ...]:
    """One set of answers for each distinct project: those that agree on every feature that the template reads."""
    text = "".join(path.read_text() for path in [*ROOT.glob("includes/*"), *ROOT.glob("template/**/*.jinja")])
    read = set(re.findall(r"""\bfeatures\.(\w+)|\bon\.get\("(\w+)"\)""", text + (ROOT / "copier.yml").read_text()))
    names = {name for found in read for name in found if name}
    renderer = Renderer()
    distinct: dict[tuple, Answers] = {}
    for answers in valid_answers():
        features = renderer.context(answers)["features"]
        distinct.setdefault(tuple(features[name] for name in sorted(names & features.keys())), answers)
    return tuple(distinct.values())


# Real Copier ----------------------------------------------------------------

compiled_once: dict[tuple, Any] = {}


def remember_what_was_compiled() -> None:
    """Compile each text of a template once in this process.

    Copier makes an environment of its own for each copy, and compiles each part of each path anew for each file: that
    is nearly half of the time of a copy, and the same text always gives the same code.
    """
    compile_anew = Environment.compile

    def compile_once(environment: Environment, source: Any, *names: Any, **options: Any) -> Any:
        # The environments of mutants, which are of another class, read a text in another way each time.
        if type(environment) is not SandboxedEnvironment or not isinstance(source, str):
            return compile_anew(environment, source, *names, **options)
        way = (environment.trim_blocks, environment.lstrip_blocks, environment.keep_trailing_newline)
        marks = (environment.block_start_string, environment.variable_start_string, environment.comment_start_string)
        key = (way, marks, tuple(environment.extensions), source, names, tuple(sorted(options.items())))
        if key not in compiled_once:
            compiled_once[key] = compile_anew(environment, source, *names, **options)
        return compiled_once[key]

    Environment.compile = compile_once


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, apart from the configuration of whoever runs the tests, and return what it printed."""
    identity = {f"GIT_{role}_{key}": "t@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | identity | alone, text=True, capture_output=True
    )
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def commit_all(folder: Path, message: str = "Change") -> None:
    """Commit everything in a folder, making it a repository first."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", f"--message={message}")


def snapshot(destination: Path) -> Path:
    """Copy the template as it is in the work tree to a tagged repository of its own, which Copier can update from."""
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "copier.yml", "includes", "template")
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name)
    commit_all(destination, "Snapshot")
    git(destination, "tag", "v1.0.0")
    return destination


def copy(template: Path, destination: Path, exclude: Sequence[str] = (), **answers: Any) -> Path:
    """Generate a project of these answers, and DEFAULTS for the rest, without some files; returns its folder."""
    copier.run_copy(str(template), destination, DEFAULTS | answers, defaults=True, exclude=exclude, quiet=True)
    return destination


def update(project: Path, **answers: Any) -> None:
    """Update a committed project as `copier update --vcs-ref=:current: --defaults --data …` does, and commit it."""
    copier.run_update(project, data=answers, defaults=True, overwrite=True, quiet=True, vcs_ref=copier.VcsRef.CURRENT)


def tree(project: Path) -> Tree:
    """The files of a project by path, and its empty folders (with a slash), git's own apart."""
    found: Tree = {}
    for folder, folders, files in os.walk(project):
        folders[:] = [name for name in folders if name not in {".git", "__pycache__"}]
        if not folders and not files:
            found[f"{Path(folder).relative_to(project)}/"] = (0, b"")
        for name in files:
            path = Path(folder, name)
            found[str(path.relative_to(project))] = (path.stat().st_mode & 0o777, path.read_bytes())
    return found


# The fast renderer ----------------------------------------------------------


def once_for_each(method: Callable[["Renderer", Answers], T]) -> Callable[["Renderer", Answers], T]:
    """Let a method of a renderer work out only once what follows from a set of answers, told by its identity."""

    @wraps(method)
    def remembered(self: "Renderer", given: Answers) -> T:
        key = method.__name__, id(given)
        if key not in self.known:
            # The set is kept, so that no other one gets its identity.
            self.known[key] = given, method(self, given)
        return self.known[key][1]

    return remembered


class Renderer:
    """Renders the template in memory; with an environment of another kind, a changed template."""

    def __init__(self, environment: SandboxedEnvironment | None = None) -> None:
        self.config = questions()
        self.environment = environment or make_environment()
        # Compiling a string costs more than rendering it.
        self.compiled = cache(self.environment.from_string)
        # A file is rendered once for all answers that agree on what it reads, and paths once for what is left out.
        self.rendered: dict[tuple, str] = {}
        self.included: dict[tuple[str, str], list[tuple[str, str]]] = {}
        # What `once_for_each` has worked out.
        self.known: dict[tuple[str, int], tuple[Mapping[str, Any], Any]] = {}

    def string(self, text: str, context: Mapping[str, Any]) -> str:
        """Render one string of copier.yml."""
        return self.compiled(text).render(context)

    @once_for_each
    def context(self, answers: Answers) -> dict[str, Any]:
        """The names that templates see: the answers, and what is computed from them, in the order of copier.yml."""
        known: dict[str, Any] = {"_copier_conf": SimpleNamespace(data={}, answers_file=ANSWERS_FILE, dst_path="acme")}
        for name, question in self.config.items():
            known[name] = self.computed(question, known) if question.get("when") is False else answers[name]
        asked = {name: known[name] for name, question in self.config.items() if question.get("when") is not False}
        known["_copier_answers"] = {"_commit": "v1.0.0", "_src_path": "template"} | asked
        return known

    def computed(self, question: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
        """What copier.yml makes of the answers that are known."""
        return parsed(self.string(question["default"], known), question["type"])

    def asked(self, answers: Answers) -> list[str]:
        """The questions that Copier puts to a person who gives these answers."""
        context = self.context(answers)
        return [
            name
            for name, question in self.config.items()
            if question.get("when") is not False
            and self.string(str(question.get("ask", True)), context) not in ("False", "[]", "")
        ]

    def left_out(self, context: Mapping[str, Any]) -> str:
        """What `_exclude` leaves out: patterns as in a .gitignore, one a line."""
        return "\n".join(self.string(pattern, context) for pattern in settings()["_exclude"])

    def file(self, name: str, context: Mapping[str, Any]) -> str:
        """Render one file of the template, by its path below `template/`."""
        template = f"template/{name}"
        if ANSWERS_FILE_NAME in name:
            return self.environment.get_template(template).render(context)
        read, (features, texts, mappings) = names_read(name), self.words(context)
        key = (
            name,
            texts,
            *(features[feature] for feature in read.features),
            *(mappings[each] for each in read.mappings),
        )
        if key not in self.rendered:
            self.rendered[key] = self.environment.get_template(template).render(context)
        return self.rendered[key]

    @once_for_each
    def words(self, context: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...], dict[str, str]]:
        """What files are rendered from, as hashable texts: features, answers that are texts, and other mappings."""
        features = {name: str(value) for name, value in context["features"].items()}
        mappings = {name: str(context[name]) for name in MAPPINGS}
        return features, tuple(context[name] for name in TEXTS), mappings

    @once_for_each
    def paths(self, context: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The files of the project, each with the file of the template that it is made of."""
        key = self.left_out(context), context["project_slug"]
        if key not in self.included:
            left_out = GitIgnoreSpec.from_lines(key[0].splitlines())
            made = ((self.string(name, context).removesuffix(".jinja"), name) for name in template_files())
            self.included[key] = [(path, name) for path, name in made if not left_out.match_file(path)]
        return self.included[key]

    def project(self, answers: Answers) -> dict[str, bytes]:
        """The whole project, by path."""
        context = self.context(answers)
        return {
            path: self.file(name, context).encode() if name.endswith(".jinja") else raw(name)
            for path, name in self.paths(context)
        }


@cache
def parsed(text: str, kind: str) -> Any:
    """What a text of this type in copier.yml says."""
    return {"json": json.loads, "yaml": yaml.safe_load}.get(kind, str)(text)


def make_environment(cls: type[SandboxedEnvironment] = SandboxedEnvironment) -> SandboxedEnvironment:
    """Jinja as Copier sets it up for this template."""
    options = settings()["_envops"] | {"undefined": StrictUndefined}
    extensions = ["jinja2_ansible_filters.AnsibleCoreFiltersExtension"]
    return cls(loader=FileSystemLoader(ROOT), extensions=extensions, **options)


@cache
def _copier_yml() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "copier.yml").read_text())


def settings() -> dict[str, Any]:
    """Copier's settings in copier.yml."""
    return {name: value for name, value in _copier_yml().items() if name.startswith("_")}


def questions() -> dict[str, dict[str, Any]]:
    """The questions and computed values in copier.yml, in order."""
    return {name: value for name, value in _copier_yml().items() if not name.startswith("_")}


@cache
def template_files() -> tuple[str, ...]:
    """The paths of all files below `template/`."""
    names = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "template").split("\0")
    return tuple(sorted(name.removeprefix("template/") for name in names if name and (ROOT / name).is_file()))


@cache
def raw(name: str) -> bytes:
    """A file of the template that is copied as it is."""
    return (ROOT / "template" / name).read_bytes()


class Read(NamedTuple):
    """What a file of the template reads: keys of `features`, and which of the other mappings."""

    features: tuple[str, ...]
    mappings: tuple[str, ...]


@cache
def names_read(name: str) -> Read:
    """What a file of the template reads, by its path below `template/`."""
    tree = make_environment().parse(raw(name).decode())
    read = [(node.node.name, node.attr) for node in tree.find_all(nodes.Getattr) if isinstance(node.node, nodes.Name)]
    features = {attribute for mapping, attribute in read if mapping == "features"}
    # A file that goes through a whole mapping names it, but none of its keys.
    named = {node.name for node in tree.find_all(nodes.Name)}
    return Read(tuple(sorted(features)), tuple(sorted({*MAPPINGS} & named)))
