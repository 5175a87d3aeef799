"""`task.enqueue()` of Django's framework beside `task.delay()` of Celery: `uv run python -m bench enqueue`.

The three ways take turns in one run, so only their ratios mean something elsewhere. Prints the table and writes
enqueue.md.
"""

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from bench.throughput import Figures, measure, middle
from tests import template
from tests.faults.subjects import our_project

RESULTS = Path(__file__).with_name("enqueue.md")
SLOTS, COUNT = 2, 3000
DELAY = "`delay()`"
INTRODUCTION = """# Enqueueing

Made by `uv run python -m bench enqueue`: our project on Redis and SQLite, a worker with {slots} prefork children,
{count} tasks that do nothing, and medians of {rounds} rounds in which the ways take turns. `delay()` sends a task of
Celery, which keeps no result. `enqueue()` sends a task of Django's framework. By default, such a task keeps its state,
its errors and its return value in a row, which costs one INSERT when it is enqueued, and a SELECT and two UPDATEs when
it runs. `@task(keep_result=False)` keeps nothing.

| | tasks/s | ratio | CPU ms a task | sending one, median ms |
| --- | --- | --- | --- | --- |
{rows}

A task that does something takes longer, so its ratio is nearer to 1.
"""


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench enqueue", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of about a minute each (default: 3)")
    rounds = parser.parse_args().rounds
    figures: dict[str, list[Figures]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        ours = our_project(template.snapshot(folder / "template"), folder / "ours")
        enqueued = replace(ours, name="enqueued", enqueues=True)
        ways = {
            DELAY: (ours, "nothing"),
            "`enqueue()`, `keep_result=False`": (enqueued, "nothing_without_result"),
            "`enqueue()`": (enqueued, "nothing"),
        }
        for number in range(rounds):
            # Each way is the first one in turn, because a machine may be faster in its first seconds of work.
            turn = number % len(ways)
            order = [*list(ways)[turn:], *list(ways)[:turn]]
            for place, way in enumerate(order):
                subject, task = ways[way]
                run = folder / f"{number}-{place}"
                figures[way].append(measure(subject, "prefork", task, SLOTS, COUNT, run))
    medians = {way: middle(each) for way, each in figures.items()}
    usual = medians[DELAY].rate
    rows = [
        f"| {way} | {each.rate:.0f} | {each.rate / usual:.2f} | {each.cpu_ms:.2f} | {each.median_ms:.2f} |"
        for way, each in medians.items()
    ]
    text = INTRODUCTION.format(slots=SLOTS, count=COUNT, rounds=rounds, rows="\n".join(rows))
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
