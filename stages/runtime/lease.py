"""The stdin lease: a stage stops by itself when the process that started it is gone, even by `kill -9`."""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE_SECONDS = 30.0


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
