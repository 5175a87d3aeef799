"""The worker: how it starts, shows that it is alive, stops in time, and records a task that fails.

This room promises that a task whose worker dies runs again, that a task that fails for good leaves a row with its
message, and that a worker that is told to stop gives back what it cannot finish. Celery's worker calls it through
`celery.py` and `CELERY_WORKER_CONSUMER`.
"""
