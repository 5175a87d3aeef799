"""`manage.py test` runs pytest, so that it runs the same tests under the same settings."""

import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class PytestRunner:
    """Runs pytest in a process of its own, because this one may have loaded other settings than those of the tests."""

    def __init__(self, verbosity: int = 1, failfast: bool = False, **options: Any) -> None:
        self.arguments = [f"--verbosity={verbosity - 1}"]
        self.arguments += ["--exitfirst"] if failfast else []
        self.arguments += ["--reuse-db"] if options.get("keepdb") else []
        self.arguments += ["-k", options["keyword"]] if options.get("keyword") else []

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> None:
        """Add the options that pytest has under another name. For all others, run pytest itself."""
        parser.add_argument("-k", dest="keyword", help="Runs only tests whose names match this expression of pytest's.")
        parser.add_argument("--keepdb", action="store_true", help="Keeps the test database for the next run.")

    def run_tests(self, labels: Sequence[str], **options: Any) -> int:
        """Run the tests with these labels, or all tests. Return 0 if they have passed."""
        command = (sys.executable, "-m", "pytest", *self.arguments, *map(node_of, labels))
        return subprocess.run(command, cwd=ROOT).returncode


def node_of(label: str) -> str:
    """Return a label of Django's, such as `apps.shop.tests.CartTest`, as pytest names it. Leave a path as it is."""
    parts = label.split(".")
    for length in range(len(parts), 0, -1):
        file = Path(*parts[:length]).with_suffix(".py")
        if "/" not in label and (ROOT / file).is_file():
            return "::".join([str(file), *parts[length:]])
    return str(Path(*parts)) if ROOT.joinpath(*parts).is_dir() else label
