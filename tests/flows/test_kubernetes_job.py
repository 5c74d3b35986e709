"""Jobs for a cluster: as reviewed (golden files), as the published schema of batch/v1 has them, and tight.

`python tests/flows/test_kubernetes_job.py` writes the golden files anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import V1Job
from pydantic import ValidationError

from flows.kubernetes_job import Cluster, job_of_plan, render_job
from flows.settings import build_settings
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.spec import StageSpec
from stages.runtime.store import Store

GOLDEN = Path(__file__).with_name("kubernetes_jobs")
POOL_TEMPLATE = Path(__file__).parents[2] / "flows" / "pools" / "kubernetes.json"
FINGERPRINT = "0123456789abcdef01234567"


def job(spec: StageSpec, settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    cluster = Cluster(**({"image": f"registry.example/{spec.name}@sha256:{'0' * 64}"} | changes))
    inputs = {read.stage: "f" * 24 for read in spec.reads.values()}
    return render_job(spec, spec.parse_config(settings or {}), FINGERPRINT, inputs, cluster)


def each_stage() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.name)


@each_stage()
def test_as_reviewed(spec: StageSpec) -> None:
    assert job(spec) == json.loads((GOLDEN / f"{spec.name}.json").read_text())


@each_stage()
def test_as_the_schema_has_it(spec: StageSpec) -> None:
    V1Job.model_validate(job(spec))


def test_the_schema_would_notice() -> None:
    """A field in the wrong place, and one of a wrong type."""
    wrong = job(STAGES[0])
    wrong["spec"]["template"]["spec"]["parallelism"] = 1
    wrong["spec"]["backoffLimit"] = "twice"
    with pytest.raises(ValidationError) as caught:
        V1Job.model_validate(wrong)
    places = {".".join(map(str, error["loc"])) for error in caught.value.errors()}
    assert places == {"spec.backoffLimit", "spec.template.spec.parallelism"}


@each_stage()
def test_nothing_but_the_store_and_the_scratch_can_be_written(spec: StageSpec) -> None:
    [container] = job(spec)["spec"]["template"]["spec"]["containers"]
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/store", "/tmp"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    given = {a for a in container["args"] if "=/inputs/" in a}
    assert given == {f"{role}=/inputs/{read.stage}/{read.part}" for role, read in spec.reads.items()}
    mounted = {m["mountPath"] for m in container["volumeMounts"] if m.get("readOnly")}
    assert mounted == {f"/inputs/{read.stage}" for read in spec.reads.values()}
    assert "stdin" not in container["args"]


@each_stage()
def test_a_gpu_where_one_is_of_use(spec: StageSpec) -> None:
    def limits(**changes: Any) -> dict[str, str]:
        [container] = job(spec, **changes)["spec"]["template"]["spec"]["containers"]
        found: dict[str, str] = container["resources"]["limits"]
        return found

    assert limits().get("nvidia.com/gpu") == (None if spec.gpu == "none" else "1")
    assert set(limits(gpu="")) == {"cpu", "memory"}


def test_a_pod_gets_as_many_gpus_as_are_asked_for_and_room_for_what_they_exchange() -> None:
    [pretrain] = [spec for spec in STAGES if spec.name == "pretrain"]
    asked = job(pretrain, {"gpus": 4})
    V1Job.model_validate(asked)
    pod = asked["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    [shared] = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    assert {"name": shared["name"], "emptyDir": {"medium": "Memory"}} in pod["volumes"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": "all"}, "gpus is 'all', and a cluster gives GPUs by their number"),
        ({"nodes": 2, "rendezvous": "a:1"}, "nodes is 2, and a Job is one pod"),
    ],
)
def test_what_one_pod_cannot_have_is_refused(settings: dict[str, Any], message: str) -> None:
    [pretrain] = [spec for spec in STAGES if spec.name == "pretrain"]
    with pytest.raises(UserError, match=message):
        job(pretrain, settings)


def test_names_are_such_as_a_cluster_takes() -> None:
    names = [job(spec)["metadata"]["name"] for spec in STAGES]
    assert len(set(names)) == len(STAGES)
    assert all(name.replace("-", "").isalnum() and name.islower() and len(name) <= 63 for name in names)


def test_the_job_of_a_plan(tmp_path: Path) -> None:
    store, settings = Store(tmp_path), build_settings("tiny")
    made = job_of_plan("corpus_prep", settings, store, Cluster("image"))
    [container] = made["spec"]["template"]["spec"]["containers"]
    config = container["args"][container["args"].index("--config") + 1].replace("/store", str(tmp_path))
    assert json.loads(Path(config).read_text()) == settings.configs["corpus_prep"].model_dump(mode="json")
    with pytest.raises(UserError, match="tokenizer reads corpus_prep, to be made first"):
        job_of_plan("tokenizer", settings, store, Cluster("image"))


def test_the_pool_template_makes_a_job_of_the_schema() -> None:
    from prefect.utilities.templating import apply_values

    template = json.loads(POOL_TEMPLATE.read_text())
    properties = template["variables"]["properties"]
    values = {name: one["default"] for name, one in properties.items() if "default" in one}
    values |= {"image": "flow", "name": "run", "labels": {"a": "b"}, "command": ["prefect"]}
    values["env"] = [{"name": name, "value": value} for name, value in values["env"].items()]
    made = apply_values(template["job_configuration"], values)["job_manifest"]
    V1Job.model_validate(made)
    [container] = made["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in STAGES:
        (GOLDEN / f"{each.name}.json").write_text(json.dumps(job(each), indent=2) + "\n")
