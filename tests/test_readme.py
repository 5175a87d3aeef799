"""What the README says is so: its figures are those of the tables it links to, and its versions those of a project."""

import re

from bench.figures import BY_ENTER, FIRST_TASK_ROW
from docs import toggle
from tests import template
from tests.template import ROOT

README = (ROOT / "README.md").read_text()
# One fault, as the tables of this project and of others name it.
KILLED_WORKER = ("kill -9 of the worker", "kill -9 of the worker | redis | prefork")


def test_the_first_command_of_the_readme_comes_before_line_fifteen():
    assert any(line.startswith("$ ") for line in README.splitlines()[:14])


def test_ci_runs_the_test_command_of_the_readme():
    [command] = re.findall(r"^\$ (uv run --all-groups pytest.*)$", README, re.MULTILINE)
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == command


def test_the_readme_says_how_many_sets_of_answers_there_are():
    assert f" all {len(template.valid_answers()):,} sets of answers " in README


def test_the_readme_says_what_the_table_of_faults_says():
    missing = {name: [lost + stuck for _, who, lost, stuck in faults() if who == name] for name in ("bare", "ours")}
    rows = f"in {sum(map(bool, missing['bare']))} of {len(missing['bare'])} rows"
    assert f"we lose none, and bare Celery loses or holds back some {rows}" in " ".join(README.split())
    assert missing["ours"] and not any(missing["ours"])


def faults() -> list[tuple[str, str, int, int]]:
    """The table of faults: of each row the fault with its place, whose project it is, and tasks lost and stuck."""
    pattern = r"^\| (.*) \| (bare|ours|cookiecutter-django) \| [\d to]+ \| [\d to]+ \| ([\d to]+) \| ([\d to]+) \|"
    rows = re.findall(pattern, (ROOT / "bench/faults.md").read_text(), re.MULTILINE)
    # A figure is "3", or "2 to 5" of several rounds.
    return [(fault, who, int(lost.split()[-1]), int(stuck.split()[-1])) for fault, who, lost, stuck in rows]


def compared(row: str) -> list[str]:
    """The cells of a row of the README that compares this template with others, without its name."""
    [line] = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    return line.split(" | ")[1:]


def test_the_readme_compares_tasks_lost_as_the_table_of_faults_does():
    killed = {who: (lost, stuck) for fault, who, lost, stuck in faults() if fault in KILLED_WORKER}
    ours, cookiecutter, _, bare = compared("Of 200 tasks on Redis, after `kill -9` of the worker")
    assert killed["ours"] == (0, 0) and ours.startswith("[none lost](bench/faults.md)")
    for cell, who in ((cookiecutter, "cookiecutter-django"), (bare, "bare")):
        assert cell.startswith("[{} lost, {} stuck](bench/faults.md)".format(*killed[who]))


def test_the_readme_says_how_long_the_first_task_takes_as_the_figures_do():
    [seconds] = re.findall(rf"^\| {FIRST_TASK_ROW} \| (\d+),", (ROOT / "bench/results.md").read_text(), re.MULTILINE)
    assert compared("Time to the first finished task")[0].startswith(f"[{seconds} seconds](bench/results.md)")


def test_every_figure_and_claim_about_this_template_and_others_has_a_source():
    for row in ("Switch Celery later", "Take the next release", "Services to install for development"):
        for cell in compared(row):
            assert "](" in cell, cell


def test_the_readme_names_the_versions_that_a_project_gets(render):
    named = dict(re.findall(r"^\| (\w+) \| ([^|]+) \| \[[\w.-]+\]\(", README, re.MULTILINE))
    tested = (ROOT / "template/tested-versions.txt.jinja").read_text()
    images = {}
    for broker in ("redis", "rabbitmq"):
        compose = (render(celery_broker=broker) / "docker-compose.yml").read_text()
        images |= dict(re.findall(r"image: (\w+):(\d+)", compose))
    versions = {
        "Python": template.questions()["python_version"]["choices"],
        "Django": re.findall(r"^django==(\d+\.\d+)", tested, re.MULTILINE),
        "Celery": re.findall(r"^celery==(\d+\.\d+)", tested, re.MULTILINE),
        "Redis": [images["redis"]],
        "RabbitMQ": [images["rabbitmq"]],
        "PostgreSQL": [images["postgres"]],
        "Copier": re.findall(r"^\d+\.\d+", template.settings()["_min_copier_version"]),
    }
    # What is in brackets says where a version is used.
    found = {name: re.findall(r"\d+(?:\.\d+)?", re.sub(r"\(.*?\)", "", text)) for name, text in named.items()}
    assert found == versions


def test_the_picture_of_the_switch_shows_what_a_toggle_changes(project):
    assert toggle.PICTURE.read_text() == toggle.picture(toggle.changes(project())), "run `uv run python -m docs.toggle`"


def test_the_figures_are_about_the_project_that_enter_alone_gives_without_the_example():
    asked = {name: each["default"] for name, each in template.questions().items() if each.get("when") is not False}
    by_enter = asked | {"use_background_tasks": False}
    assert {name: by_enter[name] for name in template.SWITCHES} == {name: BY_ENTER[name] for name in template.SWITCHES}
