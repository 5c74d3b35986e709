"""Which backend runs the stages, by name; and limits for containers, as `--limit` says them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Literal, cast, get_args

from flows.job import Backend
from flows.launch import ProcessBackend
from flows.launch_on_workers import WorkersBackend
from flows.settings import parse_change
from stages.catalog import STAGES
from stages.runtime.errors import UserError, did_you_mean
from stages.runtime.spec import Limits

BackendName = Literal["process", "docker", "workers", "workers-docker"]
DEFAULT_BACKEND: BackendName = "process"
AskedBackend = Literal["default", "process", "docker", "workers", "workers-docker"]
"""What a form offers: `default` is what the worker is set to."""
VARIABLE = "GLASSWORKS_BACKEND"


def backend_of_worker(asked: AskedBackend) -> BackendName:
    """The backend asked for, else the one that the worker is set to. Raises UserError for an unknown one."""
    if asked != "default":
        return asked
    found = os.environ.get(VARIABLE) or DEFAULT_BACKEND
    if found not in get_args(BackendName):
        known = ", ".join(get_args(BackendName))
        raise UserError(f"{VARIABLE}={found} is no backend", hint=f"backends: {known}")
    return cast(BackendName, found)


def backend_named(name: BackendName, limits: Iterable[str] = ()) -> Backend:
    """The backend of that name; `workers` start processes, `workers-docker` containers.

    `limits` are like `pretrain.memory_gib=16`. UserError for a wrong one.
    """
    listed = tuple(limits)
    inner = _on_a_host(name.removeprefix("workers-"), parse_limits(listed))
    return WorkersBackend(inner, listed) if name.startswith("workers") else inner


def _on_a_host(name: str, limits: dict[str, Limits]) -> Backend:
    if name != "docker":
        if limits:
            raise UserError("--limit is for containers", hint="add --backend docker or workers-docker")
        return ProcessBackend()
    from flows.launch_container import DockerBackend  # the SDK takes a third of a second

    return DockerBackend(limits)


def parse_limits(changes: Iterable[str]) -> dict[str, Limits]:
    """Stage -> its limits, for the stages that are named. UserError for an unknown one or no number."""
    limits: dict[str, Limits] = {}
    known = [each.name for each in fields(Limits)]
    defaults = {spec.name: spec.limits for spec in STAGES}
    for change in changes:
        stage, name, value = parse_change(change)
        if name not in known:
            guess = did_you_mean(name, known)
            raise UserError(f"there is no limit {name!r}{guess}", hint=f"limits: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"--limit {change!r}: expected a number, found {value!r}")
        before = limits.get(stage, defaults[stage])
        limits[stage] = replace(before, **{name: type(getattr(before, name))(value)})
    return limits
