"""The production files of one server are a rendering of the process model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import template

FOLDER = "deploy/compose"


def services(renderer: template.Renderer, **answers: object) -> dict[str, dict]:
    """The services of the production compose file under these answers."""
    files = renderer.project(template.DEFAULTS | {"deploy": ["compose"]} | answers)
    return yaml.safe_load(files[f"{FOLDER}/compose.yaml"])["services"]


@pytest.mark.parametrize("answers", template.pair_cover(), ids=template.label)
def test_each_process_of_the_model_is_a_service_as_the_model_says(renderer, answers):
    answers = answers | {"deploy": ["compose"]}
    model = renderer.context(answers)["processes"]
    found = services(renderer, **answers)
    assert {name for name, service in found.items() if service["image"] == "${COMPOSE_PROJECT_NAME}"} == model.keys()
    assert [name for name, service in found.items() if "build" in service] == ["release"]
    for name, process in model.items():
        service = found[name]
        assert service["command"] == process.get("production_command", process["command"])
        assert service["mem_limit"] == f"{process['memory_mb']}m"
        if name != "release":
            assert service["healthcheck"]["test"] == process["check"]
            assert service["scale"] == process["count"]
            assert service["stop_grace_period"] == f"{process['stop_seconds']}s"
    assert found["web"]["environment"]["WEB_CONCURRENCY"] == str(model["web"]["concurrency"])
    if "worker" in model:
        seconds = found["worker"]["environment"]["WORKER_STOP_SECONDS"]
        assert seconds == str(model["worker"]["give_back_seconds"])


@pytest.mark.parametrize("answers", [{}, {"celery_broker": "rabbitmq"}, template.OFF], ids=template.label)
def test_no_log_fills_the_disk_and_no_process_gains_rights(renderer, answers):
    found = services(renderer, **answers)
    assert {name: service["logging"]["driver"] for name, service in found.items()} == dict.fromkeys(found, "local")
    servers = {name: service for name, service in found.items() if name != "offsite"}
    assert all(service["security_opt"] == ["no-new-privileges:true"] for service in servers.values())
    ours = [service for service in found.values() if service["image"] == "${COMPOSE_PROJECT_NAME}"]
    assert all((service["cap_drop"], service["read_only"]) == (["ALL"], True) for service in ours)


@pytest.mark.parametrize("answers", [{}, {"use_metrics": True}], ids=template.label)
def test_workers_with_metrics_show_them_to_the_other_services_alone(renderer, answers):
    found = services(renderer, **answers)
    port = renderer.context(template.DEFAULTS | answers)["processes"]["worker"]["metrics_port"]
    shown = {name: each.get("environment", {}).get("WORKER_METRICS_PORT") for name, each in found.items()}
    expected = {"worker": f"0.0.0.0:{port}"} if answers else {}
    assert {name: address for name, address in shown.items() if address} == expected
    assert [name for name, service in found.items() if "ports" in service] == ["caddy", "flower"]
    assert all(port.startswith("127.0.0.1:") for port in found["flower"]["ports"])
    assert str(port) not in str(found["caddy"])


@pytest.mark.parametrize("answers", [{}, {"celery_broker": "rabbitmq"}, template.OFF], ids=template.label)
def test_every_variable_that_the_server_needs_is_in_its_example(renderer, answers):
    files = renderer.project(template.DEFAULTS | {"deploy": ["compose"]} | answers)
    texts = {path: content.decode() for path, content in files.items() if path.startswith(FOLDER)}
    filled_in = set(
        re.findall(r"\{?\$\{?([A-Z_]+)", texts[f"{FOLDER}/compose.yaml"] + texts[f"{FOLDER}/caddy/Caddyfile"])
    )
    offered = set(re.findall(r"^(?:# )?([A-Z_]+)=", texts[f"{FOLDER}/.env.example"], re.MULTILINE))
    assert filled_in <= offered | {"COMPOSE_PROJECT_NAME", "FLOWER_PORT"}
    required = set(re.findall(r"\$\{([A-Z_]+):\?", texts[f"{FOLDER}/compose.yaml"]))
    assert required <= set(re.findall(r"^([A-Z_]+)=", texts[f"{FOLDER}/.env.example"], re.MULTILINE))


@pytest.mark.parametrize("answers", [{}, template.OFF], ids=template.label)
def test_the_scripts_of_the_server_are_clean(renderer, tmp_path, answers):
    files = renderer.project(template.DEFAULTS | {"deploy": ["compose"]} | answers)
    for name in ("backup", "deploy", "restore"):
        (tmp_path / name).write_bytes(files[f"{FOLDER}/{name}"])
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, *sorted(tmp_path.iterdir())], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
