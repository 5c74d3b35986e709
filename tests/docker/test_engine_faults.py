"""The engine is killed while a stage runs. Only where a variable allows it: other containers die too."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flows.docker_engine import engine_address

ALLOWED = "GLASSWORKS_MAY_KILL_DOCKER"
GONE_SECONDS = 30  # as for a container, though nobody is there to remove it


@dataclass(frozen=True)
class Daemon:
    """The dockerd that listens on DOCKER_HOST."""

    pid: int
    command: list[str]
    log: Path

    @classmethod
    def that_answers(cls) -> Daemon:
        """Ask the kernel who listens: where the pid file lies depends on how it was started."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(urlsplit(engine_address()).path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        process = Path("/proc", str(pid))
        command = process.joinpath("cmdline").read_text().rstrip("\0").split("\0")
        if Path(command[0]).name != "dockerd":
            pytest.skip(f"the engine's socket is held by {command[0]}, which would start it again by itself")
        return cls(pid, command, process.joinpath("fd", "1").readlink())

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def is_gone(self) -> bool:
        """Whether its parent has noticed, too: while it has not, another dockerd takes it for running."""
        return not Path("/proc", str(self.pid)).exists()

    def start_again(self) -> None:
        """The same command, with the same log; it outlives the test as the other would have."""
        with self.log.open("a") as log:
            subprocess.Popen(
                ["setsid", "--fork", *self.command], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            ).wait()


def answers(glassworks: Any) -> bool:
    """Whether the engine is back."""
    try:
        return bool(glassworks.engine.api.ping())
    except Exception:
        return False


@contextmanager
def killed(daemon: Daemon, glassworks: Any) -> Iterator[None]:
    """No engine meanwhile; the next one answers afterwards, whatever happens: other tests need it."""
    daemon.kill()
    try:
        yield
    finally:
        glassworks.wait_until(lambda: daemon.is_gone, "the engine to be gone")
        daemon.start_again()
        glassworks.wait_until(lambda: answers(glassworks), "the engine to come back")


@pytest.mark.skipif(ALLOWED not in os.environ, reason=f"kills dockerd: set {ALLOWED}=1 where that is no loss")
def test_kill_9_of_the_engine_then_the_same_bytes(training: Any, begun: Any) -> None:
    glassworks, daemon = training.glassworks, Daemon.that_answers()
    [container] = glassworks.containers("pretrain")
    stage = Path("/proc", str(glassworks.engine.api.inspect_container(container["Id"])["State"]["Pid"]))
    with killed(daemon, glassworks):
        glassworks.wait_until(lambda: not stage.exists(), "the stage to be stopped", seconds=GONE_SECONDS)
        output, _ = training.build.communicate(timeout=90)
    glassworks.wait_until_gone()
    assert training.build.returncode == 75, output
    assert "the Docker Engine has gone while the stage ran" in output
    assert training.kept_its_checkpoint_only()
    training.check_that_it_goes_on(begun)
