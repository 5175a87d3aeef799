"""What the faults did, as a table in Markdown; pytest prints it when faults were among the tests."""

from collections.abc import Iterable
from typing import Any

from tests.faults.account import Outcome

COLUMNS = ("refused", "failed", "lost", "stuck", "run twice", "seconds", "remarks")


def heading(*first: str) -> list[str]:
    """Return the head of a table whose rows begin with these columns."""
    names = (*first, *COLUMNS)
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def row(outcome: Outcome, *first: str) -> str:
    """Return the row of an outcome."""
    seconds = "" if outcome.seconds is None else f"{outcome.seconds:.0f}"
    counts = (outcome.refused, outcome.failed, outcome.lost, outcome.stuck, outcome.twice)
    return f"| {' | '.join([*first, *map(str, counts), seconds, outcome.note])} |"


def table(rows: Iterable[str], *first: str) -> str:
    """Return a table whose rows begin with these columns."""
    return "\n".join([*heading(*first), *rows])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of the faults that have happened."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    found = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if found:
        rows = [row(Outcome(**outcome), fault, broker, pool) for fault, broker, pool, outcome in sorted(found, key=str)]
        terminalreporter.section("faults, 200 tasks each")
        terminalreporter.write_line(table(rows, "fault", "broker", "pool"))
