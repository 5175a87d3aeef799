"""What faults do to bare Celery, to our project, and to ours without one of its parts.

`uv run python -m bench faults` prints the tables and writes faults.md. The faults are those of `tests/faults`; several
happen at a time, because they mostly wait, so the seconds are upper bounds.
"""

import argparse
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests import template
from tests.faults import faults
from tests.faults.account import Outcome, Stalled
from tests.faults.faults import FAULTS, Act, Fault, Place
from tests.faults.subjects import Settings, Subject, bare_project, our_project
from tests.faults.table import row, spread, table
from tests.processes import rabbitmq_server

OURS, BARE = "ours", "bare"
# The same project, with tasks of Django's framework instead of Celery's.
ENQUEUED = "ours, enqueued"
RESULTS = Path(__file__).with_name("faults.md")
AT_A_TIME = 5
INTRODUCTION = """# Faults

Made by `uv run python -m bench faults`: each row is 200 tasks of 0.05 to 0.15 seconds, four slots, and one fault. A
program that exits is restarted, as containers are. "bare" is the project of Celery's "First steps with Django", with
Redis or RPC for results. So that no run takes an hour, our project has a visibility timeout of 8 seconds where workers
die or lose their broker, and time limits of 20 and 18 seconds where tasks take too long. Bare Celery keeps its own
timeouts, which are one hour and half an hour. Where a row names a visibility timeout, both projects have that one.
"ours, enqueued" is our project with tasks of Django's framework instead of Celery's.

- *refused*: the sender got an error.
- *failed*: the task is kept as a failed task, which the admin shows and can send again.
- *lost*: the task is neither done nor failed, and the broker no longer has it.
- *stuck*: the task was not done after a minute in which nothing happened, but the broker still has it.
- *run twice*: the task ran more than once. Its end could not be acknowledged, so the broker delivered it again.
- *seconds*: the time from the fault until the last task was done. Without a fault, this is {quiet}.

Rounds: {rounds}. With several rounds, a pair of figures gives the lowest and the highest.

{rows}

## With the settings of others

This is the bare project with the settings that two templates add:
[cookiecutter-django](https://github.com/cookiecutter/cookiecutter-django) at e531089 and
[cookiecutter-rt-django](https://github.com/reef-technologies/cookiecutter-rt-django) at 005319f. We tried
only their settings for Celery here, not their projects. django-keel has the same settings as bare Celery.

{rivals}

## What each part is there for

This is our project without one of its settings, which is removed or set to Celery's default, or without one line of its
celery.py.

{removed}
"""
FIRST = ("fault", "broker", "pool", "project")
ENQUEUED_ACTS = (
    faults.killed_worker,
    faults.stopped_in_mid_task,
    faults.poison_task,
    faults.broker_away,
    faults.transactions,
)
REDIS_PREFORK, RABBITMQ_PREFORK = ("redis", "prefork"), ("rabbitmq", "prefork")


class Removal(NamedTuple):
    """A part of our project that is taken out, and the faults that it is there for.

    It is a setting, taken out or set as Celery has it, or the lines of celery.py that contain a text.
    """

    name: str
    acts: tuple[Act, ...]
    settings: Settings | None = None
    lines: str = ""
    places: tuple[Place, ...] = (REDIS_PREFORK,)


def transport(*options: str) -> Settings:
    """Take out transport options."""
    return {"CELERY_BROKER_TRANSPORT_OPTIONS": dict.fromkeys(options)}


REMOVALS = (
    Removal("task_acks_late", (faults.killed_child, faults.killed_worker), {"CELERY_TASK_ACKS_LATE": False}),
    Removal("task_reject_on_worker_lost", (faults.killed_child,), {"CELERY_TASK_REJECT_ON_WORKER_LOST": False}),
    Removal("worker_prefetch_multiplier", (faults.busy_neighbour,), {"CELERY_WORKER_PREFETCH_MULTIPLIER": None}),
    Removal(
        "worker_cancel_long_running_tasks_on_connection_loss",
        (faults.restarted_redis, faults.broker_away),
        {"CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS": True},
    ),
    Removal(
        "task_time_limit, task_soft_time_limit",
        (faults.hung_tasks, faults.long_task),
        {"CELERY_TASK_TIME_LIMIT": None, "CELERY_TASK_SOFT_TIME_LIMIT": None},
    ),
    Removal("visibility_timeout", (faults.killed_worker,), transport("visibility_timeout")),
    Removal(
        "unacked_restore_interval, unacked_restore_throttle",
        (faults.killed_worker,),
        transport("unacked_restore_interval", "unacked_restore_throttle"),
    ),
    Removal("unacked_mutex_expire", (faults.killed_in_a_look,), transport("unacked_mutex_expire")),
    Removal("max_connections", (faults.burst,), transport("max_connections"), places=(("redis", "gevent"),)),
    Removal(
        "task_publish_retry_policy",
        (faults.broker_down_at_enqueue, faults.silent_network),
        {"CELERY_TASK_PUBLISH_RETRY_POLICY": None},
    ),
    Removal("apps.tasks.sending.results", (faults.broken_chord,), {"CELERY_RESULT_BACKEND": "django-db"}),
    Removal(
        "broker_pool_acquire_timeout", (faults.broker_down_at_enqueue,), {"CELERY_BROKER_POOL_ACQUIRE_TIMEOUT": None}
    ),
    Removal(
        "socket_timeout, socket_connect_timeout",
        (faults.broker_down_at_enqueue, faults.silent_network),
        transport("socket_timeout", "socket_connect_timeout"),
    ),
    Removal(
        "broker_connection_timeout, read_timeout, write_timeout",
        (faults.broker_down_at_enqueue,),
        {"CELERY_BROKER_CONNECTION_TIMEOUT": None, **transport("read_timeout", "write_timeout")},
        places=(RABBITMQ_PREFORK,),
    ),
    Removal("confirm_publish", (faults.silent_network,), transport("confirm_publish"), places=(RABBITMQ_PREFORK,)),
    Removal(
        "task_default_exchange_type",
        (faults.long_countdown,),
        {"CELERY_TASK_DEFAULT_EXCHANGE_TYPE": None, "CELERY_TASK_CREATE_MISSING_QUEUE_EXCHANGE_TYPE": None},
        places=(RABBITMQ_PREFORK,),
    ),
    Removal(
        "beat_scheduler",
        (faults.two_beats, faults.killed_beat),
        {"CELERY_BEAT_SCHEDULER": "django_celery_beat.schedulers:DatabaseScheduler"},
    ),
    Removal("worker_consumer", (faults.unknown_task,), {"CELERY_WORKER_CONSUMER": None}),
    Removal("LOST_WORKERS_PER_TASK", (faults.poison_task,), {"LOST_WORKERS_PER_TASK": 10**6}),
    Removal("DURABLE_TASK_RESEND_SECONDS", (faults.lost_data,), {"DURABLE_TASK_RESEND_SECONDS": 10**6}),
    Removal("quorum queues", (faults.killed_node,), lines="ProjectAMQP", places=(("cluster", "prefork"),)),
    Removal("the transport for Redis", (faults.restarted_redis,), lines="redis_transport:Transport"),
    Removal("ProjectTask", (faults.transactions, faults.lost_data), lines="task_cls="),
    Removal("WORKER_STOP_SECONDS", (faults.stopped_in_mid_task,), {"WORKER_STOP_SECONDS": 10**6}),
    Removal("the step Patience", (faults.stopped_in_mid_task, faults.silent_network), lines="stopping:Patience"),
)


class Rival(NamedTuple):
    """What a template sets that bare Celery does not, and the faults that this makes a difference to, or ought to."""

    name: str
    settings: Settings
    acts: tuple[Act, ...]


EVENTS = {"CELERY_WORKER_SEND_TASK_EVENTS": True, "CELERY_TASK_SEND_SENT_EVENT": True, "CELERY_TASK_TIME_LIMIT": 300}
DEATHS = (faults.killed_child, faults.killed_worker, faults.stopped_in_mid_task, faults.poison_task, faults.hung_tasks)
SENDING = (faults.restarted_redis, faults.broker_down_at_enqueue, faults.transactions)
RIVALS = (
    Rival(
        "cookiecutter-django",
        EVENTS
        | {
            "CELERY_RESULT_BACKEND_ALWAYS_RETRY": True,
            "CELERY_RESULT_BACKEND_MAX_RETRIES": 10,
            "CELERY_RESULT_EXTENDED": True,
            "CELERY_TASK_SOFT_TIME_LIMIT": 60,
            "CELERY_TASK_TRACK_STARTED": None,
        },
        (*DEATHS, *SENDING, faults.cleared_cache, faults.two_beats),
    ),
    Rival(
        "cookiecutter-rt-django",
        EVENTS
        | {
            "CELERY_BROKER_POOL_LIMIT": 50,
            "CELERY_RESULT_EXPIRES": 86400,
            "CELERY_TASK_ANNOTATIONS": {"*": {"acks_late": True, "reject_on_worker_lost": True}},
            "CELERY_TASK_TRACK_STARTED": None,
            "CELERY_WORKER_PREFETCH_MULTIPLIER": 1,
        },
        (*DEATHS, *SENDING),
    ),
)


class Run(NamedTuple):
    """A fault that happens to a subject in a place."""

    fault: Fault
    place: Place
    subject: Subject


def without(ours: Subject, removal: Removal) -> Subject:
    """Return our project without a part; where that is in celery.py, a copy of it."""
    subject = replace(ours, name=f"without {removal.name}", settings=removal.settings or {})
    if not removal.lines:
        return subject
    copy = ours.project.with_name(re.sub(r"\W+", "-", subject.name))
    shutil.copytree(ours.project, copy, ignore=shutil.ignore_patterns(".venv"))
    app = copy / "acme/celery.py"
    app.write_text("".join(line for line in app.read_text().splitlines(True) if removal.lines not in line))
    return replace(subject, project=copy)


def plan(ours: Subject, bare: Subject) -> list[Run]:
    """Return every fault in all its places for both projects, then each rival and each removal with its own faults."""
    places = [(fault, place) for fault in FAULTS.values() for place in fault.places]
    both = [Run(*each, subject) for each in places for subject in (bare, ours)]
    enqueued = replace(ours, name=ENQUEUED, enqueues=True)
    both += [Run(*each, enqueued) for each in places if each[0].act in ENQUEUED_ACTS]
    rivals = [
        Run(FAULTS[act.__name__], REDIS_PREFORK, replace(bare, name=rival.name, settings=rival.settings))
        for rival in RIVALS
        for act in rival.acts
    ]
    removed = [
        Run(FAULTS[act.__name__], place, subject)
        for removal in REMOVALS
        for subject in [without(ours, removal)]
        for act in removal.acts
        for place in removal.places
    ]
    return both + rivals + removed


def happen(run: Run, folder: Path, rabbitmq_port: int) -> Outcome:
    """Let the fault happen; return what became of the tasks, also where they came to no end."""
    try:
        return run.fault.happen(run.subject, run.place, folder, rabbitmq_port)
    except Stalled as stalled:
        return stalled.outcome


def report(runs: list[Run], rounds: list[list[Outcome]]) -> str:
    """Return the tables: all faults for both projects, some for rivals, and what each setting is there for."""
    done = list(zip(runs, zip(*rounds, strict=True), strict=True))
    ours = {(run.fault.name, run.place): outcomes for run, outcomes in done if run.subject.name == OURS}
    both = [(run, outcomes) for run, outcomes in done if run.subject.name in (BARE, OURS, ENQUEUED)]
    rivals = [(run, outcomes) for run, outcomes in done if run.subject.name in {rival.name for rival in RIVALS}]
    removed = [
        f"| {run.subject.name} | {run.fault.name} | {' '.join(run.place)} "
        f"| {said(ours[run.fault.name, run.place])} | {said(outcomes)} |"
        for run, outcomes in done
        if run.subject.name.startswith("without ")
    ]
    return INTRODUCTION.format(
        quiet=spread(outcome.seconds for outcome in ours[FAULTS["no_fault"].name, REDIS_PREFORK]),
        rounds=len(rounds),
        rows=table((row(outcomes, run.fault.name, *run.place, run.subject.name) for run, outcomes in both), *FIRST),
        rivals=table((row(outcomes, run.fault.name, run.subject.name) for run, outcomes in rivals), *FIRST[::3]),
        removed="\n".join(["| project | fault | where | with it | without it |", "|" + " --- |" * 5, *removed]),
    )


def said(outcomes: Sequence[Outcome]) -> str:
    """Return what became of the tasks in words, without what is nothing."""
    counts = {"lost": "lost", "refused": "refused", "failed": "failed", "stuck": "stuck", "twice": "run twice"}
    figures = {name: spread(getattr(outcome, name) for outcome in outcomes) for name in (*counts, "seconds")}
    words = [f"{figures[name]} {word}" for name, word in counts.items() if name == "lost" or figures[name] != "0"]
    words += [f"{figures['seconds']} s"] if figures["seconds"] else []
    notes = " / ".join(dict.fromkeys(outcome.note for outcome in outcomes if outcome.note))
    return ", ".join(words) + (f" ({notes})" if notes else "")


def main() -> None:
    """Let everything happen, print and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="of 35 minutes each (default: 1)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "rabbitmq").mkdir()
        ours = our_project(template.snapshot(folder / "template"), folder / "ours")
        bare = bare_project(folder, ours.programs)
        with rabbitmq_server(folder / "rabbitmq") as (_, url), ThreadPoolExecutor(AT_A_TIME) as threads:
            port = int(url.rstrip("/").rpartition(":")[2])
            runs = plan(ours, bare)
            done = []
            for number in range(rounds):
                places = [folder / f"round{number}-run{place}" for place in range(len(runs))]
                done.append(list(threads.map(happen, runs, places, [port] * len(runs))))
                # What is there so far, because all of it takes long.
                RESULTS.write_text(report(runs, done))
    print(report(runs, done))


if __name__ == "__main__":
    main()
