"""What is put together of tasks comes to its end and has a result, and so does what a task is replaced by."""

from contextlib import nullcontext, suppress

import pytest

pytest.importorskip("celery")

from celery import chain, chord, current_app, group, shared_task, signature
from celery.app.trace import trace_task
from celery.canvas import xmap
from celery.exceptions import ChordError, Ignore
from celery.utils.functional import maybe_list
from django.contrib.auth.models import Group
from django.db import transaction
from kombu.utils.json import dumps, loads
from kombu.utils.uuid import uuid

from apps.tasks.models import OutgoingTask
from apps.tasks.sending.outbox import send_waiting

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # Of Celery, about what it does itself with the error callbacks of a task that a chord replaces.
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]

# How Celery names in a message what it calls otherwise in options.
HEADERS = {"callbacks": "link", "errbacks": "link_error", "group": "group_id"}
OPTIONS = ("chain", "chord", "group_index", "ignore_result", "replaced_task_nesting", "root_id")


@shared_task(name="tests.canvas.add", ignore_result=False)
def add(x, y):
    return x + y


@shared_task(name="tests.canvas.total", ignore_result=False)
def total(numbers):
    return sum(numbers)


@shared_task(name="tests.canvas.pass_on")
def pass_on(value):
    """Return the value, and keep no result."""
    return value


@shared_task(name="tests.canvas.fail")
def fail(*arguments):
    raise ValueError("no luck")


@shared_task(name="tests.canvas.write_down")
def write_down(value):
    """Leave a trace in the database."""
    Group.objects.create(name=str(value))


@shared_task(name="tests.canvas.write_down_failure")
def write_down_failure(request, error, traceback):
    Group.objects.create(name=str(error)[-150:])


@shared_task(name="tests.canvas.step_aside", bind=True)
def step_aside(self, other, in_transaction=True):
    """Be replaced, by a signature as it comes in a message."""
    with transaction.atomic() if in_transaction else nullcontext():
        Group.objects.get_or_create(name="rolled back")
        return self.replace(signature(other))


@shared_task(name="tests.canvas.step_aside_unseen", bind=True)
def step_aside_unseen(self, other):
    with suppress(Exception):
        self.replace(signature(other))


@shared_task(name="tests.canvas.step_aside_and_fail", bind=True)
def step_aside_and_fail(self, other):
    try:
        self.replace(signature(other))
    except Ignore:
        raise ValueError("no luck") from None


@shared_task(name="tests.canvas.step_aside_durably", bind=True, durable=True)
def step_aside_durably(self, other):
    step_aside.run.__func__(self, other)


@shared_task(name="tests.canvas.stay", durable=True)
def stay(): ...


@shared_task(name="tests.canvas.count_down", bind=True, ignore_result=False)
def count_down(self, number):
    """Return the arguments that the calls within calls see, and the last call's before and after."""
    seen = [list(self.request.args)]
    return seen + (count_down(number - 1) if number else []) + [list(self.request.args)]


@pytest.fixture
def work(broker):
    """Return a function that runs what was sent, and what this sends, as a worker does."""

    def work():
        while broker.messages:
            message = broker.messages.pop(0)
            task_id = message.task_id or uuid()
            options = loads(dumps({name: message.options.get(name) for name in (*HEADERS.values(), *OPTIONS)}))
            options |= {name: maybe_list(options[name]) for name in ("link", "link_error")}
            request = {"id": task_id, "delivery_info": {}} | (message.options.get("headers") or {})
            request |= {name: options[name] for name in OPTIONS if options[name] is not None}
            request |= {name: options[option] for name, option in HEADERS.items() if options[option] is not None}
            args, kwargs = loads(dumps((message.args or (), message.kwargs or {})))
            trace_task(current_app.tasks[message.name], task_id, args, kwargs, request, app=current_app)

    return work


def written():
    return [*Group.objects.order_by("name").values_list("name", flat=True)]


# Results that are read --------------------------------------------------------

REPEATED = {
    "map": (lambda: total.map([[1, 2], [3]]), [3, 3]),
    "starmap": (lambda: add.starmap([(1, 2), (3, 4)]), [3, 7]),
    "chunks": (lambda: add.chunks([(1, 2), (3, 4)], 1), [[3], [7]]),
    "in a chain": (lambda: chain(pass_on.si(0), add.starmap([(1, 2)])), [3]),
    "by its name": (lambda: xmap(total.name, [[1, 2]]), [3]),
    "as the signature says": (lambda: xmap(pass_on.s().set(ignore_result=False), [1, 2]), [1, 2]),
}


@pytest.mark.parametrize(("make", "expected"), REPEATED.values(), ids=REPEATED)
def test_what_calls_a_task_for_many_arguments_keeps_its_results(work, make, expected):
    result = make().delay()
    work()
    assert result.get(timeout=0) == expected


def test_what_calls_a_task_that_keeps_none_keeps_none(broker):
    pass_on.map([1, 2]).delay()
    pass_on.starmap([(1,)]).apply_async()
    assert [message.options["ignore_result"] for message in broker.messages] == [True, True]


def test_a_call_that_wants_no_result_has_none(broker):
    add.starmap([(1, 2)]).apply_async(ignore_result=True)
    assert broker.messages[0].options["ignore_result"]


def test_one_that_fails_fails_what_follows_it_in_a_chain(work):
    result = chain(fail.s(), pass_on.s(), add.s(1)).delay()
    work()
    with pytest.raises(ValueError, match="no luck"):
        result.get(timeout=0)


def test_a_chain_whose_end_keeps_nothing_keeps_nothing(broker):
    chain(pass_on.s(1), pass_on.s()).delay()
    assert broker.messages[0].options["ignore_result"]


def test_a_chord_whose_part_is_a_chain_that_fails_has_failed(work):
    result = chord([chain(fail.s(), pass_on.s()), pass_on.s(1)])(total.s())
    work()
    with pytest.raises(ChordError, match="no luck"):
        current_app.AsyncResult(result.id).get(timeout=0)


def test_a_chain_of_groups_has_a_result(work):
    result = chain(group(pass_on.s(1), pass_on.s(2)), total.s(), group(add.s(1), add.s(2)), total.s()).delay()
    work()
    assert result.get(timeout=0) == 9


def test_of_what_is_not_kept_nobody_waits_for_a_result_sent_on_commit():
    with transaction.atomic():
        result = pass_on.delay(1)
    assert result.get(timeout=0) is None


# What a task is replaced by ---------------------------------------------------

# Each returns 3, or a list of that.
OTHERS = {
    "a task": (lambda: pass_on.s(3), 3),
    "a chain": (lambda: pass_on.s(1) | add.s(2), 3),
    "a group": (lambda: group(add.s(1, 2), pass_on.s(3)), [3, 3]),
    "a chain with a group": (lambda: pass_on.s(2) | group(add.s(1), add.s(1)), [3, 3]),
    "a chord": (lambda: chord([pass_on.s(1), pass_on.s(2)], total.s()), 3),
    "a chord with a chain": (lambda: chord([pass_on.s(1) | add.s(1), pass_on.s(1)], total.s() | pass_on.s()), 3),
    "a repetition": (lambda: add.starmap([(1, 2)]), [3]),
    "one that is replaced": (lambda: step_aside.si(group(add.s(1, 2), pass_on.s(3))), [3, 3]),
}


@pytest.fixture(params=OTHERS)
def other(request):
    """Return a signature, and its result."""
    make, expected = OTHERS[request.param]
    return make(), expected


@pytest.mark.parametrize("in_transaction", [True, False])
def test_it_has_the_result_of_the_one_that_it_replaces(work, other, in_transaction):
    result = step_aside.apply_async((other[0], in_transaction), ignore_result=False)
    work()
    assert result.get(timeout=0) == other[1]
    assert ("rolled back" in written()) != in_transaction


def test_it_keeps_none_for_one_that_keeps_none(broker, work):
    result = step_aside.delay(group(pass_on.s(1), pass_on.s(2)))
    work()
    assert current_app.AsyncResult(result.id).state == "PENDING"


def test_what_is_linked_and_what_follows_runs_after_it(work, other):
    last = step_aside.s(other[0]).set(link=write_down.si("linked")) | write_down.si("next") | add.si(2, 2)
    result = last.apply_async()
    work()
    assert written() == ["linked", "next"]
    assert result.get(timeout=0) == 4


def test_what_follows_gets_what_it_returns(work):
    result = chain(step_aside.s(group(add.s(1, 2), pass_on.s(3))), total.s(), add.s(1)).delay()
    work()
    assert result.get(timeout=0) == 7


@pytest.mark.parametrize("make", [lambda: fail.s(), lambda: fail.s() | add.s(1), lambda: group(fail.s(), add.s(1, 2))])
def test_what_is_linked_to_its_failure_runs(work, make):
    step_aside.apply_async((make(),), link_error=write_down_failure.s())
    work()
    assert len(written()) == 1 and "no luck" in written()[0]


def test_it_takes_the_place_of_a_part_of_a_chord(work):
    result = chord([step_aside.s(group(add.s(1, 2), pass_on.s(3)) | total.s()), pass_on.s(1)])(total.s())
    work()
    assert result.get(timeout=0) == 7


def test_a_durable_one_is_written_down_and_a_durable_one_that_it_replaces_is_done(broker, work):
    step_aside_durably.delay(stay.si())
    [message] = broker.messages
    assert OutgoingTask.objects.get().name == step_aside_durably.name
    broker.away = True
    work()
    assert OutgoingTask.objects.get().name == stay.name and OutgoingTask.objects.get().durable
    assert OutgoingTask.objects.get().task_id == message.task_id


def test_while_the_broker_is_away_it_waits_and_only_one_message_is_tried(broker, work):
    result = step_aside.apply_async((group(add.s(1, 2), pass_on.s(3)),), ignore_result=False)
    broker.away, broker.attempts = True, 0
    work()
    assert broker.attempts == 1 and OutgoingTask.objects.count() == 2
    broker.away = False
    send_waiting()
    work()
    assert result.get(timeout=0) == [3, 3]


def test_one_that_is_due_late_waits_in_the_database(broker, work, ten_minutes):
    step_aside.delay(pass_on.s(1).set(countdown=3600))
    work()
    assert OutgoingTask.objects.get().name == pass_on.name


def test_one_that_cannot_be_sent_fails_the_task_and_nothing_is_sent(broker, work, ten_minutes):
    too_long = pass_on.s(1).set(time_limit=600)
    step_aside.apply_async((group(pass_on.s(1), too_long),), link_error=write_down_failure.s())
    work()
    assert broker.attempts == 1 and "raise visibility_timeout" in written()[0]


def test_whoever_catches_the_exception_has_been_replaced_all_the_same(work):
    step_aside_unseen.delay(write_down.si("replaced"))
    work()
    assert written() == ["replaced"]


def test_whoever_fails_instead_has_not_been_replaced(work):
    step_aside_and_fail.delay(write_down.si("replaced"))
    work()
    assert written() == []


def test_where_tasks_are_eager_it_returns_what_the_other_does(monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    assert step_aside.delay(pass_on.s(3)).get() == 3


# A task within itself ---------------------------------------------------------


def test_a_task_that_calls_itself_sees_the_arguments_of_each_call(work):
    result = count_down.delay(2)
    work()
    assert result.get(timeout=0) == [[2], [1], [0], [0], [1], [2]]


def test_a_task_that_is_called_directly_sees_its_arguments():
    assert count_down(1) == [[1], [0], [0], [1]]
