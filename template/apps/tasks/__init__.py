"""Background tasks with Celery. The README in this folder says what each room is for, and what you may delete."""
