"""What Prefect calls when a flow run was cancelled or its process is gone: stop what containers it left."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from flows.backends import backend_of_worker
from stages.runtime.errors import GlassworksError


def stop_containers(flow: Any, flow_run: Any, state: Any) -> None:
    """Stop what runs under the name of `flow_run`. Prefect passes its arguments by these names.

    The lease ends stages too when their controller dies. This is for a controller that hangs, or that was
    killed between creating a container and starting it.
    """
    from flows.containers_left import remove_containers
    from flows.docker_engine import Engine

    asked = flow_run.parameters or {}
    with suppress(GlassworksError):  # without an engine there are no containers
        if backend_of_worker(asked.get("order", asked).get("backend", "default")).endswith("docker"):
            remove_containers(Engine(), run_id=flow_run.name)
