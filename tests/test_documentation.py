"""What the documentation says is so, and its commands do what it says."""

import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from bench.__main__ import PARTS
from docs.generate import PAGE, page
from tests import contract, kubernetes, template
from tests.browser import Browser
from tests.dev_support import Terminal, left_in, running
from tests.processes import environment, needed, run
from tests.template import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
# What a person has set in git, for commands that commit.
IDENTITY = {f"GIT_{role}_{key}": "t@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}


def test_the_reference_of_questions_is_the_one_that_copier_yml_gives():
    assert PAGE.read_text() == page(), "run `uv run docs/generate.py`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path):
    [command] = re.findall(r"`uv run --all-groups (sphinx-build .*) site`", (ROOT / "CONTRIBUTING.md").read_text())
    program, *options = command.split()
    run(ROOT, Path(sys.executable).parent / program, *options, "-d", tmp_path / "cache", tmp_path / "site")
    sources = [path.relative_to(ROOT) for path in PAGES if path.name != "README.md"]
    missing = [path for path in sources if not (tmp_path / "site" / page_of(path)).exists()]
    assert not missing and (tmp_path / "site/search/index.html").exists()


def page_of(source: Path) -> Path:
    """Where the site has a page."""
    place = source.with_suffix("")
    return (place.parent if place.name == "index" else place) / "index.html"


def test_every_decision_says_what_why_and_at_what_cost():
    for path in sorted(ROOT.glob("docs/decisions/*.md")):
        for part in ("**Decision.**", "**Why.**", "**Cost.**"):
            assert part in path.read_text(), path


def test_each_alert_has_a_section_that_says_what_to_do(render):
    group = yaml.safe_load((render(use_metrics=True) / "apps/metrics/alerts.yml").read_text())["groups"][0]
    page = (ROOT / "docs/how-to/operate.md").read_text()
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == [rule["alert"] for rule in group["rules"]]


# Names and numbers ----------------------------------------------------------


def test_every_part_of_the_bench_that_a_page_names_exists_and_every_one_is_named():
    text = "".join(path.read_text() for path in PAGES)
    assert set(re.findall(r"python -m bench ([a-z_]+)", text)) == {*PARTS} - {"figures"}


def test_the_reference_of_commands_has_every_command_that_a_project_adds_to_django():
    files = (ROOT / "template/apps").glob("**/management/commands/[a-z]*.py")
    reference = (ROOT / "docs/reference/commands.md").read_text()
    assert set(re.findall(r"`manage\.py (\w+)", reference)) == {path.stem for path in files}


def test_the_page_on_kubernetes_names_what_the_manifests_have(renderer, tmp_path):
    page = (ROOT / "docs/how-to/deploy-kubernetes.md").read_text()
    commands = re.findall(r"(?:\$ |`)(kubectl (?!create)[^`\n]+)", page)
    files = renderer.project(template.DEFAULTS | {"deploy": ["kubernetes"]})
    release = re.findall("^#     (kubectl .*)$", files["deploy/kubernetes/kustomization.yaml"].decode(), re.MULTILINE)
    assert {*release} <= {*commands}
    built = kubernetes.manifests(renderer, tmp_path, "autoscaling", use_metrics=True).by_kind
    short = {"pdb": "poddisruptionbudget"}
    there = {f"{kind.lower()}/{name}" for kind, manifests in built.items() for name in manifests}
    named = re.findall(r"(?<!\S)([a-z]+)/([a-z]+)(?!\S)", " ".join(commands).replace("deploy/kubernetes", ""))
    assert named and {f"{short.get(kind, kind)}/{name}" for kind, name in named} <= there
    [namespace] = {each["metadata"]["namespace"] for manifests in built.values() for each in manifests.values()}
    assert {*re.findall(r"--namespace=(\w+)", page)} == {namespace}
    [tls] = built["Ingress"]["web"]["spec"]["tls"]
    assert f"kubectl create secret tls {tls['secretName']} " in page


def test_containers_are_started_by_one_command_and_stopped_by_one_wherever_they_are_named(renderer):
    context = renderer.context(template.DEFAULTS)
    message = renderer.string(template.settings()["_message_after_update"], context)
    pages = [path.read_text() for path in ROOT.glob("docs/**/*.md")]
    files = [content.decode() for content in renderer.project(template.DEFAULTS).values()]
    named = re.findall(r"docker compose\b[^`\n]* (?:up|down)\b[^`\n]*", "\n".join([message, *pages, *files]))
    # On one server, ./deploy starts new versions, and these start again what is there.
    everything = {command for command in named if not re.search(r"up (--detach )?--wait( \w+)?$|--no-deps", command)}
    assert everything == {context["commands"]["down"], context["commands"]["up"]}


# Commands -------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this repository as it is, without tags, as it has none before its first release."""
    folder = tmp_path_factory.mktemp("clone").resolve()
    origin = template.snapshot(folder / "origin")
    for name in ("LICENSE", "README.md", "pyproject.toml", "uv.lock"):
        (origin / name).write_bytes((ROOT / name).read_bytes())
    template.commit_all(origin)
    template.git(folder, "clone", "--quiet", "--no-tags", str(origin), "repository")
    assert template.git(folder / "repository", "tag") == ""
    return folder / "repository"


def console(path: str) -> list[list[str]]:
    """The commands of each console block on a page."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)
    return [re.findall(r"^\$ (.+)$", block, re.MULTILINE) for block in blocks]


def shell(folder: Path, commands: list[str]) -> str:
    """Run commands of a page in a folder, the one after the other; return what they printed."""
    return run(folder, needed("bash"), "-ec", "\n".join(commands), **IDENTITY)


def without_release(project: Path) -> template.Tree:
    """The files of a project that are the template's, and its answers but for the release that they were given to."""
    files = {path: file for path, file in template.tree(project).items() if path not in template.OWNERS_FILES}
    mode, answers = files[template.ANSWERS_FILE]
    return files | {template.ANSWERS_FILE: (mode, re.sub(rb"^_(commit|src_path): .*\n", b"", answers, flags=re.M))}


@pytest.mark.run
def test_the_commands_on_the_pages_make_a_project_by_enter_alone_and_switch_celery_off(clone, tmp_path):
    [copy, _], _ = console("README.md")
    with Terminal(clone, ("bash", "-c", copy), environment(COLUMNS="200")) as terminal:
        # What forces Celery is on, so nobody is asked about it.
        asked = contract.expected_questions(template.DEFAULTS | {"use_background_tasks": True})
        for name in filter(asked.__contains__, template.questions()):
            terminal.shows(re.escape(template.questions()[name]["help"].partition("?")[0]))
            os.write(terminal.window, b"\r")
        assert terminal.exit_code() == 0, terminal.text
        assert "Run tasks in the background" not in terminal.text
    project = clone.parent / "my-project"
    assert (project / "apps/jobs").exists() and (project / "apps/tasks").exists()
    [commit] = console("docs/tutorial/first-project.md")[1]
    shell(project, [commit])

    # What the first one tells takes a broker; test_own_tasks_survive.py runs it.
    _, by_hand, _ = console("docs/how-to/switch-celery.md")
    shell(project, by_hand)
    off = {
        "deploy": ["compose"],
        "project_name": "My Project",
        "project_slug": "my_project",
        "use_background_tasks": False,
    }
    fresh = template.copy(clone, tmp_path / "fresh", **off, **template.OFF)
    assert not (project / "apps/tasks").exists()
    assert without_release(project) == without_release(fresh)


def test_the_readme_starts_a_project_as_the_tutorial_does():
    [_, start], _ = console("README.md")
    [_, *steps], *_ = console("docs/tutorial/first-project.md")
    assert start == " && ".join(steps).replace("acme", "my-project")


@pytest.mark.run
def test_the_tutorial_does_what_it_says(clone):
    start, [commit], off = console("docs/tutorial/first-project.md")
    *copy, dev = start
    shell(clone, copy)
    project = clone.parent / "acme"
    with Terminal(project, ("bash", "-c", dev), environment()) as terminal:
        browser = Browser(terminal.shows(r"web +(http://[\d.:]+)/").group(1))
        terminal.shows(r"celery@\S+ ready")
        terminal.shows("Starting development server")
        assert "Run a task" in browser.get("/")[1]
        assert browser.run_task(20, 22) == "42"
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
    shell(project, [commit])

    *switch, dev = off
    assert "apps/tasks/" in shell(project, switch)
    with Terminal(project, ("bash", "-c", dev), environment()) as terminal:
        browser = Browser(terminal.shows(r"web +(http://[\d.:]+)/").group(1))
        terminal.shows("Starting development server")
        assert browser.get("/")[0] == 200
        assert not re.search("worker|beat|broker|celery|flower", " ".join(running(project).values()))
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
    assert not left_in(clone.parent)
