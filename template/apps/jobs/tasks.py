"""What workers do for jobs."""

import logging
import time

from apps.background import task

from .models import FAILURE_MESSAGE, Job

STEP_SECONDS = 1.0

logger = logging.getLogger(__name__)


class FailedOnPurpose(Exception):
    """Raised by a job that was started to fail."""


# The row of the job says what has become of it, so neither task needs a record of its own.
@task(keep_result=False)
def run(job_id: str, attempt: int) -> None:
    """Do the job, unless it was cancelled or is already done, because the same message may arrive twice."""
    job = Job.objects.filter(pk=job_id, attempt=attempt).first()
    if job is None or not job.claim():
        logger.info("Job %s, attempt %s: nothing to do", job_id, attempt)
        return
    try:
        work(job)
    except Exception:
        # Users read one sentence. The worker logs the traceback.
        job.fail(FAILURE_MESSAGE)
        raise


def work(job: Job) -> None:
    """Count the seconds of the job, and stop if the job is cancelled. Replace this with your own work."""
    for second in range(1, job.total + 1):
        time.sleep(STEP_SECONDS)
        if job.fail_on_purpose and second > job.total / 2:
            raise FailedOnPurpose(f"Job {job.pk} was started to fail.")
        if not job.advance(second):
            break
    job.finish()


@task(keep_result=False)
def close_stalled_jobs() -> None:
    """Close the jobs of dead workers and those that the queue has lost, so that people can retry them."""
    if count := Job.objects.stalled().give_up():
        logger.warning("%s jobs were given up: nothing was heard of them for too long", count)
