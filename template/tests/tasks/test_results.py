"""The body of a chord is sent once, when each part has a result, however often that part ran."""

import pytest

pytest.importorskip("celery")

from celery import chord, current_app, group, shared_task
from celery.app.trace import trace_task
from django_celery_results.models import ChordCounter, TaskResult

from apps.tasks.sending import results

pytestmark = pytest.mark.django_db(transaction=True)


class Died(BaseException):
    """Stands for the death of a process."""


@shared_task(name="tests.results.weigh")
def weigh(number):
    if number < 0:
        raise ValueError(number)
    return number


@shared_task(name="tests.results.add_up")
def add_up(numbers): ...


@shared_task(name="tests.results.refuse", ignore_result=False)
def refuse(character):
    raise ValueError(f"It is {character} refused.")


@pytest.fixture
def sent(monkeypatch):
    """Return the list of what is handed to the broker: the name of the task, its arguments and its options."""
    calls = []
    monkeypatch.setattr(
        "celery.app.base.Celery.send_task",
        lambda app, name, args=None, kwargs=None, **options: calls.append((name, args, options)),
    )
    return calls


@pytest.fixture
def parts(sent):
    """Return the parts of a chord that was sent, as a worker gets them."""
    chord([weigh.s(1), weigh.s(2), weigh.s(3)])(add_up.s())
    taken = [*sent]
    sent.clear()
    return taken


@pytest.mark.parametrize("character", ["\x00", "\ud800"], ids=ascii)
def test_an_error_is_told_whatever_its_text_contains(character):
    trace_task(refuse, "error", [character], {}, {"id": "error", "delivery_info": {}}, app=current_app)
    result = TaskResult.objects.get(task_id="error")
    assert result.status == "FAILURE" and '"exc_type": "ValueError"' in result.result
    assert "refuse(character)" not in result.traceback and "refused." in result.traceback


def end(part, **request):
    """Run a part as a worker does, which may be told that its message came back."""
    _, args, options = part
    request = {
        "id": options["task_id"],
        "group": options["group_id"],
        "chord": options["chord"],
        "ignore_result": options["ignore_result"],
        "delivery_info": {},
    } | request
    trace_task(weigh, options["task_id"], args, {}, request, app=current_app)


def bodies(sent):
    return [sorted(args[0]) for name, args, _ in sent if name == add_up.name]


def test_it_is_sent_when_the_last_part_ends(parts, sent):
    for part in parts[:2]:
        end(part)
    assert bodies(sent) == []
    end(parts[2])
    assert bodies(sent) == [[1, 2, 3]]
    assert not ChordCounter.objects.exists()


@pytest.mark.parametrize("order", ["00012", "01012", "01112", "012012"])
def test_a_part_that_ends_again_neither_hastens_nor_prevents_nor_repeats_it(parts, sent, order):
    for number in order:
        end(parts[int(number)], delivery_info={"redelivered": True})
    assert bodies(sent) == [[1, 2, 3]]


@pytest.mark.parametrize(
    "sign", [{"delivery_info": {"redelivered": True}}, {"lost_workers": 1}], ids=["worker", "child"]
)
def test_it_is_sent_by_the_last_part_come_back_if_its_process_died_before(parts, sent, monkeypatch, sign):
    def die(**_):
        raise Died

    for part in parts[:2]:
        end(part)
    with monkeypatch.context() as context:
        context.setattr(results, "trigger_callback", die)
        with pytest.raises(Died):
            end(parts[2])
    end(parts[0])
    assert bodies(sent) == []
    end(parts[2], **sign)
    assert bodies(sent) == [[1, 2, 3]]


def test_a_part_that_fails_fails_the_chord(sent):
    chord([weigh.s(-1), weigh.s(2)])(add_up.s())
    parts = [*sent]
    for part in parts:
        end(part)
    assert bodies(sent) == []
    assert not ChordCounter.objects.exists()


def test_a_group_within_is_waited_for(sent):
    chord([weigh.s(1), group(weigh.s(2), weigh.s(3))])(add_up.s())
    for part in [*sent]:
        assert bodies(sent) == []
        end(part)
    assert bodies(sent) == [[1, 2, 3]]
