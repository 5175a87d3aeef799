"""The page of my jobs. Every view finds only the jobs of the signed-in user, as if no others existed."""

from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from django_htmx.http import HttpResponseClientRefresh, retarget, trigger_client_event

from .forms import StartForm
from .models import Job, use_allowance
from .tasks import run

SHOWN = 30


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def jobs(request: HttpRequest) -> HttpResponse:
    """Show my latest jobs, or start one."""
    form = StartForm(request.POST if request.method == "POST" else None, instance=Job(owner=request.user))
    if form.is_valid():
        try:
            with transaction.atomic():
                use_allowance(request.user.pk)
                _enqueue(form.save())
        except ValidationError as refusal:
            form.add_error("total", refusal)
        else:
            return redirect("jobs:list")
    mine = list(Job.objects.filter(owner=request.user)[:SHOWN])
    context = {"form": form, "jobs": mine, "any_active": any(job.is_active for job in mine)}
    return render(request, "jobs/list.html", context, status=422 if form.is_bound else 200)


@never_cache
@require_safe
def show(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Answer with the progress of a job. Its page asks every second until the job has ended.

    While only the progress changes, only the progress is replaced, so that no button vanishes under a finger.
    """
    job = _own_job(request, job_id)
    if not request.htmx:
        return redirect("jobs:list")
    if request.GET.get("shape") == job.shape:
        return render(request, "jobs/progress.html", {"job": job})
    return retarget(render(request, "jobs/row.html", {"job": job, "tell": not job.is_active}), f"#job-{job.pk}")


@require_POST
def cancel(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Stop a job that is waiting or running.

    The answer is an event that makes the page ask how far the job is. A new row would remove the element that asks
    every second while an answer may be on its way to it.
    """
    _own_job(request, job_id).cancel()
    if not request.htmx:
        return redirect("jobs:list")
    return trigger_client_event(HttpResponse(status=204), "job-changed")


@require_POST
def retry(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Run a failed job again."""
    job = _own_job(request, job_id)
    try:
        with transaction.atomic():
            use_allowance(request.user.pk)
            if job.retry():
                _enqueue(job)
    except ValidationError as refusal:
        messages.error(request, refusal.message)
        return HttpResponseClientRefresh() if request.htmx else redirect("jobs:list")
    if not request.htmx:
        return redirect("jobs:list")
    return render(request, "jobs/row.html", {"job": _own_job(request, job_id)})


def _enqueue(job: Job) -> None:
    run.enqueue(str(job.pk), job.attempt)


def _own_job(request: HttpRequest, job_id: UUID) -> Job:
    return get_object_or_404(Job, pk=job_id, owner=request.user)
