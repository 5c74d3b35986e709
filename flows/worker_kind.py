"""The workers that a host may have: one that runs builds, and one that runs stages of builds elsewhere."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from flows.backends import backend_of_worker
from flows.deployments import POOL, STAGE_POOL
from stages.runtime.fingerprint import REPOSITORY

#: For the stages' worker: how many it runs at once. Alone, a stage stands back for nobody.
AT_ONCE = "GLASSWORKS_STAGES_AT_ONCE"
STAGES_SERVICE = "stage-worker"


@dataclass(frozen=True)
class WorkerKind:
    """One of the two workers that a host may have, each once."""

    service: str
    pool: str
    title: str
    at_once: int = 0
    """How many runs it takes at once; 0 for any number."""

    @property
    def name(self) -> str:
        """What Prefect's pages call it."""
        return f"{self.title} on {socket.gethostname()}"

    @property
    def command(self) -> list[str]:
        """What starts it."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
        command += ["--pool", self.pool, "--name", self.name]
        return command + ["--limit", str(self.at_once)] * (self.at_once > 0)

    @property
    def about(self) -> dict[str, str]:
        """What one that runs must have been started with, to be the right one."""
        if self.pool == POOL:
            return {"backend": backend_of_worker("default")}
        return {"at_once": str(self.at_once)} if self.at_once else {}

    @property
    def where(self) -> str:
        """What `up` says of it."""
        return ", ".join([f"pool {self.pool}", *(f"{key} {value}" for key, value in self.about.items())])

    @property
    def environment(self) -> dict[str, str]:
        """What its runs find: this Python and this checkout, wherever they lie on this host."""
        if self.pool != STAGE_POOL:
            return {}
        bin_folder, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
        ours = {"PATH": f"{bin_folder}{os.pathsep}{path}", "PYTHONPATH": str(REPOSITORY)}
        return ours | {AT_ONCE: str(self.at_once)}


BUILDS = WorkerKind("worker", POOL, "glassworks")
