"""Tasks per second, and what they cost, of our project beside bare Celery: `uv run python -m bench throughput`.

Each pair of figures comes from one run, in which the two alternate: only their ratio means something elsewhere. Prints
the tables and writes throughput.md.
"""

import argparse
import json
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from tests import template
from tests.faults.stage import Stage, staged
from tests.faults.subjects import Subject, bare_project, our_project

RESULTS = Path(__file__).with_name("throughput.md")
# Slots of a worker, and how many tasks are sent, by pool and task.
LOADS = {
    ("prefork", "nothing"): (2, 4000),
    ("prefork", "wait_20_ms"): (4, 1000),
    ("threads", "nothing"): (20, 3000),
    ("threads", "wait_20_ms"): (20, 2500),
    ("gevent", "nothing"): (20, 3000),
    ("gevent", "wait_20_ms"): (20, 2500),
}
WORKERS = (1, 2, 4)
SUBJECTS = ("bare", "without", "ours")
INTRODUCTION = """# Throughput

Made by `uv run python -m bench throughput` on Redis: medians of {rounds} round(s), in which bare Celery (the project of
"First steps with Django") and our project take turns. Bare Celery keeps results in Redis, as in "First steps". Ours
keeps none unless a task asks for it. *without* is bare Celery without results, so the second ratio shows what safety
costs. Memory is the proportional set size of the worker and its children.

{pools}

## Sending

{sending}

## More workers

Our project, with two prefork children per worker, on a machine with {cores} cores.

{workers}
"""


class Figures(NamedTuple):
    """What was measured in one run."""

    rate: float
    cpu_ms: float
    memory_mb: float
    median_ms: float
    slow_ms: float


class Queue:
    """The length of the queue in Redis, asked for often on one connection.

    Tasks of Django's framework have a priority, whose list is another one.
    """

    lists = (b"celery", b"celery\x06\x163")

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))

    def __len__(self) -> int:
        return sum(map(self.length, self.lists))

    def length(self, name: bytes) -> int:
        self.connection.sendall(b"LLEN %s\r\n" % name)
        return int(self.connection.recv(64)[1:])


def tree(stage: Stage) -> Iterator[psutil.Process]:
    """Yield the processes of the workers."""
    for service in stage.services:
        worker = psutil.Process(service.program.process.pid)
        yield from (worker, *worker.children(recursive=True))


def cpu_seconds(stage: Stage) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in tree(stage))


def measure(subject: Subject, pool: str, task: str, slots: int, count: int, folder: Path, workers: int = 1) -> Figures:
    """Fill the queue, start workers, and look at them while they take the middle eight tenths of the tasks."""
    with staged(subject, "redis", pool, folder, {}, None) as stage:
        median_ms, slow_ms = json.loads(
            stage.python("-m", "probe.load", task, str(count), seconds=300).splitlines()[-1]
        )
        queue = Queue(stage.broker.port)
        for _ in range(workers):
            stage.start_worker(slots, ready=False)
        until(lambda: len(queue) <= 0.9 * count)
        length, begun, used = len(queue), time.monotonic(), cpu_seconds(stage)
        until(lambda: len(queue) <= 0.1 * count)
        taken = length - len(queue)
        seconds, used = time.monotonic() - begun, cpu_seconds(stage) - used
        memory = sum(process.memory_full_info().pss for process in tree(stage)) / 2**20
    return Figures(taken / seconds, used / taken * 1000, memory, median_ms, slow_ms)


def until(is_true: Callable[[], bool]) -> None:
    """Wait until something is so, with little work for the machine."""
    while not is_true():
        time.sleep(0.02)


def pools_table(figures: dict[tuple[str, str, str], Figures]) -> str:
    """Return rates, CPU and memory by pool and task, with the ratios of ours to the others."""
    lines = [
        "| pool | slots | task | tasks/s, bare | without | ours | ratios "
        "| CPU ms a task, bare | without | ours | ratios | MB, bare | ours |",
        f"|{' --- |' * 13}",
    ]
    for (pool, task), (slots, _) in LOADS.items():
        bare, without, ours = (figures[pool, task, name] for name in SUBJECTS)
        rates = f"{bare.rate:.0f} | {without.rate:.0f} | {ours.rate:.0f}"
        rates += f" | {ours.rate / bare.rate:.2f}, {ours.rate / without.rate:.2f}"
        cpu = f"{bare.cpu_ms:.2f} | {without.cpu_ms:.2f} | {ours.cpu_ms:.2f}"
        cpu += f" | {ours.cpu_ms / bare.cpu_ms:.2f}, {ours.cpu_ms / without.cpu_ms:.2f}"
        memory = f"{bare.memory_mb:.0f} | {ours.memory_mb:.0f}"
        lines.append(f"| {pool} | {slots} | {task} | {rates} | {cpu} | {memory} |")
    return "\n".join(lines)


def sending_table(figures: dict[tuple[str, str, str], Figures]) -> str:
    """Return how long `.delay()` takes."""
    lines = ["| project | median, ms | 99th percentile, ms |", "| --- | --- | --- |"]
    for name in SUBJECTS:
        own = [each for (_, _, of), each in figures.items() if of == name]
        lines.append(
            f"| {name} | {median(each.median_ms for each in own):.2f} | {median(each.slow_ms for each in own):.2f} |"
        )
    return "\n".join(lines)


def middle(rounds: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(*map(median, zip(*rounds, strict=True)))


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of eight minutes each (default: 3)")
    number_of_rounds = parser.parse_args().rounds
    rounds: dict[tuple[str, str, str], list[Figures]] = defaultdict(list)
    scaled: dict[tuple[str, int], list[Figures]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        ours = our_project(template.snapshot(folder / "template"), folder / "ours")
        bare = bare_project(folder, ours.programs)
        without = replace(bare, settings={"CELERY_TASK_IGNORE_RESULT": True})
        subjects = dict(zip(SUBJECTS, (bare, without, ours), strict=True))
        for number in range(number_of_rounds):
            for (pool, task), (slots, count) in LOADS.items():
                for name, subject in subjects.items():
                    place = folder / f"{number}-{pool}-{task}-{name}"
                    rounds[pool, task, name].append(measure(subject, pool, task, slots, count, place))
            for task, count in (("nothing", 6000), ("wait_20_ms", 1500)):
                for workers in WORKERS:
                    place = folder / f"{number}-{task}-{workers}"
                    scaled[task, workers].append(measure(ours, "prefork", task, 2, count, place, workers))
    figures = {key: middle(each) for key, each in rounds.items()}
    lines = [f"| task | {' | '.join(f'{each} workers' for each in WORKERS)} |", f"|{' --- |' * (len(WORKERS) + 1)}"]
    for task in ("nothing", "wait_20_ms"):
        rates = [middle(scaled[task, workers]).rate for workers in WORKERS]
        lines.append(f"| {task} | {' | '.join(f'{rate:.0f} ({rate / rates[0]:.2f})' for rate in rates)} |")
    text = INTRODUCTION.format(
        rounds=number_of_rounds,
        pools=pools_table(figures),
        sending=sending_table(figures),
        workers="\n".join(lines),
        cores=psutil.cpu_count(),
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
