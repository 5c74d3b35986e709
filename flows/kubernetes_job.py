"""One Kubernetes Job per stage, as a pure function from what a stage is to what a cluster is told.

Checked against the published schema of batch/v1 and against golden files. No cluster has run it.

A Job needs a volume that holds the store and that every node can mount. The store is mounted once, writable:
an artifact is made by one rename, and a rename cannot cross from one mount to another. The inputs are mounted
a second time, read-only, and that is where the stage reads them. Its root file system is read-only too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.gpus import asks_for_several, gpus_asked, nodes_asked
from flows.image_locks import locked_packages
from flows.plan import plan_build
from flows.settings import BuildSettings
from stages.runtime.errors import ContractError, GlassworksError, UserError
from stages.runtime.fingerprint import fingerprint as fingerprint_of
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Store, write_durably

STORE, INPUTS, SCRATCH, SHARED_MEMORY = "/store", "/inputs", "/tmp", "/dev/shm"
#: A stage has this long for its checkpoint, as everywhere (flows/launch.py), and a little more to end.
GRACE_SECONDS = 30
#: Nothing that these mean gets better by trying again.
FINAL_EXIT_CODES = [GlassworksError.exit_code, UserError.exit_code, ContractError.exit_code]


@dataclass(frozen=True)
class Cluster:
    """What a cluster has to offer, and how much of it a stage may take."""

    image: str
    """The stage's image, best by digest: `registry/glassworks-sft@sha256:...`."""
    claim: str = "glassworks-store"
    """The PersistentVolumeClaim that holds the store."""
    namespace: str = "default"
    cpus: str = "2"
    memory: str = "4Gi"
    scratch: str = "2Gi"
    """Room under /tmp."""
    user: int = 10001
    """User and group that the stage runs as; the volume must be theirs."""
    gpu: str = "nvidia.com/gpu"
    """The resource by which the cluster counts GPUs; empty for a cluster without."""
    attempts: int = 3
    """How often to try when a pod is lost or the stage says that it may work next time."""


def render_job(
    spec: StageSpec,
    config: StageConfig,
    fingerprint: str,
    inputs: Mapping[str, str],
    cluster: Cluster,
    force: bool = False,
) -> dict[str, Any]:
    """The Job that makes the artifact `fingerprint`; `inputs` is stage -> fingerprint of what it reads.

    The stage reads its settings from the store, where `glassworks job` puts them; here they say how many GPUs
    it gets. Raises UserError for those that one pod cannot have.
    """
    _refuse_devices(spec, config)
    name = f"glassworks-{spec.name.replace('_', '-')}-{fingerprint[:12]}"
    labels = {"app.kubernetes.io/name": "glassworks", "glassworks/stage": spec.name.replace("_", "-")}
    volumes: list[dict[str, Any]] = [
        {"name": "store", "persistentVolumeClaim": {"claimName": cluster.claim}},
        {"name": "scratch", "emptyDir": {"sizeLimit": cluster.scratch}},
    ]
    if asks_for_several(config):  # a pod has 64 MiB, with which NCCL does not start
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _pod_security(cluster.user),
        "containers": [_container(spec, config, fingerprint, inputs, cluster, force)],
        "volumes": volumes,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": cluster.namespace, "labels": labels},
        "spec": {
            "backoffLimit": cluster.attempts - 1,
            "podFailurePolicy": {"rules": _failure_rules(spec.name.replace("_", "-"))},
            "ttlSecondsAfterFinished": 86400,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def job_of_plan(stage: str, settings: BuildSettings, store: Store, cluster: Cluster) -> dict[str, Any]:
    """The Job for a stage that a build with these settings would run; its settings go into the store.

    Raises UserError if the artifact is there already, or an input of it is not.
    """
    planned = {one.name: one for one in plan_build(settings, store, locked_packages)}
    wanted = planned[stage]
    missing = sorted({r.stage for r in wanted.spec.reads.values() if planned[r.stage].artifact is None})
    if missing:
        raise UserError(
            f"{stage} reads {', '.join(missing)}, to be made first", hint=f"glassworks job {missing[0]} ..."
        )
    if wanted.outcome != "RUN" or wanted.key is None:
        raise UserError(f"{stage} is there already", hint="glassworks plan says why")
    key = fingerprint_of(wanted.key)
    settings_file = store.work_dir(stage, key).with_name(f"{key}.config.json")
    write_durably(settings_file, settings.configs[stage].model_dump_json(indent=1))
    inputs = {}
    for read in wanted.spec.reads.values():
        artifact = planned[read.stage].artifact
        assert artifact is not None
        inputs[read.stage] = artifact.manifest.fingerprint
    return render_job(wanted.spec, settings.configs[stage], key, inputs, cluster)


def _pod_security(user: int) -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # Without it every start would walk through the whole store to change owners.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _failure_rules(container: str) -> list[dict[str, Any]]:
    codes = {"containerName": container, "operator": "In", "values": FINAL_EXIT_CODES}
    moved = {"type": "DisruptionTarget", "status": "True"}
    return [
        {"action": "FailJob", "onExitCodes": codes},
        # The node was drained: the checkpoint is in the store, and another pod goes on from there.
        {"action": "Ignore", "onPodConditions": [moved]},
    ]


def _refuse_devices(spec: StageSpec, config: StageConfig) -> None:
    if gpus_asked(config) == "all":
        hint = f"--set {spec.name}.gpus=4, or as many as a node of the cluster has"
        raise UserError(f"[{spec.name}] gpus is 'all', and a cluster gives GPUs by their number", hint=hint)
    if (nodes := nodes_asked(config)) > 1:
        hint = f"run the stage by itself on these machines: stages/{spec.name}/README.md"
        raise UserError(f"[{spec.name}] nodes is {nodes}, and a Job is one pod on one of them", hint=hint)


def _container(
    spec: StageSpec,
    config: StageConfig,
    fingerprint: str,
    inputs: Mapping[str, str],
    cluster: Cluster,
    force: bool,
) -> dict[str, Any]:
    limits = {"cpu": cluster.cpus, "memory": cluster.memory}
    if spec.gpu == "required" or (spec.gpu == "preferred" and cluster.gpu):
        if not cluster.gpu:
            raise UserError(
                f"{spec.name} needs a GPU", hint="name the cluster's resource: --gpu nvidia.com/gpu"
            )
        limits[cluster.gpu] = str(gpus_asked(config))
    # Whole artifacts, not parts: the manifest beside the parts is what they are verified by.
    read_only = [
        {"name": "store", "mountPath": f"{INPUTS}/{stage}", "subPath": f"artifacts/{stage}/{key}"}
        for stage, key in inputs.items()
    ]
    shared_memory = {"name": "shared-memory", "mountPath": SHARED_MEMORY}
    return {
        "name": spec.name.replace("_", "-"),
        "image": cluster.image,
        "args": _arguments(spec, fingerprint, force),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {"limits": limits, "requests": dict(limits)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "store", "mountPath": STORE},
            {"name": "scratch", "mountPath": SCRATCH},
            *([shared_memory] if asks_for_several(config) else []),
            *({**mount, "readOnly": True} for mount in read_only),
        ],
    }


def _arguments(spec: StageSpec, fingerprint: str, force: bool) -> list[str]:
    """No `--lease stdin`: a pod has no standard input, and the cluster ends what it no longer wants."""
    work = f"{STORE}/work/{spec.name}/{fingerprint}"
    arguments = ["--config", f"{work}.config.json"]
    arguments += ["--output", f"{STORE}/artifacts/{spec.name}/{fingerprint}"]
    arguments += ["--work", work, "--expect", fingerprint, "--events", "json"]
    for role, read in spec.reads.items():
        arguments += ["--input", f"{role}={INPUTS}/{read.stage}/{read.part}"]
    return arguments + ["--force"] * force
