"""A process stops by itself when the one that started it is gone, even by `kill -9`.

A stage has the stdin lease: it is asked to stop, and saves. The workers of a stage end with it at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

GRACE_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


def hold_stdin_lease() -> threading.Thread:
    """Watch standard input in a daemon thread; at its end ask this process to stop, later make it.

    The controller holds the other end of the pipe and never writes. The kernel closes it when the controller
    dies, whatever killed it.
    """
    watcher = threading.Thread(target=_watch, name="stdin-lease", daemon=True)
    watcher.start()
    return watcher


def _watch() -> None:
    while True:
        try:
            if not os.read(0, 4096):
                break
        except OSError:
            break
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(75)


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent is gone (Linux); elsewhere only look once.

    For the workers of a stage: what they hold together ends as a whole, and no two builds meet in one folder.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before it could be watched
        os._exit(75)
