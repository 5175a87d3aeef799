"""The manifests of a rendered project are valid, and run its processes as every other target does."""

import base64
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject

from tests import kubernetes, template
from tests.kubernetes import Manifest, Manifests
from tests.processes import installed, needed, redis_server, run
from tests.test_off_leaves_no_trace import OF_FLOWER, variables_offered, variables_read

PROJECTS: dict[str, template.Answers] = {
    "redis": {},
    "rabbitmq": {"celery_broker": "rabbitmq"},
    "gevent": {"celery_pool": "gevent"},
    "threads": {"celery_pool": "threads"},
    "flower off": {"use_flower": False},
    "celery off": template.OFF,
    "asgi": {"use_async": True},
    "metrics": {"use_metrics": True},
    "everything": template.EVERYTHING,
    "a name with dashes": {"project_slug": "my_own__project_"},
}
# A project without Celery has no workers to scale.
SCALED = {name: answers for name, answers in PROJECTS.items() if answers != template.OFF}
# The oldest version that has every field here, and the newest.
VERSIONS = ("1.27", "1.37")


@pytest.fixture(scope="module", params=PROJECTS)
def answers(request) -> template.Answers:
    return PROJECTS[request.param]


@pytest.fixture(scope="module")
def built(renderer, answers, tmp_path_factory) -> Manifests:
    return kubernetes.manifests(renderer, tmp_path_factory.mktemp("built"), **answers)


@pytest.fixture(scope="module", params=SCALED)
def scaled(renderer, request, tmp_path_factory) -> Manifests:
    return kubernetes.manifests(renderer, tmp_path_factory.mktemp("scaled"), "autoscaling", **SCALED[request.param])


def trigger_fields(scaled: Manifests) -> list[dict[str, str]]:
    """What KEDA is told about each list or queue."""
    return [trigger["metadata"] for trigger in scaled.by_kind["ScaledObject"]["worker"]["spec"]["triggers"]]


# What a cluster accepts -----------------------------------------------------


def flaw(manifest: Manifest, version: str) -> str:
    """Return what the schemas of a version of Kubernetes, which refuse unknown fields, say against a manifest."""
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{manifest['kind']} {manifest['metadata']['name']}: {error}"
    return ""


def test_what_kustomize_makes_fits_the_schemas_of_kubernetes(built):
    everything = [each for kind in built.by_kind.values() for each in kind.values()]
    assert {*built.by_kind} == {
        "Deployment",
        "Ingress",
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Secret",
        "Service",
    }
    assert [found for each in everything for version in VERSIONS if (found := flaw(each, version))] == []


@pytest.mark.parametrize("key, value", [("replicas", "two"), ("replica", 2)])
def test_the_schemas_refuse(renderer, tmp_path, key, value):
    [web] = [each for each in kubernetes.build(kubernetes.write(renderer, tmp_path)) if each["kind"] == "Service"]
    assert flaw(web | {"spec": web["spec"] | {key: value}}, VERSIONS[0])


def fits_keda(manifest: Manifest) -> bool:
    """Whether a ScaledObject has only what KEDA's schema has. Its model leaves out what it does not know."""
    return ScaledObject.model_validate(manifest).model_dump(by_alias=True, exclude_unset=True, mode="json") == manifest


def test_the_autoscaling_fits_the_schema_of_keda(scaled):
    [manifest] = scaled.by_kind["ScaledObject"].values()
    assert fits_keda(manifest)
    assert not fits_keda(manifest | {"spec": manifest["spec"] | {"maxReplicas": 9}})


def test_the_files_are_clean_yaml(renderer, answers, tmp_path):
    rules = "{extends: default, rules: {document-start: disable, line-length: {max: 140}}}"
    yamllint = Path(sys.executable).parent / "yamllint"
    run(kubernetes.write(renderer, tmp_path, **answers), yamllint, "--strict", "-d", rules, ".")


def test_every_file_in_the_folder_is_part_of_the_kustomization(renderer, answers, tmp_path):
    folder = kubernetes.write(renderer, tmp_path, **answers)
    for path in folder.rglob("kustomization.yaml"):
        told = yaml.safe_load(path.read_text())
        listed = {*told["resources"], *(patch["path"] for patch in told["patches"] if "path" in patch)}
        assert listed == {each.name for each in path.parent.glob("*.yaml")} - {path.name}


# The one process model ------------------------------------------------------


def test_each_process_of_the_project_has_its_manifest_and_no_other(built):
    assert {*built.by_kind["Deployment"]} == {*built.processes} - {"release"}
    assert {*built.by_kind["Job"]} == {"release"}
    # Nobody may take all of what there are several of at once.
    several = {name for name, process in built.processes.items() if process.get("count", 1) > 1}
    budgets = built.by_kind["PodDisruptionBudget"]
    assert {*budgets} == several
    # A pod that never becomes ready would keep its node from being drained for ever.
    assert {budget["spec"]["unhealthyPodEvictionPolicy"] for budget in budgets.values()} == {"AlwaysAllow"}


def test_each_process_is_started_and_stopped_as_everywhere(built):
    for name, process in built.processes.items():
        pod = built.pods[name]
        [container] = pod["containers"]
        variables = {each["name"]: each["value"] for each in container.get("env", [])}
        command = shlex.split(process.get("production_command", process["command"]))
        if name == "worker":
            assert variables.pop("WORKER_STOP_SECONDS") == str(process["give_back_seconds"])
            assert {*variables} <= {"WORKER_METRICS_PORT"}
        if name == "web":
            assert variables == {"WEB_CONCURRENCY": str(process["concurrency"])}
        assert container["command"] == command
        assert container["resources"]["limits"] == {"memory": f"{process['memory_mb']}Mi"}
        assert container["resources"]["requests"] == {"cpu": "100m", "memory": f"{process['memory_mb']}Mi"}
        if name != "release":
            assert built.by_kind["Deployment"][name]["spec"]["replicas"] == process["count"]
            assert pod["terminationGracePeriodSeconds"] == process["stop_seconds"] + seconds_before_stop(container)
    assert seconds_before_stop(built.pods["web"]["containers"][0]) == 5


def seconds_before_stop(container: Manifest) -> int:
    """How long a container goes on before it is told to stop."""
    if "lifecycle" not in container:
        return 0
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    return int(seconds)


def test_each_process_is_probed_by_its_check(built):
    for name, process in built.processes.items():
        [container] = built.pods[name]["containers"]
        probes = {kind.removesuffix("Probe"): probe for kind, probe in container.items() if kind.endswith("Probe")}
        expected = {"release": set(), "web": {"startup", "liveness", "readiness"}}.get(name, {"startup", "liveness"})
        assert {*probes} == expected
        for probe in probes.values():
            if "httpGet" in probe:
                assert probe["httpGet"] == {"path": process["path"], "port": process["port"]}
                assert container["ports"][0]["containerPort"] == process["port"]
            else:
                assert probe["exec"]["command"] == shlex.split(process["check"])
        if probes:
            # As long as Compose waits for a container to start, and as often as it looks at one that runs.
            assert probes["startup"]["failureThreshold"] * probes["startup"]["periodSeconds"] == 120
            assert (probes["liveness"]["periodSeconds"], probes["liveness"]["timeoutSeconds"]) == (10, 10)


def test_requests_get_from_the_ingress_to_the_port_of_the_web_server(built):
    [rule] = built.by_kind["Ingress"]["web"]["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"] == {"service": {"name": "web", "port": {"name": "http"}}}
    service = built.by_kind["Service"]["web"]["spec"]
    assert [(port["name"], port["targetPort"]) for port in service["ports"]] == [("http", "http")]
    labels = built.by_kind["Deployment"]["web"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    [port] = built.pods["web"]["containers"][0]["ports"]
    assert port == {"name": "http", "containerPort": built.processes["web"]["port"]}


ANNOTATIONS = "prometheus.io/"


def test_prometheus_finds_the_figures_of_each_worker_and_looks_for_none_elsewhere(built, answers):
    found = {}
    for name, deployment in built.by_kind["Deployment"].items():
        told = deployment["spec"]["template"]["metadata"].get("annotations", {})
        found[name] = {key.removeprefix(ANNOTATIONS): value for key, value in told.items()}
    worker = found.pop("worker", {})
    assert not any(found.values())
    if not answers.get("use_metrics"):
        assert not worker
        return
    [container] = built.pods["worker"]["containers"]
    port = built.processes["worker"]["metrics_port"]
    assert worker == {"scrape": "true", "port": str(port), "path": "/metrics"}
    assert container["ports"] == [{"name": "metrics", "containerPort": port}]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["WORKER_METRICS_PORT"] == f"0.0.0.0:{port}"
    # Without a Service, the port is one of the pod alone.
    assert {*built.by_kind["Service"]} == {"web"}


# Releases -------------------------------------------------------------------


def test_a_new_version_starts_only_after_its_migrations_and_the_old_one_runs_until_then(built):
    for name, deployment in built.by_kind["Deployment"].items():
        [wait] = built.pods[name]["initContainers"]
        [container] = built.pods[name]["containers"]
        assert wait["command"][:2] == ["sh", "-c"]
        assert wait["command"][2].startswith("until python manage.py migrate --check; do ")
        assert (wait["image"], wait["envFrom"]) == (container["image"], container["envFrom"])
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_one_line_gives_all_containers_their_version(renderer, tmp_path, answers):
    folder = kubernetes.write(renderer, tmp_path, **answers)
    path = folder / "kustomization.yaml"
    path.write_text(path.read_text().replace('newTag: "1"', "newTag: v2"))
    images = set(re.findall(r'"image": "(.*?)"', json.dumps(kubernetes.build(folder))))
    assert len(images) == 1 and re.fullmatch(r"registry\.example\.com/[a-z](-*[a-z])*:v2", images.pop())


def test_the_commands_of_a_release_name_what_is_there(renderer, tmp_path, answers):
    folder = kubernetes.write(renderer, tmp_path, **answers)
    delete, apply = re.findall("^#     (kubectl .*)$", (folder / "kustomization.yaml").read_text(), re.MULTILINE)
    [job] = [each["metadata"] for each in kubernetes.build(folder) if each["kind"] == "Job"]
    assert delete == f"kubectl delete job/{job['name']} --namespace={job['namespace']} --ignore-not-found"
    assert apply == f"kubectl apply -k {folder.relative_to(tmp_path)}"


def test_a_changed_setting_replaces_the_pods(renderer, tmp_path):
    folder = kubernetes.write(renderer, tmp_path)

    def named() -> set[str]:
        manifests = kubernetes.build(folder)
        [secret] = [each["metadata"]["name"] for each in manifests if each["kind"] == "Secret"]
        used = set(re.findall(r'"secretRef": \{"name": "(.*?)"', json.dumps(manifests)))
        assert used == {secret}
        return used

    before = named()
    with (folder / "settings.env").open("a") as settings:
        settings.write("LOG_LEVEL=DEBUG\n")
    assert named().isdisjoint(before)


PRUNING = re.compile(
    r"^\$ kubectl delete (deployment/.*|scaledobject/.*) --namespace=acme --ignore-not-found$", re.MULTILINE
)


def test_the_how_to_names_all_that_stays_in_the_cluster_when_celery_is_switched_off(renderer, tmp_path):
    def found(name: str, *components: str, **answers: Any) -> set[str]:
        kinds = kubernetes.manifests(renderer, tmp_path / name, *components, **answers).by_kind
        names = {"PodDisruptionBudget": "pdb"}
        return {f"{names.get(kind, kind.lower())}/{each}" for kind in kinds if kind != "Secret" for each in kinds[kind]}

    left = found("on", "autoscaling", use_metrics=True) - found("off", **template.OFF)
    how_to = (template.ROOT / "docs/how-to/deploy-kubernetes.md").read_text()
    assert {word for line in PRUNING.findall(how_to) for word in line.split()} == left


# Safety ---------------------------------------------------------------------


def test_other_pods_reach_the_web_server_and_nothing_else(built, answers):
    [part_of] = {
        each["metadata"]["labels"]["app.kubernetes.io/part-of"] for each in built.by_kind["Deployment"].values()
    }
    policies = {name: policy["spec"] for name, policy in built.by_kind["NetworkPolicy"].items()}
    closed = policies.pop("closed")
    assert closed == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/part-of": part_of}},
        "policyTypes": ["Ingress"],
    }
    for owner in (*built.by_kind["Deployment"].values(), *built.by_kind["Job"].values()):
        assert owner["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == part_of
    opened = {name: [each["ports"] for each in policy["ingress"]] for name, policy in policies.items()}
    metrics = {"worker": [[{"port": "metrics"}]]} if answers.get("use_metrics") else {}
    assert opened == {"web": [[{"port": "http"}]]} | metrics
    assert {name: policy["podSelector"] for name, policy in policies.items()} == {
        name: {"matchLabels": {"app": name}} for name in opened
    }


def test_a_route_takes_the_place_of_the_ingress(renderer, tmp_path, answers):
    made = kubernetes.manifests(renderer, tmp_path, "gateway", **answers)
    assert "Ingress" not in made.by_kind
    spec, [port] = made.by_kind["HTTPRoute"]["web"]["spec"], made.by_kind["Service"]["web"]["spec"]["ports"]
    assert spec["rules"] == [{"backendRefs": [{"name": "web", "port": port["port"]}]}]
    assert spec["hostnames"] == [settings(made)["ALLOWED_HOSTS"]]


def test_a_release_that_does_not_end_gives_up(built):
    spec = built.by_kind["Job"]["release"]["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (3600, 3)


def test_no_container_can_do_more_than_a_process_of_the_project_needs(built):
    for pod in built.pods.values():
        assert pod["automountServiceAccountToken"] is False
        user = {"runAsGroup": 1000, "runAsNonRoot": True, "runAsUser": 1000}
        assert pod["securityContext"] == user | {"seccompProfile": {"type": "RuntimeDefault"}}
        assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_no_service_sets_a_variable_that_a_program_takes_for_its_own(built):
    """A Service called flower would set FLOWER_PORT to tcp://…, with which Flower does not start."""
    assert [name for name, pod in built.pods.items() if pod["enableServiceLinks"] is not False] == []


def test_git_ignores_the_settings_and_keeps_their_example(renderer, tmp_path):
    folder = kubernetes.write(renderer, tmp_path)
    (tmp_path / ".gitignore").write_bytes(template.raw(".gitignore"))
    template.git(tmp_path, "init", "--quiet")
    found = template.git(tmp_path, "ls-files", "--others", "--exclude-standard", str(folder)).splitlines()
    assert f"{kubernetes.FOLDER}/settings.env.example" in found
    assert f"{kubernetes.FOLDER}/settings.env" not in found and (folder / "settings.env").exists()


# Settings -------------------------------------------------------------------


def settings(built: Manifests) -> dict[str, str]:
    """The variables of the pods."""
    [secret] = built.by_kind["Secret"].values()
    return {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}


def test_the_example_has_what_production_requires_and_nothing_that_nobody_reads(renderer, tmp_path, answers):
    files = renderer.project(template.DEFAULTS | {"deploy": ["kubernetes"]} | answers)
    texts = {path: content.decode() for path, content in files.items()}
    slug = answers.get("project_slug", "acme")
    required = set(re.findall(r'^required_in_production\["(\w+)"\]', texts[f"{slug}/settings.py"], re.MULTILINE))
    [first] = re.findall(r"^required_in_production = \{(.*)\}$", texts[f"{slug}/settings.py"], re.MULTILINE)
    required |= set(re.findall(r'"(\w+)":', first))
    assert required >= {"ALLOWED_HOSTS", "SECRET_KEY"}
    wanted = required | {"BEHIND_HTTPS_PROXY", "CSRF_TRUSTED_ORIGINS", "DATABASE_URL", "HEALTH_TOKEN"}
    wanted.add("TRUSTED_PROXY_COUNT")
    if "flowerconfig.py" in files:
        wanted.add("FLOWER_BASIC_AUTH")
    offered = variables_offered(texts[f"{kubernetes.FOLDER}/settings.env.example"])
    scaled = texts.get(f"{kubernetes.FOLDER}/autoscaling/scaled-object.yaml", "")
    keda = set(re.findall(r"FromEnv: (\w+)", scaled))
    read = variables_read(texts) | keda | (OF_FLOWER if "flowerconfig.py" in files else set())
    assert wanted <= offered <= read and keda <= offered


def test_the_host_of_the_example_is_that_of_the_ingress(built):
    spec = built.by_kind["Ingress"]["web"]["spec"]
    [rule], [tls] = spec["rules"], spec["tls"]
    host = settings(built)["ALLOWED_HOSTS"]
    assert tls["hosts"] == [rule["host"]] == [host]
    assert settings(built)["CSRF_TRUSTED_ORIGINS"] == f"https://{host}"


# Autoscaling ----------------------------------------------------------------


def test_keda_alone_decides_how_many_workers_run_and_never_leaves_fewer_than_the_model(scaled):
    counts = {name: each["spec"].get("replicas") for name, each in scaled.by_kind["Deployment"].items()}
    assert counts.pop("worker") is None and None not in counts.values()
    spec, worker = scaled.by_kind["ScaledObject"]["worker"]["spec"], scaled.processes["worker"]
    assert spec["scaleTargetRef"] == {"name": "worker"}
    assert spec["minReplicaCount"] == worker["count"] < spec["maxReplicaCount"]


def test_keda_counts_one_worker_for_as_many_waiting_tasks_as_it_runs_at_once(scaled):
    concurrency = str(scaled.processes["worker"]["concurrency"])
    spec = scaled.by_kind["ScaledObject"]["worker"]["spec"]
    targets = [each.get("value") or each.get("listLength") for each in trigger_fields(scaled)]
    assert {*targets} == {concurrency}
    if "advanced" in spec:
        modifiers = spec["advanced"]["scalingModifiers"]
        assert modifiers["target"] == concurrency
        # Every list counts, and each one once.
        assert modifiers["formula"].split(" + ") == [trigger["name"] for trigger in spec["triggers"]]


def test_keda_asks_rabbitmq_for_the_tasks_that_wait_and_those_that_run(renderer, tmp_path):
    scaled = kubernetes.manifests(renderer, tmp_path, "autoscaling", celery_broker="rabbitmq")
    [fields] = trigger_fields(scaled)
    # By AMQP, a queue has only the messages that wait.
    expected = {"hostFromEnv": "KEDA_RABBITMQ_URL", "protocol": "http", "queueName": "celery", "mode": "QueueLength"}
    assert {name: fields[name] for name in expected} == expected and "excludeUnacknowledged" not in fields
    asked, sent_to = (urlsplit(settings(scaled)[name]) for name in ("KEDA_RABBITMQ_URL", "CELERY_BROKER_URL"))
    assert asked.scheme == "http" and asked.netloc.removesuffix(":15672") == sent_to.netloc.removesuffix(":5672")


def test_keda_asks_redis_where_the_workers_do(renderer, tmp_path):
    scaled = kubernetes.manifests(renderer, tmp_path, "autoscaling")
    variables = settings(scaled)
    for fields in trigger_fields(scaled):
        user, password = (variables[fields[f"{name}FromEnv"]] for name in ("username", "password"))
        address = variables[fields["addressFromEnv"]]
        assert fields["enableTLS"] == "false"
        url = f"redis://{user}:{password}@{address}/{fields['databaseIndex']}"
        assert url == variables["CELERY_BROKER_URL"]


TRIALS = """
from apps.background import task

@task
def nothing():
    pass
"""
# Sends with every priority of Django's tasks, and prints which lists the workers of the project take from, and where
# they record what they hold.
SEND = """
import json, django
import acme.celery
django.setup()
from celery import current_app
from acme.trials import nothing

for priority in range(-100, 101):
    nothing.using(priority=priority).enqueue()
with current_app.connection_for_read() as connection:
    channel = connection.default_channel
    lists = [channel._q_for_pri("celery", step) for step in channel.priority_steps]
    print(json.dumps([*lists, channel.unacked_key]))
"""


@pytest.mark.run
def test_keda_looks_at_the_very_lists_that_the_project_keeps_on_redis(renderer, template_repo, tmp_path):
    scaled = kubernetes.manifests(renderer, tmp_path / "manifests", "autoscaling")
    *lists, held = [fields["listName"] for fields in trigger_fields(scaled)]
    project, programs = installed(template_repo, tmp_path / "project", "3.13", "--no-dev")
    (project / "acme/trials.py").write_text(TRIALS)
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as (_, url):
        production = {"ALLOWED_HOSTS": "none", "CELERY_BROKER_URL": url, "SECRET_KEY": "none"}
        run(project, programs / "python", "manage.py", "migrate", **production)
        taken_from = json.loads(run(project, programs / "python", "-c", SEND, **production).splitlines()[-1])
        client = [needed("redis-cli"), "-u", url, "--json"]
        keys = json.loads(run(tmp_path, *client, "KEYS", "*"))
        lengths = [json.loads(run(tmp_path, *client, "LLEN", key)) for key in lists]
    assert [*lists, held] == taken_from
    # Nothing that the project has sent lies in another list. The bell only wakes workers, and a token is no message.
    others = re.compile("celery\x06\x16(bell|sent-.*)")
    assert {key for key in keys if key.startswith("celery") and not others.fullmatch(key)} == {*lists}
    assert min(lengths) > 0 and sum(lengths) == len(range(-100, 101))
