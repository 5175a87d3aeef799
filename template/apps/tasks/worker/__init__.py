"""The worker: how it starts, shows that it is alive, stops in time, and what it writes down of a task that fails.

Promises that a task whose worker dies runs again, that one which fails for good leaves a row with its message, and
that a worker which is told to stop gives back what it cannot finish. Celery's worker calls it, by `celery.py` and
`CELERY_WORKER_CONSUMER`.
"""
