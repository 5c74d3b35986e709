"""Workers end with the process that started them, whatever ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

WORKER = "import os, sys, time; from stages.runtime.lease import end_with; end_with(int(sys.argv[1]))\n"
WAIT = "print(os.getpid(), flush=True); time.sleep(60)"
PARENT = (
    f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER + WAIT!r}, str(os.getpid())])"
)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_kill_9_of_the_parent_ends_the_worker() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(worker)


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER + WAIT, "1234567"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (75, b"")
