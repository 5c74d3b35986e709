"""One Prefect server for all tests of a session, and an empty database for those that start their own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.prefect_server import PREFECT_SETTINGS, _server_environment, answers, listen

DATABASE = "prefect.db"
STARTS_WITHIN_SECONDS = 120


@dataclass(frozen=True)
class SessionServer:
    """A server that runs."""

    url: str
    empty: Path
    """Its database as it was before anybody used it."""

    def seed(self, home: Path) -> None:
        """Spare the server that starts with this Prefect home the making of tables, half of its start."""
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.empty, home / DATABASE)


@contextmanager
def prefect_server(home: Path) -> Iterator[SessionServer]:
    """The program that builds bring along, for as long as the session takes."""
    with listen() as socket:
        port, descriptor = socket.getsockname()[1], socket.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.prefect_server", str(descriptor)],
            stdin=subprocess.PIPE,
            env=os.environ | PREFECT_SETTINGS | {"PREFECT_HOME": str(home)} | _server_environment(port),
            pass_fds=[descriptor],
            start_new_session=True,
        )
        try:
            yield _ready(process, f"http://127.0.0.1:{port}/api", home)
        finally:
            process.terminate()
            process.wait()


def _ready(process: subprocess.Popen[bytes], url: str, home: Path) -> SessionServer:
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while not answers(url):
        assert process.poll() is None and time.monotonic() < deadline, "the Prefect server did not start"
        time.sleep(0.1)
    empty = home / "empty.db"
    with closing(sqlite3.connect(home / DATABASE)) as used, closing(sqlite3.connect(empty)) as copy:
        used.backup(copy)
    return SessionServer(url, empty)
