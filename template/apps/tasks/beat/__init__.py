"""Beat: what runs on a schedule, from `SCHEDULED_TASKS` in the settings to the message.

Celery's beat calls `scheduler`, and `bootstrap_celery_tasks` calls `schedule`, which makes the database say what the
settings say without undoing what people changed in the admin. Beyond django-celery-beat's own scheduler you can count
on this:

- One beat sends, the others stand by. When it ends, another goes on within two seconds; when it is killed, hangs or
  loses the database, after BEAT_LEASE_SECONDS and a second. Old and new beats of a deploy send each due task once.
- While the broker is away a due task stays due, and is sent when the broker is back. While the database is away
  nothing is sent, because it could not be written down.
- A task that cannot be sent, or a row that cannot be read, holds up no other task.
- Beat writes the columns of a run and leaves the rest of the row to those who edit it.
- A clock that is set forward or back makes no task run in a burst, and none wait for longer than its interval.
- Summer time begins and ends as `ClockCrontab` says, and USE_TZ may be off.
"""
