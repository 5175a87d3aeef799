"""What a look at a worker costs: our probe beside Celery's ping, and Python alone: `uv run python -m bench probes`."""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests import template
from tests.processes import environment, installed, redis_server, run, started

RESULTS = Path(__file__).with_name("probes.md")
ALIVE = "apps.tasks.worker.alive"
ROUNDS = 7


def cost(command: list[str | Path], variables: dict[str, str]) -> float:
    """Run a command that must succeed; return its CPU seconds."""
    words = [str(word) for word in command]
    pid = os.posix_spawn(
        words[0],
        words,
        environment(**variables),
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
    )
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(words)} fails.")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print and write the table."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        project, programs = installed(template.snapshot(work / "template"), work, "3.13", use_flower=False)
        run(project, programs / "python", "manage.py", "migrate", DEBUG="1")
        os.chdir(project)
        probes = {
            f"`python -m {ALIVE} worker`": [programs / "python", "-m", ALIVE, "worker"],
            "`celery inspect ping -d`": [programs / "celery", "-A", "acme", "inspect", "ping", "-d", "one@here"],
            "`python -c pass`": [programs / "python", "-c", "pass"],
        }
        with redis_server(work) as (_, url):
            variables = {"CELERY_BROKER_URL": url, "DEBUG": "1"}
            worker = (programs / "celery", "-A", "acme", "worker", "-l", "info", "-c", "1", "-n", "one@here")
            with started(project, work / "worker.log", *worker, **variables) as program:
                program.says(r" ready\.")
                # Until the first sign of life.
                time.sleep(10)
                costs = {name: [cost(probe, variables) for _ in range(ROUNDS)] for name, probe in probes.items()}
        os.chdir("/")
    lines = ["# Probes", "", f"Made by `uv run python -m bench probes`: medians of {ROUNDS} runs.", ""]
    lines += ["| probe | CPU seconds |", "| --- | --- |"]
    lines += [f"| {name} | {median(seconds):.3f} |" for name, seconds in costs.items()]
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
