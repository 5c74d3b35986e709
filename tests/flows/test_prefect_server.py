"""The server that a build brings along: one port each, started again when killed, gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows import prefect_server
from flows.prefect_server import PrefectServer, answers, listen, profile_api_url
from flows.services import ServiceBook, stop
from stages.runtime.errors import RetryableError, UserError

#: Answers every request on an open socket, as the real server would its health check.
STAND_IN = """
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> subprocess.Popen[bytes]:
        descriptor = self._socket.fileno()
        command = [sys.executable, "-c", STAND_IN, str(descriptor)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[descriptor])

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(PrefectServer, "_start", start)


@pytest.mark.usefixtures("stand_in")
def test_a_killed_server_is_started_again(tmp_path: Path) -> None:
    with PrefectServer(tmp_path) as server:
        server.wait()
        first = server._process
        assert first is not None and os.environ["PREFECT_API_URL"] == server.api_url
        os.kill(first.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while server._process is first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert answers(server.api_url)
        second, url = server._process, server.api_url
    assert second is not None and second.poll() is not None
    assert "PREFECT_API_URL" not in os.environ
    assert not answers(url)


@pytest.mark.usefixtures("stand_in")
def test_a_server_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import sys; print('no database'); sys.exit(3)"

    def start(self: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", broken], stdout=self._log)

    monkeypatch.setattr(PrefectServer, "_start", start)
    with PrefectServer(tmp_path) as server, pytest.raises(RetryableError, match="no database"):
        server.wait()


def test_two_at_once_have_a_port_each() -> None:
    with listen() as first, listen() as second:
        assert first.getsockname()[1] != second.getsockname()[1]
        with pytest.raises(UserError, match="is taken"):
            listen(first.getsockname()[1])


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(prefect_server, "REACHABLE_SECONDS", 0.2)
    with PrefectServer(tmp_path) as server:
        with pytest.raises(UserError, match="does not answer") as caught:
            server.wait()
    assert "unset PREFECT_API_URL" in caught.value.hint


def test_the_server_that_up_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    url = "http://127.0.0.1:4299/api"
    book = ServiceBook(tmp_path)
    with book.held():
        service = book.start(
            "server", [sys.executable, "-c", "import time; time.sleep(60)"], {}, {"api_url": url}
        )
    try:
        server = PrefectServer(tmp_path)
        assert (server.is_ours, server.api_url) == (False, url)
    finally:
        stop(service)
        os.environ.pop("PREFECT_API_URL", None)  # monkeypatch would put back what the code above has set
    assert PrefectServer(tmp_path).is_ours


def test_the_server_of_the_users_profile(tmp_path: Path) -> None:
    assert profile_api_url(tmp_path) is None
    profiles = 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:4200/api"\n'
    (tmp_path / "profiles.toml").write_text(profiles)
    assert profile_api_url(tmp_path) == "http://127.0.0.1:4200/api"
    (tmp_path / "profiles.toml").write_text('active = "mine"\n[profiles.mine]\n')
    assert profile_api_url(tmp_path) is None


COLLECTING = """
import threading, time
from flows import prefect_server
prefect_server.COLLECT_EVERY_SECONDS = 0.01
prefect_server.collect_garbage_elsewhere()
threads = []
class Garbage:
    def __init__(self): self.itself = self
    def __del__(self): threads.append(threading.current_thread())
deadline = time.monotonic() + 30
while len(threads) < 10_000 and time.monotonic() < deadline:
    Garbage()
assert len(threads) >= 10_000 and threading.main_thread() not in threads
"""


def test_the_servers_event_loop_collects_no_garbage(repository: Path) -> None:
    """It would wait for the database there, and whoever has the database for it."""
    subprocess.run([sys.executable, "-c", COLLECTING], cwd=repository, check=True, timeout=60)
