"""The account of the tasks of a run.

What happened is counted from lines that the tasks and their sender write to a file, so neither the broker nor the
project can embellish it.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One thing that happened to a task: "sent", "refused", "started", "done" …"""

    moment: float
    what: str
    identity: int
    detail: str


class Record:
    """The file that the probe writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def lines(self) -> list[Line]:
        # What comes after the last line break is being written.
        whole = self.path.read_text().rpartition("\n")[0]
        split = (line.split(" ", 3) for line in whole.splitlines())
        return [Line(float(moment), what, int(identity), detail) for moment, what, identity, detail in split]

    def of(self, what: str) -> list[Line]:
        return [line for line in self.lines if line.what == what]

    def count(self, what: str) -> Counter[int]:
        """Return how often that happened to each task."""
        return Counter(line.identity for line in self.of(what))


@dataclass(frozen=True)
class Outcome:
    """What became of the tasks of a run.

    `refused`: the sender got an error. `failed`: the project keeps it as a failed task. `lost`: sent, but neither done
    nor failed nor with the broker any more. `stuck`: not done, but the broker has it still. `twice`: done more than
    once. `again`: started more than once, which is how those come back that were interrupted. `seconds`: from the
    fault until the last one was done.
    """

    sent: int
    refused: int
    failed: int
    lost: int
    stuck: int
    twice: int
    again: int
    seconds: float | None
    note: str = ""


class Stalled(AssertionError):
    """Something was waited for in vain; `outcome` is how things stood."""

    def __init__(self, outcome: Outcome, story: str) -> None:
        super().__init__(f"{outcome}\n{story}")
        self.outcome = outcome
