"""What travels to a worker on another host and back: a stage to run, and how that ended. Never data.

An order names its inputs as artifacts of the store, and carries everything that the fingerprint covers: the
worker computes its own and refuses where the two differ, so that no host can make something else under the
same name.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed
from pydantic import BaseModel, ConfigDict, Field

from data_contracts.manifest import KeyParts
from flows.job import Job
from flows.plan import Packages
from flows.stores import described, store_name
from stages.catalog import STAGES
from stages.runtime.errors import (
    ContractError,
    GlassworksError,
    RetryableError,
    StopRequested,
    UserError,
)
from stages.runtime.fingerprint import REPOSITORY, explain_difference, key_parts
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store, read_manifest

#: On another host, how the stage is started.
Inner = Literal["process", "docker"]
HINT = "\n  hint: "
SAME_STORE = "every host must see the same store: one folder under the same path (NFS), or s3://BUCKET/PREFIX"
SAME_CODE = f"all hosts need the same commit and packages: git -C {REPOSITORY} status; make install"
KINDS = {
    kind.__name__: kind for kind in (GlassworksError, UserError, ContractError, RetryableError, StopRequested)
}


class PartReference(BaseModel):
    """One part of an artifact in the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: str
    part: str


class StageOrder(BaseModel):
    """One stage to run, for whichever worker takes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    config: dict[str, Any]
    """Its settings."""
    key: KeyParts
    """Everything that the fingerprint of its artifact covers."""
    inputs: dict[str, PartReference]
    """Role -> the part to read."""
    store: str
    """Address of the store that holds the inputs and gets the artifact."""
    backend: Inner = "process"
    """How the worker starts it."""
    limits: tuple[str, ...] = ()
    """What a container may use, one each, such as pretrain.memory_gib=16."""
    force: bool = False
    niceness: int = Field(default=0, ge=0, le=19)
    environment: dict[str, str] = Field(default_factory=dict)


def order_of(job: Job, backend: Inner, limits: tuple[str, ...]) -> StageOrder:
    """The order for a job of the controller's."""
    return StageOrder(
        stage=job.spec.name,
        config=job.config.model_dump(mode="json"),
        key=job.key,
        inputs={role: _reference(folder) for role, folder in job.inputs.items()},
        store=store_name(job.store),
        backend=backend,
        limits=limits,
        force=job.force,
        niceness=job.niceness,
        environment=dict(job.environment),
    )


def _reference(folder: Path) -> PartReference:
    """By its place in the store: what is in shared storage need not be on this host."""
    stage, fingerprint, part = folder.parts[-3:]
    return PartReference(stage=stage, fingerprint=fingerprint, part=part)


def inputs_of(order: StageOrder, store: Store) -> dict[str, Artifact]:
    """Role -> the artifact to read from; of one in shared storage only its manifest is here.

    Raises UserError where this host does not see them.
    """
    return {role: _artifact(store, reference) for role, reference in order.inputs.items()}


def job_of(
    order: StageOrder,
    store: Store,
    artifacts: Mapping[str, Artifact],
    packages: Packages,
    run_id: str,
    *,
    alone: bool,
) -> Job:
    """The job on this host; where stages run one by one (`alone`) nothing needs to stand back.

    Raises UserError where this host would make something else of the same inputs.
    """
    spec = _spec(order.stage)
    config = spec.parse_config(order.config)
    digests = {role: artifacts[role].manifest.parts[r.part].digest for role, r in order.inputs.items()}
    found = key_parts(spec, config, digests, packages=packages(spec))
    if found != order.key:
        raise _differs(order.stage, explain_difference(order.key, found))
    return Job(
        spec,
        config,
        order.key,
        {role: artifacts[role].part(reference.part) for role, reference in order.inputs.items()},
        store,
        force=order.force,
        niceness=0 if alone else order.niceness,
        run_id=run_id,
        environment={} if alone else order.environment,
    )


def _spec(name: str) -> StageSpec:
    for spec in STAGES:
        if spec.name == name:
            return spec
    raise UserError(f"{host_name()} knows no stage {name!r}: it has other code", hint=SAME_CODE)


def _artifact(store: Store, reference: PartReference) -> Artifact:
    """Only its manifest is read here: the stage itself checks every byte of what it reads."""
    manifest = read_manifest(described(store, reference.stage, reference.fingerprint))
    if manifest is None or reference.part not in manifest.parts:
        name, place = f"{reference.stage}/{reference.fingerprint}", store_name(store)
        raise UserError(f"{host_name()} does not see {name} in {place}", hint=SAME_STORE)
    return Artifact(store.artifact_dir(reference.stage, reference.fingerprint), manifest)


def _differs(stage: str, lines: list[str]) -> UserError:
    found = "\n  ".join(lines)
    return UserError(
        f"{host_name()} would make another {stage} than the one that was asked for:\n  {found}",
        hint=SAME_CODE,
    )


def host_name() -> str:
    """This host, as its users call it."""
    return socket.gethostname()


def state_of(error: GlassworksError) -> State[Any]:
    """The error as the end of a flow run: its kind is the state's name, its words are the message."""
    how = Cancelled if isinstance(error, StopRequested) else Failed
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in KINDS)
    return how(name=kind, message=str(error))


def error_of(stage: str, state: State[Any], host: str) -> GlassworksError:
    """The error that a flow run ended with, in the words in which the stage's own host said it."""
    where = host or "a worker"
    message = state.message or ""
    if (kind := KINDS.get(state.name or "")) is not None:
        said, _, hint = message.rpartition(HINT) if HINT in message else (message, "", "")
        return kind(said, hint=hint)
    if state.is_cancelled():
        return RetryableError(
            f"{stage} was cancelled on {where}; its checkpoint is kept", hint="build again to go on"
        )
    return GlassworksError(
        f"{where} could not run {stage}: {message}", hint=f"see the worker's log on {where}"
    )
