"""The faults: each sets the tasks going, does something bad to them, and says what became of them."""

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from tests.faults.account import Outcome
from tests.faults.brokers import bound
from tests.faults.stage import PATIENT_SENDER, QUIET_SECONDS, SLOTS, TASKS, Service, Stage, staged
from tests.faults.subjects import Settings, Subject

Act = Callable[[Stage], Outcome]
# A broker and a pool.
Place = tuple[str, str]
Outcomes = dict[Place, Outcome]
BROKERS = ("redis", "rabbitmq")
POOLS = ("prefork", "threads", "gevent")
REDIS, PREFORK = BROKERS[:1], POOLS[:1]
# Where no task may run twice, Redis takes the project's own time before it delivers again, and beat has time to send.
PATIENT = PATIENT_SENDER | {
    "CELERY_BROKER_TRANSPORT_OPTIONS": PATIENT_SENDER["CELERY_BROKER_TRANSPORT_OPTIONS"] | {"visibility_timeout": 600}
}
# A task that does not hang may stand still for so long and is not taken for one that does.
SHORT_LIMITS = {"CELERY_TASK_TIME_LIMIT": 20, "CELERY_TASK_SOFT_TIME_LIMIT": 18}


@dataclass(frozen=True)
class Fault:
    """A fault: its name in the table, how it happens, where, and with which settings, whoever is the subject.

    `ours` are settings for a subject that is hardened.
    """

    name: str
    act: Act
    brokers: tuple[str, ...]
    pools: tuple[str, ...]
    settings: Settings = field(default_factory=dict)
    ours: Settings = field(default_factory=dict)

    @property
    def places(self) -> list[Place]:
        return [(broker, pool) for broker in self.brokers for pool in self.pools]

    def happen(self, subject: Subject, place: Place, folder: Path, rabbitmq_port: int | None = None) -> Outcome:
        """Let the fault happen to a subject in a folder; return what became of the tasks."""
        broker, pool = place
        settings = {**(self.ours if subject.hardened else {}), **self.settings}
        with staged(subject, broker, pool, folder, settings, rabbitmq_port) as stage:
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
    name: str,
    *,
    brokers: tuple[str, ...] = REDIS,
    pools: tuple[str, ...] = PREFORK,
    ours: Settings | None = None,
    **settings: object,
) -> Callable[[Act], Act]:
    """Enter a function into FAULTS under its own name."""

    def enter(act: Act) -> Act:
        FAULTS[act.__name__] = Fault(name, act, brokers, pools, settings, ours or {})
        return act

    return enter


# Processes that die ---------------------------------------------------------


@fault("no fault", pools=POOLS, ours=PATIENT)
def no_fault(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send()
    return stage.finish()


@fault("kill -9 of a pool child, 3 times", brokers=BROKERS, ours=PATIENT)
def killed_child(stage: Stage) -> Outcome:
    stage.hold(20)
    stage.send()
    stage.start_worker()
    for first, following in ((20, 60), (60, 100), (100, TASKS)):
        stage.until_full(first)
        stage.fault()
        os.kill(stage.busy(first)[-1], signal.SIGKILL)
        stage.hold(following)
    return stage.finish()


def in_the_middle(stage: Stage) -> Service:
    """Have the fault begin when a worker is in the middle of its tasks, which are held there; return the worker."""
    stage.hold(40)
    stage.send()
    worker = stage.start_worker()
    stage.until_full(40)
    stage.fault()
    return worker


@fault("kill -9 of the worker", brokers=BROKERS, pools=POOLS)
def killed_worker(stage: Stage) -> Outcome:
    worker = in_the_middle(stage)
    worker.kill()
    stage.release()
    return stage.finish()


@fault("kill -9 of the worker while it looks for what others held")
def killed_in_a_look(stage: Stage) -> Outcome:
    worker = in_the_middle(stage)
    # The lock of kombu is left behind as that worker would have left it.
    stage.python("-m", "probe.die_looking")
    worker.kill()
    stage.release()
    return stage.finish()


@fault(
    "SIGTERM, 10 s grace, SIGKILL in mid-task",
    brokers=BROKERS,
    pools=POOLS,
    # Longer than anybody waits here: tasks must be given back, not only come back by themselves.
    ours=PATIENT,
)
def stopped_in_mid_task(stage: Stage) -> Outcome:
    # Ours is told less than the grace, by what it takes to end on a busy machine.
    stage.variables["WORKER_STOP_SECONDS"] = "3"
    stage.hold(0, SLOTS)
    stage.send()
    worker = stage.start_worker()
    stage.until_full()
    stage.fault()
    ended = worker.stop(grace_seconds=10)
    stage.release()
    return replace(stage.finish(), note="ended in time" if ended else "killed")


@fault("SIGTERM, 6 s grace: 4 of 24 tasks end in it", brokers=BROKERS, pools=POOLS, ours=PATIENT)
def stopped_while_some_end(stage: Stage) -> Outcome:
    stage.variables["WORKER_STOP_SECONDS"] = "6"
    stage.hold(0, 24)
    stage.send(24)
    worker = stage.start_worker(24)
    stage.until_full(slots=24)
    stage.fault()
    worker.program.process.terminate()
    stage.hold(0, 20)
    stage.until(lambda: worker.starts > 1, "the worker has ended")
    stage.release()
    return stage.finish()


@fault("a task that kills its worker each time", ours=PATIENT)
def poison_task(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send(1, first=TASKS, task="kill_the_worker")
    stage.send(TASKS - 1)
    outcome = stage.finish()
    return replace(outcome, note=f"poison started {len(stage.record.of('poison'))} times")


@fault("a task that no worker knows", ours=PATIENT)
def unknown_task(stage: Stage) -> Outcome:
    stage.send(1, first=TASKS, task="forgotten")
    stage.send(TASKS - 1)
    stage.fault()
    stage.start_worker()
    return stage.finish()


@fault("four failed tasks whose row cannot be written", pools=("prefork", "threads"), ours=PATIENT)
def unwritable_rows(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send(SLOTS, task="fail_without_a_text")
    stage.send(TASKS - SLOTS, first=SLOTS)
    return stage.finish()


@fault("messages that nobody can read", brokers=BROKERS, pools=("prefork", "threads"), ours=PATIENT)
def unreadable_messages(stage: Stage) -> Outcome:
    worker = stage.start_worker()
    stage.fault()
    stage.python("-m", "probe.unreadable")
    stage.send()
    outcome = stage.finish()
    count = len(stage.record.of("unreadable"))
    kept = len(stage.rows("SELECT 1 FROM tasks_failedtask"))
    return replace(outcome, note=f"{kept} of {count} kept; the worker was started {worker.starts} times")


@fault(
    "tasks that hang in every slot",
    ours=SHORT_LIMITS | {"CELERY_BROKER_TRANSPORT_OPTIONS": {"visibility_timeout": 40}},
)
def hung_tasks(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.send(SLOTS, seconds=3600)
    stage.until_full()
    stage.fault()
    stage.send(TASKS - SLOTS, first=SLOTS)
    return stage.finish()


@fault("long tasks in every slot of one of two workers", ours=PATIENT)
def busy_neighbour(stage: Stage) -> Outcome:
    stage.start_worker()
    # As long as it takes to run all others.
    stage.hold(0, SLOTS)
    stage.send(SLOTS)
    stage.until_full()
    # These could be run at once, by the other one.
    stage.send(SLOTS * 3, first=SLOTS)
    stage.start_worker()
    stage.fault()
    stage.send(TASKS - SLOTS * 4, first=SLOTS * 4)
    others = TASKS - SLOTS
    stage.wait_at_most(QUIET_SECONDS, lambda: len(stage.record.count("done")) == others)
    late = others - len(stage.record.count("done"))
    stage.release()
    return replace(stage.finish(), note=f"{late} others waited for them")


@fault("100 tasks that end at once, twice", pools=("gevent",), ours=PATIENT)
def burst(stage: Stage) -> Outcome:
    half = TASKS // 2
    stage.hold()
    stage.send()
    stage.start_worker(half)
    stage.until_full(0, half)
    stage.fault()
    stage.hold(half)
    stage.until_full(half, half)
    stage.release()
    return stage.finish()


# Brokers that go away -------------------------------------------------------


@fault("Redis killed and restarted in mid-task, append-only file")
def restarted_redis(stage: Stage) -> Outcome:
    stage.hold(0, SLOTS)
    stage.hold(TASKS // 2, what="send")
    stage.send(SLOTS)
    stage.start_worker()
    stage.until_full()
    with stage.sending(TASKS - SLOTS, first=SLOTS, pause=0.03):
        stage.until(lambda: len(stage.record.count("sent")) > 2 * SLOTS, "more is sent")
        stage.fault()
        stage.broker.kill()
        stage.release("send")
        stage.wait(1)
        stage.broker.start()
        stage.release()
    return stage.finish()


@fault("kill -9 of one of three nodes", brokers=("cluster",))
def killed_node(stage: Stage) -> Outcome:
    stage.start_worker()
    with half_sent(stage):
        stage.broker.kill_first()
    return replace(stage.finish(), note=slowest(stage))


# Tasks that went on meanwhile are not overdue when the broker is back.
@fault("broker away for 5 s", brokers=BROKERS, ours={"CELERY_BROKER_TRANSPORT_OPTIONS": {"visibility_timeout": 600}})
def broker_away(stage: Stage) -> Outcome:
    return outage(stage, times=1, seconds=5)


@fault("broker flapping: away 1 s of 2, 5 times", brokers=BROKERS)
def broker_flapping(stage: Stage) -> Outcome:
    return outage(stage, times=5, seconds=1)


def outage(stage: Stage, times: int, seconds: float) -> Outcome:
    """Cut the way to the broker so often and so long, while tasks are sent and run."""
    way = stage.go_through_proxy()
    stage.start_worker()
    if stage.subject.enqueues:
        # What cannot be sent waits in the database. Nothing is refused.
        stage.start_beat()
    with half_sent(stage):
        for _ in range(times):
            way.cut()
            stage.release_all()
            stage.wait(seconds)
            way.open()
            stage.wait(1)
    return replace(stage.finish(), note=slowest(stage))


@fault("Redis stalls for 1 s while 200 tasks are sent", ours=PATIENT)
def stalled_redis(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.hold(TASKS // 2, what="send")
    with stage.sending():
        stage.until(lambda: len(stage.record.of("sent")) == TASKS // 2, "half are sent")
        stage.fault()
        with stage.broker.stalled():
            stage.release("send")
            stage.wait(1)
    return replace(stage.finish(), note=slowest(stage))


@fault("failover of Redis, which goes on as a replica", pools=("prefork", "gevent"))
def failed_over(stage: Stage) -> Outcome:
    way = stage.go_through_proxy()
    worker = stage.start_worker()
    with half_sent(stage):
        # Connections to the old one stay; its name leads to the new one.
        stage.broker.fail_over(way)
    return replace(stage.finish(), note=f"the worker was started {worker.starts} times")


@contextmanager
def half_sent(stage: Stage) -> Iterator[None]:
    """Have the fault begin when half of the tasks are sent and a worker is full; both wait for `release_all`."""
    stage.hold(40)
    stage.hold(TASKS // 2, what="send")
    with stage.sending(pause=0.04):
        stage.until_full(40)
        stage.until(lambda: len(stage.record.of("sent") + stage.record.of("refused")) == TASKS // 2, "half are sent")
        stage.fault()
        yield
        stage.release_all()


@fault("broker away, then kill -9 of the worker, 199 parts of a chord")
def broken_chord(stage: Stage) -> Outcome:
    way = stage.go_through_proxy()
    worker = stage.start_worker()
    stage.hold(40)
    # Long enough that the others are not done when those in the slots come back.
    stage.send(how="chord", seconds=0.3)
    stage.until_full(40)
    stage.fault()
    way.cut()
    # Those in the slots end, and nobody tells the broker: they will run again, as soon as the next worker looks.
    stage.hold(40 + SLOTS)
    stage.until_done(40 + SLOTS)
    stage.wait(8)
    worker.kill()
    stage.release()
    way.open()
    return stage.finish()


def slowest(stage: Stage) -> str:
    """Say how long the slowest sending took, or the slowest refusal."""
    took = max(float(line.detail.split()[0]) for line in (*stage.record.of("sent"), *stage.record.of("refused")))
    return f"a sender waited {took:.1f} s"


@fault("network swallows everything for 5 s", brokers=BROKERS)
def silent_network(stage: Stage) -> Outcome:
    way = stage.go_through_proxy()
    stage.start_worker()
    with half_sent(stage):
        way.swallows = True
        stage.release_all()
        stage.wait(5)
        way.cut()
        way.open()
    return replace(stage.finish(), note=slowest(stage))


CROWD = 100
UNENDING_SECONDS = 60
UNENDING = f"no end in {UNENDING_SECONDS} s"


@fault("broker down at enqueue", brokers=BROKERS)
def broker_down_at_enqueue(stage: Stage) -> Outcome:
    with bound() as closed, socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"refused": closed.getsockname()[1], "silent": silent.getsockname()[1]}
        for identity, port in enumerate(ports.values()):
            stage.variables["CELERY_BROKER_URL"] = stage.broker.url(port)
            stage.send(1, patient=False, first=identity, give_up=UNENDING_SECONDS)
        # The requests of a busy site, which share ten connections.
        stage.send(CROWD, patient=False, first=len(ports), at_once=CROWD, give_up=UNENDING_SECONDS)
    said = {line.identity: line.detail for line in stage.record.of("refused")}
    crowd = [said[identity] for identity in range(len(ports), len(ports) + CROWD) if identity in said]
    waits = [said.get(identity, UNENDING) for identity in range(len(ports))]
    waits.append(max(crowd, key=lambda detail: float(detail.split()[0])) if len(crowd) == CROWD else UNENDING)
    names = (*ports, f"silent, {CROWD} at once")
    return stage.outcome("; ".join(f"{name}: {wait}" for name, wait in zip(names, waits, strict=True)))


@fault("worker started while the broker is down", brokers=BROKERS, ours=PATIENT)
def worker_before_broker(stage: Stage) -> Outcome:
    way = stage.go_through_proxy()
    way.cut()
    worker = stage.start_worker(ready=False)
    stage.until(lambda: "Cannot connect" in worker.program.text or worker.starts > 1, "the worker finds no broker")
    stage.wait(6)
    way.open()
    stage.fault()
    stage.send()
    return stage.finish()


@fault("200 transactions, every second one rolled back", ours=PATIENT)
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
    stage.hold(TASKS // 2, what="send")
    with stage.sending(how="transaction"):
        stage.until_done(20)
        stage.fault()
        way.cut()
        stage.release("send")
        stage.wait(5)
        if stage.subject.hardened:
            stage.wait_at_most(QUIET_SECONDS, lambda: stage.rows("SELECT 1 FROM tasks_outgoingtask"))
        way.open()
    return replace(stage.finish(), note=after_rollback(stage))


def after_rollback(stage: Stage) -> str:
    """Say how many tasks ran although their transaction was rolled back."""
    ran = stage.record.count("missing").keys() & stage.record.count("withdrawn").keys()
    return f"{len(ran)} ran after a rollback"


# Queues that are emptied ----------------------------------------------------


@fault("cache.clear()", ours=PATIENT)
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


@fault("Redis out of memory", CELERY_BROKER_TRANSPORT_OPTIONS={"visibility_timeout": 25})
def full_redis(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.hold(0, SLOTS)
    stage.send(SLOTS)
    stage.until_full()
    stage.broker.ask("CONFIG", "SET", "maxmemory", "8mb")
    stage.fault()
    stage.send(TASKS - SLOTS, first=SLOTS, padding=100_000)
    stage.release()
    return stage.finish()


@fault("FLUSHALL, durable tasks", DURABLE_TASK_RESEND_SECONDS=15)
def lost_data(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.start_beat()
    stage.hold(40)
    stage.send(task="work_durably")
    stage.until_full(40)
    stage.fault()
    stage.broker.ask("FLUSHALL")
    stage.release()
    # One that was sent again before, on a busy machine, waits twice as long the next time, or four times.
    return stage.finish(quiet_seconds=3 * QUIET_SECONDS)


# Tasks that take long -------------------------------------------------------

# Bare Celery, too, shall look for what is overdue more often than every hundred seconds.
SHORT_VISIBILITY = {"visibility_timeout": 40, "unacked_restore_interval": 5, "unacked_restore_throttle": 1}


@fault(
    "countdown of 50 s, visibility timeout of 40 s", brokers=BROKERS, CELERY_BROKER_TRANSPORT_OPTIONS=SHORT_VISIBILITY
)
def long_countdown(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.start_beat()
    stage.fault()
    stage.send(options={"countdown": 50})
    return stage.finish(quiet_seconds=2 * QUIET_SECONDS)


@fault(
    "task of 50 s, visibility timeout of 40 s",
    ours=SHORT_LIMITS,
    CELERY_BROKER_TRANSPORT_OPTIONS=SHORT_VISIBILITY,
)
def long_task(stage: Stage) -> Outcome:
    stage.start_worker()
    stage.fault()
    stage.send(SLOTS, seconds=50)
    stage.send(TASKS - SLOTS, first=SLOTS)
    return stage.finish(quiet_seconds=2 * QUIET_SECONDS)


# Beat -----------------------------------------------------------------------

DUE_TASKS = 60
# What two beats need to hear of them.
SOON_SECONDS = 8


def two_at_work(stage: Stage) -> list[Service]:
    """Start two beats and give them tasks, each due once, a second apart; return the beats."""
    stage.start_worker()
    beats = [stage.start_beat(), stage.start_beat()]
    stage.until(lambda: all("Starting" in beat.program.text for beat in beats), "two beats start")
    stage.send(DUE_TASKS, how="schedule", soon=SOON_SECONDS, pause=1)
    stage.fault()
    return beats


@fault("two beats", ours=PATIENT)
def two_beats(stage: Stage) -> Outcome:
    two_at_work(stage)
    return stage.finish()


@fault("kill -9 of beat, another one stands by", ours=PATIENT)
def killed_beat(stage: Stage) -> Outcome:
    beats = two_at_work(stage)
    stage.until_done(8)
    # The one that sends; of bare ones, which both do, the first.
    beat = next((each for each in beats if "holds the lease" in each.program.text), beats[0])
    stop_between_tasks(stage, beat)
    stage.fault()
    beat.kill()
    return stage.finish()


def stop_between_tasks(stage: Stage, beat: Service) -> None:
    """Stop a beat where all that it has sent is written down: in the middle of a task nobody knows whether it is sent.

    Bare Celery writes it down minutes later, so after some tries it is stopped anyhow.
    """
    process = psutil.Process(beat.program.process.pid)
    for _ in range(20):
        process.suspend()
        stage.until(lambda: process.status() == psutil.STATUS_STOPPED, "beat stands still")
        # Twice, because the first answer may be older than a message on its way.
        stage.until(lambda: not (stage.broker.held() or stage.broker.held()), "what it has sent is done")
        rows = stage.rows(
            "SELECT args FROM django_celery_beat_periodictask "
            "WHERE name LIKE 'probe %' AND enabled AND total_run_count = 0"
        )
        unwritten = {int(re.search(r"\d+", arguments)[0]) for (arguments,) in rows}
        if not unwritten & stage.record.count("done").keys():
            return
        process.resume()
        stage.wait(0.4)
    process.suspend()
