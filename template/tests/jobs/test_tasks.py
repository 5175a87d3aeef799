"""A job is done once, stops when it is told to, and never stays under way for ever."""

import pytest

pytest.importorskip("celery")

from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from apps.jobs import tasks
from apps.jobs.models import LONGEST_SILENCE, LONGEST_WAIT, Job, State
from apps.users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture
def job():
    return Job.objects.create(owner=User.objects.create_user("jane@example.com"), total=4)


@pytest.fixture
def each_second(monkeypatch):
    """Return a list; what is put there is called after each second of a job, and no second takes time."""
    calls = []
    monkeypatch.setattr(tasks.time, "sleep", lambda seconds: [call() for call in calls])
    return calls


@pytest.fixture
def work(each_second, job):
    """Return a function that delivers the message of the job's first attempt, as a worker receives it."""

    def deliver(attempt=1):
        tasks.run.call(str(job.pk), attempt)
        job.refresh_from_db()

    return deliver


def clean_up(job, **changes):
    """Run the clean-up after these changes to the job, and read what it has become."""
    Job.objects.filter(pk=job.pk).update(**changes)
    tasks.close_stalled_jobs.call()
    job.refresh_from_db()


def test_a_job_writes_down_each_second(job, work, each_second):
    seen = []
    each_second.append(lambda: seen.append(Job.objects.values_list("state", "current").get()))
    work()
    assert seen == [(State.RUNNING, 0), (State.RUNNING, 1), (State.RUNNING, 2), (State.RUNNING, 3)]
    assert (job.state, job.current) == (State.DONE, 4)


def test_a_message_that_comes_twice_does_nothing(job, work, each_second):
    work()
    each_second.append(pytest.fail)
    work()
    assert job.state == State.DONE


def test_a_message_that_comes_while_the_job_runs_does_nothing(job, work, each_second):
    each_second.append(lambda: each_second.clear() or tasks.run.call(str(job.pk), 1))
    work()
    assert (job.state, job.current) == (State.DONE, 4)


def test_a_job_that_is_gone_is_no_error(job, work):
    pk = str(job.pk)
    job.delete()
    tasks.run.call(pk, 1)


def test_a_job_that_waits_is_cancelled_at_once(job, work, each_second):
    assert job.cancel()
    each_second.append(pytest.fail)
    work()
    assert job.state == State.CANCELLED


def test_a_job_that_runs_stops_in_the_middle(job, work, each_second):
    each_second.append(lambda: [running.cancel() for running in Job.objects.filter(current=2)])
    work()
    assert (job.state, job.current) == (State.CANCELLED, 2)


def test_a_job_that_fails_says_so_and_leaves_the_reason_to_the_log(job, work):
    Job.objects.update(fail_on_purpose=True)
    with pytest.raises(tasks.FailedOnPurpose):
        work()
    job.refresh_from_db()
    assert (job.state, job.current) == (State.FAILED, 2)
    assert "purpose" not in job.message and "log" in job.message


def test_a_job_that_fails_while_it_is_cancelled_is_cancelled(job, work, each_second):
    Job.objects.update(fail_on_purpose=True, total=1)
    each_second.append(lambda: Job.objects.get().cancel())
    with pytest.raises(tasks.FailedOnPurpose):
        work()
    job.refresh_from_db()
    assert (job.state, job.message) == (State.CANCELLED, "")


def test_only_what_has_failed_is_retried(job, work):
    assert not job.retry()
    work()
    assert not job.retry()
    Job.objects.update(state=State.FAILED, fail_on_purpose=True)
    assert job.retry()
    work(attempt=2)
    assert job.state == State.DONE


def test_a_worker_that_was_given_up_stops_when_it_comes_back(job, work, each_second):
    def give_up_and_retry():
        each_second.clear()
        stale = Job.objects.get()
        assert stale.fail("given up") and stale.retry()

    each_second.append(give_up_and_retry)
    work()
    assert (job.state, job.attempt, job.current) == (State.QUEUED, 2, 0)


@pytest.mark.parametrize(
    ("state", "silence"), [(State.RUNNING, LONGEST_SILENCE), (State.QUEUED, LONGEST_WAIT)], ids=["running", "queued"]
)
def test_a_silent_job_is_closed_and_can_be_retried(job, state, silence):
    clean_up(job, state=state, updated_at=timezone.now() - silence + timedelta(seconds=30))
    assert job.state == state
    clean_up(job, updated_at=timezone.now() - silence - timedelta(seconds=30))
    assert job.state == State.FAILED and "given up" in job.message
    assert job.retry()


def test_a_job_that_moves_meanwhile_is_not_closed(job, django_assert_num_queries):
    with django_assert_num_queries(2) as queries:
        tasks.close_stalled_jobs.call()
    # Nothing is read first that could have changed when it is closed.
    assert all(query["sql"].startswith("UPDATE") for query in queries)


def test_a_silent_job_that_was_to_be_cancelled_is_cancelled(job):
    clean_up(job, state=State.RUNNING, cancel_requested=True, updated_at=timezone.now() - timedelta(hours=1))
    assert (job.state, job.message) == (State.CANCELLED, "")


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.CANCELLED])
def test_a_job_at_its_end_is_left_alone(job, state):
    clean_up(job, state=state, updated_at=timezone.now() - timedelta(days=9))
    assert (job.state, job.message) == (state, "")


def test_the_clean_up_is_on_the_schedule():
    entry = settings.SCHEDULED_TASKS["close-stalled-jobs"]
    assert entry["task"] == tasks.close_stalled_jobs.module_path
