"""The engine is killed while a stage runs. Only where a variable allows it: other containers die too."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

ALLOWED = "GLASSWORKS_MAY_KILL_DOCKER"
PID_FILE = Path("/var/run/docker.pid")


def answers(glassworks: Any) -> bool:
    """Whether the engine is back."""
    try:
        return bool(glassworks.engine.api.ping())
    except Exception:
        return False


@pytest.mark.skipif(ALLOWED not in os.environ, reason=f"kills dockerd: set {ALLOWED}=1 where that is no loss")
def test_kill_9_of_the_engine_keeps_the_checkpoint_and_leaves_nothing(training: Any, tmp_path: Path) -> None:
    glassworks, build = training
    os.kill(int(PID_FILE.read_text()), signal.SIGKILL)
    output, _ = build.communicate(timeout=90)
    with (tmp_path / "dockerd.log").open("w") as log:
        # It outlives the test, as the engine that it replaces would have.
        subprocess.Popen(
            ["dockerd"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    glassworks.wait_until(lambda: answers(glassworks), "the engine to come back")
    glassworks.wait_until(lambda: not glassworks.containers(), "the container to be gone", seconds=60)
    assert build.returncode == 75, output
    assert "the Docker Engine has gone while the stage ran" in output
    assert list((glassworks.store.root / "work" / "pretrain").glob("*/checkpoints/*"))
