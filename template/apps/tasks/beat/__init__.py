"""Beat: what runs on a schedule, from `SCHEDULED_TASKS` in the settings to the message.

Promises that each run which is due is sent once, however many beats there are, and that the database says what the
settings say without undoing what people changed in the admin. Celery's beat and `bootstrap_celery_tasks` call it.
"""
