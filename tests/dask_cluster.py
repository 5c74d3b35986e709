"""A Dask cluster of two nodes on this machine, each a process with a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STARTS_WITHIN_SECONDS = 60


@dataclass(frozen=True)
class Cluster:
    """The scheduler's address, and the nodes' processes."""

    address: str
    nodes: Sequence[subprocess.Popen[bytes]]

    def kill_node(self, number: int) -> None:
        """End a node as a power cut does: everything that runs there at once, by SIGKILL."""
        os.killpg(self.nodes[number].pid, signal.SIGKILL)


@contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    """Run a scheduler and two workers, each a group of processes."""
    where, log = folder / "scheduler.json", folder / "log"
    dask = [sys.executable, "-m", "dask"]
    scheduler = [
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--scheduler-file",
        str(where),
        "--no-show",
    ]
    worker = ["worker", "--scheduler-file", str(where), "--nthreads", "1", "--nanny", "--no-dashboard"]
    nodes = [["--name", f"node-{n}", "--local-directory", str(folder / f"node-{n}")] for n in range(2)]
    programs = [
        [*dask, *scheduler, "--no-dashboard", "--no-show"],
        *([*dask, *worker, *node] for node in nodes),
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with log.open("wb") as output:
        running = [
            subprocess.Popen(
                p, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            for p in programs
        ]
    try:
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not where.exists():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Cluster(json.loads(where.read_text())["address"], running[1:])
    finally:
        for program in reversed(running):
            program.terminate()
        for program in running:
            program.wait(timeout=30)
