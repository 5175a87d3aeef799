"""`manage.py dev`: everything that the project needs while you work on it, in one terminal."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from django.apps import apps as django_apps
from django.conf import settings
from django.core.management import BaseCommand, CommandError, call_command
from django.core.management.color import supports_color
from django.utils.module_loading import module_has_submodule

from apps.web.supervisor import Process, Supervisor

try:
    import fcntl
except ImportError:
    # Windows
    fcntl = None


class Command(BaseCommand):
    """Migrate, then run every process of the project until Ctrl-C."""

    help = "Migrates the database, then runs every process of the project until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--port",
            default=os.environ.get("PORT") or None,
            help="port of the web server (default: PORT, or else 8000 or the next free one)",
        )

    def handle(self, **options: Any) -> None:
        if not settings.DEBUG:
            raise CommandError("`manage.py dev` is for development: set DEBUG=1, in .env or in the environment.")
        with only_one_here():
            modules = dev_modules()
            processes = [process for module in modules for process in module.processes(options)]
            self.announce(processes)
            call_command("migrate", verbosity=options["verbosity"])
            call_each(modules, "prepare", options)
            try:
                code = Supervisor(processes, colour=self.in_colour(options)).run()
            finally:
                call_each(modules, "finish", options)
        sys.exit(code)

    def announce(self, processes: list[Process]) -> None:
        """Print where everything runs."""
        width = max(len(process.name) for process in processes)
        for process in processes:
            if process.note:
                self.stdout.write(f"{process.name:{width}}   {process.note}")
        self.stdout.flush()

    def in_colour(self, options: dict[str, Any]) -> bool:
        """Return whether names are coloured: on a terminal, unless an option or NO_COLOR forbids it."""
        if options["force_color"]:
            return True
        return supports_color() and not options["no_color"] and "NO_COLOR" not in os.environ


def dev_modules() -> list[ModuleType]:
    """Return the `dev` modules of the installed apps that define processes."""
    configs = [config for config in django_apps.get_app_configs() if module_has_submodule(config.module, "dev")]
    modules = [import_module(f"{config.name}.dev") for config in configs]
    return [module for module in modules if hasattr(module, "processes")]


def call_each(modules: list[ModuleType], name: str, options: dict[str, Any]) -> None:
    """Call the function of this name of every module that has one."""
    for module in modules:
        if hasattr(module, name):
            getattr(module, name)(options)


@contextmanager
def only_one_here() -> Iterator[None]:
    """Prevent a second `manage.py dev` from starting in this checkout."""
    with open(settings.BASE_DIR / "manage.py") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError("`manage.py dev` runs in this folder already: use that one, or stop it first.") from None
        yield
