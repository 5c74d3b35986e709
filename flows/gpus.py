"""How many GPUs a stage asks for by its settings, and whether this host has them. Without Prefect."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from flows.job import Backend
from flows.plan import PlannedStage
from flows.settings import BuildSettings
from stages.runtime.errors import UserError
from stages.runtime.spec import StageConfig, StageSpec

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs that stages may use: what CUDA_VISIBLE_DEVICES names, else every NVIDIA device."""
    if (named := os.environ.get(GPU_VARIABLE)) is not None:
        names = (name.strip() for name in named.split(","))
        return [name for name in dict.fromkeys(names) if name not in ("", "-1")]
    devices = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(devices, key=int)


def gpus_asked(config: StageConfig) -> int | Literal["all"]:
    """The setting `gpus`; a stage that has none takes one."""
    asked: int | Literal["all"] = getattr(config, "gpus", 1)
    return asked


def asks_for_several(config: StageConfig) -> bool:
    """Whether the stage may start more than one process on its machine."""
    return gpus_asked(config) != 1 or _of(config, "processes") > 1


def nodes_asked(config: StageConfig) -> int:
    """The setting `nodes`: machines that work together; a stage that has none is for one."""
    return _of(config, "nodes")


def gpus_to_hold(spec: StageSpec, config: StageConfig, visible: Sequence[str]) -> int:
    """How many of the visible GPUs the stage gets. On a host without any that is none, whatever it asks for:
    the stage itself says whether it runs on the processor.

    Raises:
        UserError: it asks for more than there are.
    """
    if spec.gpu == "none" or not visible:
        return 0
    asked = gpus_asked(config)
    wanted = len(visible) if asked == "all" else asked
    if wanted > len(visible):
        host, named = socket.gethostname(), ",".join(visible)
        who = f"{GPU_VARIABLE} on {host} names" if GPU_VARIABLE in os.environ else f"{host} has"
        raise UserError(
            f"[{spec.name}] gpus is {wanted}, and {who} {len(visible)} ({named}); expected at most that many",
            hint=f"--set {spec.name}.gpus={len(visible)}, or --set {spec.name}.gpus=all for what there is",
        )
    return wanted


def asks_for_devices(settings: BuildSettings) -> bool:
    """Whether any stage asks for more than one GPU of one machine; most builds need not be planned for it."""
    configs = settings.configs.values()
    return any(gpus_asked(config) != 1 or nodes_asked(config) > 1 for config in configs)


def refuse_devices(planned: Iterable[PlannedStage], settings: BuildSettings, backend: Backend) -> None:
    """Raises UserError where a stage that will run asks for GPUs or machines that it cannot have."""
    for stage in planned:
        if stage.outcome != "RUN":
            continue
        config = settings.configs[stage.name]
        if (nodes := nodes_asked(config)) > 1 and backend.name.endswith("docker"):
            raise UserError(
                f"[{stage.name}] nodes is {nodes}, and from a container no other machine is reached",
                hint=f"--backend process, or run the stage by itself: stages/{stage.name}/README.md",
            )
        if not backend.elsewhere:  # other hosts see to their own
            gpus_to_hold(stage.spec, config, visible_gpus())


def _of(config: StageConfig, name: str) -> int:
    """A setting that counts, and is one where a stage does not have it."""
    count: int = getattr(config, name, 1)
    return count
