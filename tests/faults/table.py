"""What the faults did, as a table in Markdown; pytest prints it when faults were among the tests."""

from collections.abc import Iterable, Sequence
from typing import Any

from tests.faults.account import Outcome

COLUMNS = ("refused", "failed", "lost", "stuck", "run twice", "seconds", "remarks")


def heading(*first: str) -> list[str]:
    """Return the head of a table whose rows begin with these columns."""
    names = (*first, *COLUMNS)
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def spread(values: Iterable[float | None]) -> str:
    """Return the least and the greatest of some figures, as "3" or "2 to 5"; nothing for none."""
    rounded = {round(value) for value in values if value is not None}
    return " to ".join(str(each) for each in sorted({min(rounded), max(rounded)})) if rounded else ""


def row(outcomes: Sequence[Outcome], *first: str) -> str:
    """Return the row of what happened in one run or in several."""
    names = ("refused", "failed", "lost", "stuck", "twice", "seconds")
    figures = [spread(getattr(outcome, name) for outcome in outcomes) for name in names]
    notes = dict.fromkeys(outcome.note for outcome in outcomes)
    return f"| {' | '.join([*first, *figures, ' / '.join(notes)])} |"


def table(rows: Iterable[str], *first: str) -> str:
    """Return a table whose rows begin with these columns."""
    return "\n".join([*heading(*first), *rows])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of the faults that have happened."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    found = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if found:
        rows = [row([Outcome(**outcome)], *where) for *where, outcome in sorted(found, key=str)]
        terminalreporter.section("faults, 200 tasks each")
        terminalreporter.write_line(table(rows, "fault", "broker", "pool"))
