"""Fills the queue, and prints how long sending took, in milliseconds: `python -m probe.load nothing 2000`."""

import json
import statistics
import sys
import time

import django

django.setup()

from probe import tasks  # noqa: E402


def main(task: str, count: int) -> None:
    """Send a task so often; print the median and the 99th percentile of the times that it took."""
    taken, known = [], getattr(tasks, task)
    send = known.enqueue if hasattr(known, "enqueue") else known.delay
    for _ in range(count):
        begun = time.perf_counter()
        send()
        taken.append((time.perf_counter() - begun) * 1000)
    centiles = statistics.quantiles(taken, n=100)
    print(json.dumps([centiles[49], centiles[98]]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
