"""The faults: each sets the tasks going, does something bad to them, and says what became of them."""

import math
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.browser import free_port
from tests.faults.account import Outcome
from tests.faults.stage import PATIENCE_SECONDS, SLOTS, TASKS, Service, Stage, staged
from tests.faults.subjects import Settings, Subject

Act = Callable[[Stage], Outcome]
# A broker and a pool.
Place = tuple[str, str]
Outcomes = dict[Place, Outcome]
BROKERS = ("redis", "rabbitmq")
POOLS = ("prefork", "threads", "gevent")
REDIS, PREFORK = BROKERS[:1], POOLS[:1]


@dataclass(frozen=True)
class Fault:
    """A fault: its name in the table, how it happens, where, and with which settings, whoever is the subject."""

    name: str
    act: Act
    brokers: tuple[str, ...]
    pools: tuple[str, ...]
    settings: Settings = field(default_factory=dict)

    @property
    def places(self) -> list[Place]:
        return [(broker, pool) for broker in self.brokers for pool in self.pools]

    def happen(self, subject: Subject, place: Place, folder: Path, rabbitmq_port: int | None = None) -> Outcome:
        """Let the fault happen to a subject in a folder; return what became of the tasks."""
        broker, pool = place
        with staged(subject, broker, pool, folder, self.settings, rabbitmq_port) as stage:
            return self.act(stage)

    def happen_everywhere(self, subject: Subject, folder: Path, rabbitmq_port: int | None = None) -> Outcomes:
        """Let it happen in all its places side by side: these runs mostly wait."""
        with ThreadPoolExecutor(len(self.places)) as threads:
            runs = {
                place: threads.submit(self.happen, subject, place, folder / "-".join(place), rabbitmq_port)
                for place in self.places
            }
        return {place: run.result() for place, run in runs.items()}


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, brokers: tuple[str, ...] = REDIS, pools: tuple[str, ...] = PREFORK, **settings: object
) -> Callable[[Act], Act]:
    """Enter a function into FAULTS under its own name."""

    def enter(act: Act) -> Act:
        FAULTS[act.__name__] = Fault(name, act, brokers, pools, settings)
        return act

    return enter


# Processes that die ---------------------------------------------------------


@fault("no fault", pools=POOLS)
def no_fault(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send()
    return stage.finish()


@fault("kill -9 of a pool child, 3 times", brokers=BROKERS)
def killed_child(stage: Stage) -> Outcome:
    stage.send()
    stage.start_worker()
    for done in (20, 60, 100):
        stage.until_done(done)
        stage.until(stage.busy, "a child is at work")
        stage.fault()
        os.kill(stage.busy()[-1], signal.SIGKILL)
    return stage.finish()


def in_the_middle(stage: Stage) -> Service:
    """Have the fault begin when a worker is in the middle of its tasks; return the worker."""
    stage.send()
    worker = stage.start_worker()
    stage.until_done(40)
    stage.until(stage.busy, "the worker is at work")
    stage.fault()
    return worker


@fault("kill -9 of the worker", brokers=BROKERS, pools=POOLS)
def killed_worker(stage: Stage) -> Outcome:
    worker = in_the_middle(stage)
    worker.kill()
    return stage.finish()


@fault("kill -9 of the worker while it looks for what others held")
def killed_in_a_look(stage: Stage) -> Outcome:
    worker = in_the_middle(stage)
    # The lock of kombu is left behind as that worker would have left it.
    stage.python("-m", "probe.die_looking")
    worker.kill()
    return stage.finish()


@fault(
    "SIGTERM, 10 s grace, SIGKILL in mid-task",
    brokers=BROKERS,
    pools=POOLS,
    # Longer than anybody waits here: tasks must be given back, not only come back by themselves.
    CELERY_BROKER_TRANSPORT_OPTIONS={"visibility_timeout": 120},
    CELERY_TASK_TIME_LIMIT=15,
    CELERY_TASK_SOFT_TIME_LIMIT=14,
)
def stopped_in_mid_task(stage: Stage) -> Outcome:
    # Ours is told the grace, less what it takes to end.
    stage.variables["WORKER_STOP_SECONDS"] = "7"
    stage.send(SLOTS, seconds=12)
    stage.send(TASKS - SLOTS, first=SLOTS)
    worker = stage.start_worker()
    stage.until_full()
    stage.fault()
    ended = worker.stop(grace_seconds=10)
    return replace(stage.finish(), note="ended in time" if ended else "killed")


@fault("a task that kills its worker each time")
def poison_task(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send(1, first=TASKS, task="kill_the_worker")
    stage.send(TASKS - 1)
    outcome = stage.finish()
    return replace(outcome, note=f"poison started {len(stage.record.of('poison'))} times")


@fault("a task that no worker knows")
def unknown_task(stage: Stage) -> Outcome:
    stage.send(1, first=TASKS, task="forgotten")
    stage.send(TASKS - 1)
    stage.fault()
    stage.start_worker()
    return stage.finish()


@fault("tasks that hang in every slot")
def hung_tasks(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.send(SLOTS, seconds=3600)
    stage.until_full()
    stage.fault()
    stage.send(TASKS - SLOTS, first=SLOTS)
    return stage.finish()


@fault(
    "tasks of 30 s in every slot of one of two workers",
    CELERY_BROKER_TRANSPORT_OPTIONS={"visibility_timeout": 90},
    CELERY_TASK_TIME_LIMIT=60,
    CELERY_TASK_SOFT_TIME_LIMIT=50,
)
def busy_neighbour(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.send(SLOTS, seconds=30)
    stage.until_full()
    # These could be run at once, by the other one.
    stage.send(SLOTS * 3, first=SLOTS)
    stage.start_worker()
    stage.fault()
    stage.send(TASKS - SLOTS * 4, first=SLOTS * 4)
    outcome = stage.finish()
    done = {line.identity: line.moment for line in stage.record.of("done")}
    late = [identity for identity in range(SLOTS, TASKS) if done.get(identity, math.inf) > done.get(0, math.inf)]
    return replace(outcome, note=f"{len(late)} others waited for them")


@fault("100 tasks that end at once, twice", pools=("gevent",))
def burst(stage: Stage) -> Outcome:
    stage.send(seconds=2)
    stage.start_worker(TASKS // 2)
    stage.fault()
    return stage.finish()


# Brokers that go away -------------------------------------------------------


@fault("Redis killed and restarted in mid-task, append-only file")
def restarted_redis(stage: Stage) -> Outcome:
    stage.send(SLOTS, seconds=4)
    stage.start_worker()
    stage.until_full()
    with stage.sending(TASKS - SLOTS, first=SLOTS, pause=0.03):
        stage.until(lambda: len(stage.record.count("sent")) > 2 * SLOTS, "more is sent")
        stage.fault()
        stage.broker.close()
        stage.wait(1)
        stage.broker.start()
    return stage.finish()


@fault("kill -9 of one of three nodes", brokers=("cluster",))
def killed_node(stage: Stage) -> Outcome:
    stage.start_worker()
    with stage.sending(pause=0.04):
        stage.until_done(40)
        stage.fault()
        stage.broker.kill_first()
    return replace(stage.finish(), note=slowest(stage))


@fault("broker away for 5 s", brokers=BROKERS)
def broker_away(stage: Stage) -> Outcome:
    return outage(stage, times=1, seconds=5)


@fault("broker flapping: away 1 s of 2, 5 times", brokers=BROKERS)
def broker_flapping(stage: Stage) -> Outcome:
    return outage(stage, times=5, seconds=1)


def outage(stage: Stage, times: int, seconds: float) -> Outcome:
    """Cut the way to the broker so often and so long, while tasks are sent and run."""
    way = stage.go_through_proxy()
    stage.start_worker()
    with stage.sending(pause=0.04):
        stage.until_done(40)
        stage.fault()
        for _ in range(times):
            way.cut()
            stage.wait(seconds)
            way.open()
            stage.wait(1)
    return replace(stage.finish(), note=slowest(stage))


def slowest(stage: Stage) -> str:
    """Say how long the slowest sending took, or the slowest refusal."""
    took = max(float(line.detail.split()[0]) for line in (*stage.record.of("sent"), *stage.record.of("refused")))
    return f"a sender waited {took:.1f} s"


@fault("network swallows everything for 5 s", brokers=BROKERS)
def silent_network(stage: Stage) -> Outcome:
    way = stage.go_through_proxy()
    stage.start_worker()
    with stage.sending(pause=0.04):
        stage.until_done(40)
        stage.fault()
        way.swallows = True
        stage.wait(5)
        way.cut()
        way.open()
    return replace(stage.finish(), note=slowest(stage))


CROWD = 100
UNENDING = f"no end in {PATIENCE_SECONDS} s"


@fault("broker down at enqueue", brokers=BROKERS)
def broker_down_at_enqueue(stage: Stage) -> Outcome:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"refused": free_port(), "silent": silent.getsockname()[1]}
        for identity, port in enumerate(ports.values()):
            stage.variables["CELERY_BROKER_URL"] = stage.broker.url(port)
            stage.send(1, first=identity)
        # The requests of a busy site, which share ten connections.
        stage.send(CROWD, first=len(ports), at_once=CROWD)
    said = {line.identity: line.detail for line in stage.record.of("refused")}
    crowd = [said[identity] for identity in range(len(ports), len(ports) + CROWD) if identity in said]
    waits = [said.get(identity, UNENDING) for identity in range(len(ports))]
    waits.append(max(crowd, key=lambda detail: float(detail.split()[0])) if len(crowd) == CROWD else UNENDING)
    names = (*ports, f"silent, {CROWD} at once")
    return stage.outcome("; ".join(f"{name}: {wait}" for name, wait in zip(names, waits, strict=True)))


@fault("worker started while the broker is down", brokers=BROKERS)
def worker_before_broker(stage: Stage) -> Outcome:
    way = stage.go_through_proxy()
    way.cut()
    stage.start_worker(ready=False)
    stage.wait(6)
    way.open()
    stage.fault()
    stage.send()
    return stage.finish()


@fault("200 transactions, every second one rolled back")
def transactions(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send(how="transaction")
    return replace(stage.finish(), note=after_rollback(stage))


@fault("broker away for 5 s while transactions are committed")
def broker_away_at_commit(stage: Stage) -> Outcome:
    way = stage.go_through_proxy()
    stage.start_worker()
    stage.start_beat()
    with stage.sending(how="transaction"):
        stage.until_done(20)
        stage.fault()
        way.cut()
        stage.wait(5)
        way.open()
    return replace(stage.finish(), note=after_rollback(stage))


def after_rollback(stage: Stage) -> str:
    """Say how many tasks ran although their transaction was rolled back."""
    ran = stage.record.count("missing").keys() & stage.record.count("withdrawn").keys()
    return f"{len(ran)} ran after a rollback"


# Queues that are emptied ----------------------------------------------------


@fault("cache.clear()")
def cleared_cache(stage: Stage) -> Outcome:
    # Bare as in Django's own example, where the cache is the database that Celery's example has its queue in.
    location = stage.broker.url().removesuffix("0") + ("1" if stage.subject.hardened else "0")
    cache = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": location}
    stage.change({"CACHES": {"default": cache}})
    stage.send()
    stage.fault()
    stage.python("-m", "django", "shell", "-c", "from django.core.cache import cache; cache.clear()")
    stage.start_worker()
    return stage.finish()


@fault(
    "Redis out of memory",
    CELERY_BROKER_TRANSPORT_OPTIONS={"visibility_timeout": 25},
    CELERY_TASK_TIME_LIMIT=20,
    CELERY_TASK_SOFT_TIME_LIMIT=18,
)
def full_redis(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.send(SLOTS, seconds=12)
    stage.until_full()
    stage.broker.ask("CONFIG", "SET", "maxmemory", "8mb")
    stage.fault()
    stage.send(TASKS - SLOTS, first=SLOTS, padding=100_000)
    return stage.finish()


@fault("FLUSHALL, durable tasks", DURABLE_TASK_RESEND_SECONDS=15)
def lost_data(stage: Stage) -> Outcome:
    stage.send(task="work_durably")
    stage.start_worker()
    stage.start_beat()
    stage.until_done(40)
    stage.fault()
    stage.broker.ask("FLUSHALL")
    return stage.finish()


# Tasks that take long -------------------------------------------------------

# Bare Celery, too, shall look for what is overdue more often than every hundred seconds.
SHORT_VISIBILITY = {"visibility_timeout": 10, "unacked_restore_interval": 5, "unacked_restore_throttle": 1}


@fault(
    "countdown of 15 s, visibility timeout of 10 s", brokers=BROKERS, CELERY_BROKER_TRANSPORT_OPTIONS=SHORT_VISIBILITY
)
def long_countdown(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.start_beat()
    stage.fault()
    stage.send(options={"countdown": 15})
    return stage.finish()


@fault("task of 14 s, visibility timeout of 10 s", CELERY_BROKER_TRANSPORT_OPTIONS=SHORT_VISIBILITY)
def long_task(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send(SLOTS, seconds=14)
    stage.send(TASKS - SLOTS, first=SLOTS)
    return stage.finish()


# Beat -----------------------------------------------------------------------

DUE_TASKS = 60
# What two beats need to hear of them.
SOON_SECONDS = 8


def two_at_work(stage: Stage) -> Service:
    """Start two beats, one after the other, and give them tasks, each due once, a second apart; return the first."""
    stage.start_worker()
    first, second = stage.start_beat(), stage.start_beat()
    stage.until(lambda: "Starting" in first.program.text and "Starting" in second.program.text, "two beats start")
    stage.send(DUE_TASKS, how="schedule", soon=SOON_SECONDS, pause=1)
    stage.fault()
    return first


@fault("two beats")
def two_beats(stage: Stage) -> Outcome:
    two_at_work(stage)
    return stage.finish()


@fault("kill -9 of beat, another one stands by")
def killed_beat(stage: Stage) -> Outcome:
    beat = two_at_work(stage)
    stage.until_done(8)
    # Between two tasks: in the middle of one it cannot be known whether it is sent, and it is sent again.
    stage.wait(0.4)
    stage.fault()
    beat.kill()
    return stage.finish()
