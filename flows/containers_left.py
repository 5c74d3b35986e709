"""Containers that are left when whoever started them was killed at a bad moment, found by their labels."""

from __future__ import annotations

from pathlib import Path

from flows.container_run import stop_and_remove
from flows.container_spec import RUN_LABEL, STORE_LABEL
from flows.docker_engine import Engine, in_our_words


def remove_containers(engine: Engine, *, store: Path | None = None, run_id: str | None = None) -> int:
    """Stop and remove the containers of a store, a run, or a run on a store; returns how many there were.

    They get the time for a checkpoint, all at once.
    """
    wanted = [f"{STORE_LABEL}={store}"] if store else []
    wanted += [f"{RUN_LABEL}={run_id}"] if run_id else []
    assert wanted, "without a label every container would be meant"
    with in_our_words():
        found = engine.api.containers(all=True, filters={"label": wanted})
        for container in found:
            if container["State"] == "running":
                engine.api.kill(container["Id"], signal="SIGTERM")
        for container in found:
            stop_and_remove(engine, container["Id"])
    return len(found)
