"""The page of my jobs: starting, watching, cancelling and retrying, and nobody else's."""

import pytest

pytest.importorskip("celery")

import json
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.background.immediate import AfterCommitBackend
from apps.jobs import models, tasks
from apps.jobs.models import Job, State
from apps.users.models import User

HTMX = {"HX-Request": "true"}
ACTIONS = ["jobs:show", "jobs:cancel", "jobs:retry"]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def jane():
    return User.objects.create_user("jane@example.com")


@pytest.fixture
def browser(client, jane):
    client.force_login(jane)
    return client


@pytest.fixture
def sent(monkeypatch):
    """Return the arguments of the tasks that were enqueued, none of which runs."""
    arguments = []
    monkeypatch.setattr(AfterCommitBackend, "enqueue", lambda self, task, args, kwargs: arguments.append(args))
    return arguments


@pytest.fixture
def job(jane):
    return lambda **fields: Job.objects.create(owner=jane, **fields)


def page(browser):
    return browser.get(reverse("jobs:list")).content.decode()


def act(browser, name, job, **options):
    """Do to the job what the URL of this name does, and return the answer."""
    method = browser.get if name == "jobs:show" else browser.post
    return method(reverse(name, args=[job.pk]), **options)


def test_the_page_is_in_the_menu_of_users(browser):
    home = browser.get(reverse("web:home")).content.decode()
    assert f'href="{reverse("jobs:list")}"' in home


def test_a_job_is_started_and_sent(browser, jane, sent):
    answer = browser.post(reverse("jobs:list"), {"total": 7})
    job = Job.objects.get()
    assert answer.url == reverse("jobs:list")
    assert (job.owner, job.state, job.total, sent) == (jane, State.QUEUED, 7, [(str(job.pk), 1)])
    assert "7-second job" in page(browser)


@pytest.mark.parametrize("total", ["", "0", "121", "ten"])
def test_bad_lengths_are_told(browser, sent, total):
    answer = browser.post(reverse("jobs:list"), {"total": total})
    assert (answer.status_code, sent) == (422, [])
    assert "errorlist" in answer.content.decode()


def test_a_person_cannot_keep_all_workers_busy(browser, job, sent):
    for state in [State.QUEUED, State.RUNNING, State.QUEUED, State.DONE]:
        job(state=state)
    failed = job(state=State.FAILED)
    answer = browser.post(reverse("jobs:list"), {"total": 7})
    assert (answer.status_code, sent) == (422, []) and "3 of your jobs wait or run" in answer.content.decode()
    act(browser, "jobs:retry", failed)
    assert sent == [] and "3 of your jobs wait or run" in page(browser)
    act(browser, "jobs:cancel", Job.objects.filter(state=State.QUEUED).first())
    assert browser.post(reverse("jobs:list"), {"total": 7}).status_code == 302
    assert models.Allowance.objects.get().started == 1


def test_starting_and_cancelling_in_a_loop_ends_with_the_hour(browser, sent, monkeypatch):
    monkeypatch.setattr(models, "JOBS_PER_HOUR", 5)
    for _ in range(8):
        browser.post(reverse("jobs:list"), {"total": 7})
        act(browser, "jobs:cancel", Job.objects.first())
    assert len(sent) == 5
    models.Allowance.objects.update(hour_began_at=timezone.now() - timedelta(hours=1))
    assert browser.post(reverse("jobs:list"), {"total": 7}).status_code == 302


def test_without_a_worker_a_job_is_done_where_it_is_enqueued(browser, monkeypatch):
    monkeypatch.setattr(tasks, "STEP_SECONDS", 0)
    browser.post(reverse("jobs:list"), {"total": 3, "fail_on_purpose": "on"})
    assert Job.objects.get().state == State.FAILED
    act(browser, "jobs:retry", Job.objects.get())
    assert (Job.objects.get().state, Job.objects.get().current) == (State.DONE, 3)


# Watching -------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_a_page_asks_every_second_while_the_job_changes(browser, job, state):
    active = job(state=state).is_active
    assert ('hx-trigger="every 1s, ' in page(browser)) == active


def test_only_the_progress_is_replaced_while_only_the_progress_changes(browser, job):
    running = job(state=State.RUNNING, current=2)
    answer = act(browser, "jobs:show", running, data={"shape": "running"}, headers=HTMX)
    text = answer.content.decode()
    assert 'value="2"' in text and "every 1s" in text and "<button" not in text
    assert "HX-Retarget" not in answer.headers


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.CANCELLED])
def test_at_its_end_the_row_is_replaced_and_asks_no_more(browser, job, state):
    ended = job(state=state, message="Because.")
    answer = act(browser, "jobs:show", ended, data={"shape": "running"}, headers=HTMX)
    text = answer.content.decode()
    assert answer.headers["HX-Retarget"] == f"#job-{ended.pk}"
    assert "hx-trigger" not in text and 'id="job-news"' in text
    assert ("Retry" in text) == (state == State.FAILED)


def test_a_job_that_no_worker_takes_says_so(browser, job, monkeypatch):
    waiting = job()
    monkeypatch.setattr(models, "timezone", SimpleNamespace(now=lambda: waiting.updated_at + timedelta(seconds=9)))
    assert "Waiting for a worker" in page(browser)
    monkeypatch.setattr(models, "timezone", SimpleNamespace(now=lambda: waiting.updated_at + timedelta(seconds=11)))
    assert "No worker has taken it yet" in page(browser)


def test_the_bar_has_a_name(browser, job):
    pk = job().pk
    assert f'aria-labelledby="job-{pk}-title"' in page(browser) and f'id="job-{pk}-title"' in page(browser)


# Cancelling and retrying ----------------------------------------------------


def test_a_running_job_is_asked_to_stop(browser, job):
    running = job(state=State.RUNNING)
    answer = act(browser, "jobs:cancel", running, headers=HTMX)
    assert Job.objects.get().cancel_requested
    [event] = json.loads(answer.headers["HX-Trigger"])
    assert (answer.status_code, answer.content) == (204, b"") and f"{event} from:closest .job" in page(browser)
    text = act(browser, "jobs:show", running, data={"shape": "running"}, headers=HTMX).content.decode()
    assert "Cancelling" in text and "every 1s" in text and "<button" not in text


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.CANCELLED])
def test_there_is_nothing_to_cancel_at_the_end(browser, job, state):
    act(browser, "jobs:cancel", job(state=state))
    assert (Job.objects.get().state, Job.objects.get().cancel_requested) == (state, False)


def test_a_failed_job_is_sent_again(browser, job, sent):
    failed = job(state=State.FAILED, message="Because.", current=2, fail_on_purpose=True)
    text = act(browser, "jobs:retry", failed, headers=HTMX).content.decode()
    assert sent == [(str(failed.pk), 2)]
    assert "Queued" in text and "Because." not in text


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.DONE, State.CANCELLED])
def test_nothing_else_is_sent_again(browser, job, sent, state):
    act(browser, "jobs:retry", job(state=state))
    assert (sent, Job.objects.get().state) == ([], state)


@pytest.mark.parametrize("name", ACTIONS)
def test_without_javascript_every_answer_is_the_page(browser, job, name):
    assert act(browser, name, job(state=State.RUNNING)).url == reverse("jobs:list")


# Who sees what --------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIONS)
def test_the_jobs_of_others_do_not_exist(client, job, sent, name):
    theirs = job(state=State.FAILED, total=77)
    client.force_login(User.objects.create_user("john@example.com"))
    assert act(client, name, theirs, headers=HTMX).status_code == 404
    assert act(client, name, Job(pk=uuid4()), headers=HTMX).status_code == 404
    assert Job.objects.get().state == State.FAILED and not sent
    assert "77-second job" not in page(client)


@pytest.mark.parametrize("name", ACTIONS)
def test_visitors_are_sent_to_the_login(client, job, name):
    answer = act(client, name, job(state=State.FAILED))
    assert answer.url.startswith(reverse("account_login"))
    assert client.get(reverse("jobs:list")).url.startswith(reverse("account_login"))
    assert Job.objects.get().state == State.FAILED


@pytest.mark.parametrize("name", ["jobs:cancel", "jobs:retry"])
def test_a_form_without_its_token_is_refused(jane, job, name):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(jane)
    assert act(strict, name, job(state=State.FAILED)).status_code == 403
    assert strict.post(reverse("jobs:list"), {"total": 7}).status_code == 403
    assert Job.objects.get().state == State.FAILED


@pytest.mark.parametrize("name", ["jobs:cancel", "jobs:retry"])
def test_following_a_link_changes_nothing(browser, job, name):
    assert browser.get(reverse(name, args=[job().pk])).status_code == 405


def test_the_admin_shows_jobs_and_changes_none(client, job):
    client.force_login(User.objects.create_superuser("boss@example.com"))
    shown = job()
    assert str(shown.pk) in client.get(reverse("admin:jobs_job_changelist")).content.decode()
    assert client.get(reverse("admin:jobs_job_add")).status_code == 403
    change = reverse("admin:jobs_job_change", args=[shown.pk])
    assert (client.get(change).status_code, client.post(change, {"total": 9}).status_code) == (200, 403)
