"""The manifests of a rendered project, as `kubectl apply -k deploy/kubernetes` would send them to a cluster."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests import template

FOLDER = "deploy/kubernetes"
KUBECTL = Path(sys.executable).parent / "kubectl"

Manifest = dict[str, Any]


class Manifests(NamedTuple):
    """What kustomize makes of a project, by kind and by name, and what the template says of the project's processes."""

    by_kind: dict[str, dict[str, Manifest]]
    processes: dict[str, dict[str, Any]]

    @property
    def pods(self) -> dict[str, Manifest]:
        """The pods of Deployments and Jobs, by the name of the process."""
        owners = self.by_kind["Deployment"] | self.by_kind["Job"]
        return {name: owner["spec"]["template"]["spec"] for name, owner in owners.items()}


def write(renderer: template.Renderer, project: Path, **answers: Any) -> Path:
    """Write the manifests of a project to its folder, with the example's settings; return the folder to apply."""
    files = renderer.project(template.DEFAULTS | {"deploy": ["kubernetes"]} | answers)
    for path, content in files.items():
        if path.startswith(f"{FOLDER}/"):
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_bytes(content)
    folder = project / FOLDER
    (folder / "settings.env").write_bytes((folder / "settings.env.example").read_bytes())
    return folder


def use(folder: Path, *components: str) -> None:
    """Take the comment signs away, as the comment says."""
    kustomization = folder / "kustomization.yaml"
    text = kustomization.read_text()
    for line in ("components:", *(f"  - {component}" for component in components)):
        assert f"\n# {line}\n" in text
        text = text.replace(f"\n# {line}\n", f"\n{line}\n")
    kustomization.write_text(text)


def build(folder: Path) -> list[Manifest]:
    """Return what `kubectl apply -k` would send."""
    done = subprocess.run([KUBECTL, "kustomize", folder], text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def manifests(renderer: template.Renderer, project: Path, *components: str, **answers: Any) -> Manifests:
    """Build the manifests of a project of these answers, with these components, in an empty folder."""
    folder = write(renderer, project, **answers)
    if components:
        use(folder, *components)
    by_kind: dict[str, dict[str, Manifest]] = {}
    for each in build(folder):
        by_kind.setdefault(each["kind"], {})[each["metadata"]["name"]] = each
    return Manifests(by_kind, renderer.context(template.DEFAULTS | answers)["processes"])
