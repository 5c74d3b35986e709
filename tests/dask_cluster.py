"""A Dask cluster of two nodes on this machine, each a process with a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STARTS_WITHIN_SECONDS = 60


@contextmanager
def two_nodes(folder: Path) -> Iterator[str]:
    """Run a scheduler and two workers; gives the scheduler's address."""
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
            subprocess.Popen(p, cwd=folder, env=environment, stdout=output, stderr=output) for p in programs
        ]
    try:
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not where.exists():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield json.loads(where.read_text())["address"]
    finally:
        for program in reversed(running):
            program.terminate()
        for program in running:
            program.wait(timeout=30)
