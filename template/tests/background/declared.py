"""Tasks for the tests, declared as an app declares its own."""

from contextvars import copy_context
from decimal import getcontext, localcontext

from django.urls import reverse, set_script_prefix
from django.utils.timezone import activate as activate_zone
from django.utils.timezone import get_current_timezone_name
from django.utils.translation import activate, get_language

from apps.background import TaskContext, task
from apps.users.models import User

calls = []

# PostgreSQL refuses each of these, and SQLite only the surrogate and the numbers.
WHAT_NO_DATABASE_STORES = {
    "NUL": "a\x00b",
    "surrogate": "\udfff",
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "in a key": {"a\x00b": 1},
}


class Refused(Exception):
    """What tasks raise here."""


@task
def add(x, y=1):
    calls.append((x, y))
    return x + y


@task
async def double(x):
    return x * 2


@task(takes_context=True)
def attempt(context: TaskContext):
    return [context.attempt, context.task_result.id]


@task
def fail():
    raise Refused("It is \x00 refused.")


@task
def return_what_is_no_json():
    return object()


@task
def return_what_no_database_stores(name):
    return [WHAT_NO_DATABASE_STORES[name]]


@task
def fail_with(name):
    raise Refused(WHAT_NO_DATABASE_STORES[name])


def surroundings():
    """What code finds in its thread: a language, a time zone, the beginning of a URL, and how exact decimals are."""
    return [get_language(), get_current_timezone_name(), reverse("web:home"), getcontext().prec]


def change_surroundings():
    """Change all that `surroundings` tells."""
    activate("de")
    activate_zone("Asia/Tokyo")
    set_script_prefix("/elsewhere/")
    getcontext().prec = 3


def check_isolation(run):
    """Check that tasks, which tell what they find and then change it, find what the settings say and leave the rest."""

    def page():
        settled = surroundings()
        change_surroundings()
        of_the_page = surroundings()
        assert all(found == settled for found in run())
        assert surroundings() == of_the_page != settled

    # What this changes itself must not be left to other tests.
    with localcontext():
        copy_context().run(page)


@task
def look_around():
    found = surroundings()
    change_surroundings()
    return found


@task
async def look_around_in_a_coroutine():
    return look_around.call()


@task
def exit_at_once():
    raise SystemExit(3)


@task
def be_interrupted():
    raise KeyboardInterrupt


@task
def fail_in_a_way_that_is_hard_to_store():
    raise Refused(Refused(lambda: None))


@task(priority=50, queue_name="urgent")
def hurry():
    return "hurried"


@task(keep_result=False)
def leave_nothing(x):
    calls.append(x)


@task(takes_context=True, retry_for=(Refused,), max_retries=2)
def succeed_at(context: TaskContext, wanted):
    if context.attempt < wanted:
        raise Refused(f"attempt {context.attempt}")
    return context.attempt


@task(takes_context=True, retry_for=(Refused,), max_retries=None)
def succeed_at_last(context: TaskContext, wanted):
    return succeed_at.call(context, wanted)


@task(durable=True)
def remember(email):
    User.objects.get_or_create(email=email)


@task(time_limit=20)
def be_quick(): ...


def function(): ...


bound_to_another_name = task(function)


def bound_to_its_name(): ...


bound_to_its_name = task(bound_to_its_name)
