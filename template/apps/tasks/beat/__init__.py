"""Beat: tasks on a schedule, from `SCHEDULED_TASKS` in the settings to the message.

Celery's beat calls `scheduler`, and `bootstrap_celery_tasks` calls `schedule`, which makes the database match the
settings without undoing what people have changed in the admin. Beyond django-celery-beat's own scheduler, this room
guarantees:

- One beat sends, and the others stand by. When it exits, another takes over within two seconds. When it is killed,
  hangs or loses the database, another takes over after BEAT_LEASE_SECONDS and a second. During a deploy, the old and
  the new beat together send each due task once.
- While the broker is down, a due task stays due, and is sent when the broker is back. While the database is down,
  nothing is sent, because it could not be recorded.
- A task that cannot be sent, or a row that cannot be read, does not delay other tasks.
- Beat writes only the columns of a run, and leaves the rest of the row to the people who edit it.
- If the clock is set forward or back, no task runs in a burst, and none waits longer than its interval.
- `ClockCrontab` handles the beginning and the end of summer time, and USE_TZ may be off.
"""
