from django.apps import AppConfig


class JobsConfig(AppConfig):
    """The background-task example: work that takes long, with its progress on a page and a way to stop it."""

    name = "apps.jobs"
    verbose_name = "Jobs"
    menu = [("Jobs", "jobs:list")]
