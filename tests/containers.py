"""Projects in containers: what the tests of compose files share."""

import json
import os
import re
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

from tests.browser import PATIENCE_SECONDS, free_port
from tests.dev_support import wait_until
from tests.processes import needed

# Neither root nor the user of the image and of a first account on a machine, 1000, which would prove nothing.
OWNER = os.getuid() or 1234
# What Docker has of a project, in the order in which it can go, with the options for that.
REMOVALS = {"container": ("--force", "--volumes"), "network": (), "volume": (), "image": ("--force",)}
PORTS = ("FLOWER_PORT", "HTTP_PORT", "HTTPS_PORT", "POSTGRES_PORT", "RABBITMQ_PORT", "REDIS_PORT", "WEB_PORT")


@cache
def engine_is_there() -> bool:
    return all(
        shutil.which("docker") and subprocess.run(["docker", *command], capture_output=True).returncode == 0
        for command in (["info"], ["compose", "version"])
    )


NEEDS_ENGINE = [
    pytest.mark.containers,
    pytest.mark.skipif(not engine_is_there(), reason="no Docker engine with Compose v2 answers"),
]


class Stack:
    """A rendered project in containers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in PORTS}
        self.environment = os.environ | {name: str(port) for name, port in self.ports.items()}
        self.name = f"proof{os.getpid()}{self.ports['WEB_PORT']}"
        self.label = f"label=com.docker.compose.project={self.name}"
        self.environment |= {"COMPOSE_PROJECT_NAME": self.name, "HOST_UID": str(OWNER), "HOST_GID": str(OWNER)}

    def run(self, *command: str) -> str:
        """Run a command in the project; return what it printed, fail if it fails."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr + (self.logs() if command[-1] == "up" else "")
        return done.stdout

    def compose(self, *arguments: str) -> str:
        """Run docker compose; return what it printed, fail if it fails."""
        return self.run("docker", "compose", *arguments)

    def make(self, target: str) -> None:
        self.run(needed("make"), target)

    def logs(self, *services: str) -> str:
        command = ["docker", "compose", "logs", "--no-color", *services]
        return subprocess.run(command, cwd=self.folder, env=self.environment, text=True, capture_output=True).stdout

    def containers(self) -> set[str]:
        """The services that have a container, whether the compose file names them or not."""
        service = '{{ .Label "com.docker.compose.service" }}'
        return set(self.run("docker", "ps", "--all", "--filter", self.label, "--format", service).split())

    def inspect(self, service: str) -> dict:
        [container] = self.compose("ps", "--all", "--quiet", service).split()
        return json.loads(subprocess.check_output(["docker", "inspect", container]))[0]

    def is_healthy(self, service: str) -> bool:
        """Wait until a service is healthy: a probe may have failed on a machine with other things to do."""
        return wait_until(lambda: self.inspect(service)["State"]["Health"]["Status"] == "healthy")

    def belong_to(self, user: int) -> None:
        """Give every file to a user, where that can be done."""
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, user, user, follow_symlinks=False) if os.geteuid() == 0 else None

    def remove(self) -> None:
        """Remove all that Docker has of the project, what the compose file names no longer included."""
        # By their labels, because compose itself gives up where a test has left half of them.
        for kind, options in REMOVALS.items():
            everything = ("--all",) if kind == "container" else ()
            found = self.run("docker", kind, "ls", "--quiet", *everything, "--filter", self.label).split()
            self.run("docker", kind, "rm", *options, *found) if found else None

    def says(self, service: str, pattern: str) -> bool:
        """Wait until the log of a service matches."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not re.search(pattern, self.logs(service)) and time.monotonic() < deadline:
            time.sleep(1)
        return bool(re.search(pattern, self.logs(service)))
