"""What the doctor finds in a Prefect installation that is not as it should be, each with what mends it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from flows.deployments import Deployments
from flows.prefect_rest import PrefectRest
from flows.service_checks import check_clock, check_prefect, check_services
from flows.services import Service, ServiceBook, pause, stop
from stages.runtime.errors import RetryableError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
NIGHTLY = {
    "id": "d",
    "flow_id": "f",
    "name": "nightly",
    "paused": False,
    "schedules": [{"active": True, "schedule": {"cron": "30 2 * * *"}}],
}


class FakeServer(ThreadingHTTPServer):
    """Answers as a Prefect server would; `replies` says what, by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seconds_ahead = 0.0
        self.password: str | None = None
        self.busy_for = 0
        self.replies: dict[str, Any] = {
            "/api/health": True,
            "/api/admin/version": metadata.version("prefect"),
            "/api/work_pools/glassworks": {"is_paused": False},
            "/api/flows/filter": [{"id": "f", "name": "build-llm"}],
            "/api/deployments/filter": [NIGHTLY],
            "/api/flow_runs/filter": [{"expected_start_time": "2026-05-01T02:30:00Z"}],
        }

    @property
    def url(self) -> str:
        """Its API."""
        return f"http://127.0.0.1:{self.server_address[1]}/api"


class Handler(BaseHTTPRequestHandler):
    """GET and POST alike."""

    server: FakeServer

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        known = self.path in self.server.replies
        is_welcome = self.server.password in (None, self.headers["Authorization"])
        is_busy, self.server.busy_for = self.server.busy_for > 0, self.server.busy_for - 1
        self.send_response(503 if is_busy else 401 if not is_welcome else 200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.replies.get(self.path, "not there")).encode())

    do_POST = do_GET

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + self.server.seconds_ahead)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def running(tmp_path: Path, server: FakeServer) -> Iterator[dict[str, Service]]:
    """Stand-ins for a server and a worker that `up` started."""
    book = ServiceBook(tmp_path / "prefect")
    with book.held():
        about = {"api_url": server.url}
        found = {name: book.start(name, SLEEP, {}, about) for name in ("server", "worker")}
    yield found
    for service in found.values():
        stop(service)


def test_nothing_was_started(tmp_path: Path, server: FakeServer) -> None:
    check = check_services(tmp_path)
    assert check.passed and "glassworks up" in check.found


@pytest.mark.usefixtures("running")
def test_all_is_well(tmp_path: Path, server: FakeServer) -> None:
    assert check_services(tmp_path).passed
    assert check_prefect(tmp_path).found == "the one that glassworks up started"


@pytest.mark.parametrize("name", ["server", "worker"])
def test_one_has_ended(tmp_path: Path, running: dict[str, Service], name: str) -> None:
    stop(running[name])
    check = check_services(tmp_path)
    assert not check.passed
    assert f"the {name} (pid {running[name].pid}) has ended" in check.found
    assert check.remedy == "glassworks up"


@pytest.mark.parametrize("name", ["server", "worker"])
def test_one_stands_still(tmp_path: Path, running: dict[str, Service], name: str) -> None:
    pause(running[name])
    deadline = time.monotonic() + 30
    while not running[name].stands_still:
        assert time.monotonic() < deadline
    check = check_services(tmp_path)
    assert not check.passed and check.remedy == "glassworks up"
    assert f"the {name} (pid {running[name].pid}) stands still" in check.found


def test_a_host_that_only_helps(tmp_path: Path, server: FakeServer) -> None:
    book = ServiceBook(tmp_path / "prefect")
    with book.held():
        helper = book.start("stage-worker", SLEEP, {}, {"api_url": server.url})
    check = check_services(tmp_path)
    assert check.passed and check.found == f"takes stages of builds at {server.url}"
    stop(helper)
    check = check_services(tmp_path)
    assert not check.passed and check.remedy == f"glassworks join {server.url}"


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("path", "reply", "found", "remedy"),
    [
        ("/api/admin/version", "3.7.2", "the server is Prefect 3.7.2", "glassworks down, then glassworks up"),
        ("/api/work_pools/glassworks", {"is_paused": True}, "is paused", "work-pool resume glassworks"),
        ("/api/flow_runs/filter", [], "build-llm/nightly: scheduled, but no run", "glassworks down"),
    ],
)
def test_what_the_server_says(
    tmp_path: Path, server: FakeServer, path: str, reply: Any, found: str, remedy: str
) -> None:
    server.replies[path] = reply
    check = check_services(tmp_path)
    assert not check.passed
    assert found in check.found and remedy in check.remedy


def test_a_server_with_a_password(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.password = f"Basic {b64encode(b'admin:sand').decode()}"
    with pytest.raises(RetryableError, match="401"):
        PrefectRest(server.url).version()
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:sand")
    assert PrefectRest(server.url).version() == metadata.version("prefect")


def test_a_server_whose_database_is_locked(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.prefect_rest.PAUSES_SECONDS", (0.01,) * 3)
    server.busy_for = 3
    assert PrefectRest(server.url).version() == metadata.version("prefect")
    server.busy_for = 4
    with pytest.raises(RetryableError, match=r"GET .*/admin/version was refused \(503\)"):
        PrefectRest(server.url).version()
    assert server.busy_for == 0


@pytest.mark.usefixtures("running")
def test_a_server_that_hangs(tmp_path: Path, server: FakeServer) -> None:
    del server.replies["/api/health"]
    check = check_services(tmp_path)
    assert not check.passed
    assert "does not answer" in check.found and check.remedy == "glassworks up"


def test_somebody_elses_server_of_another_version(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    assert check_prefect(tmp_path).passed
    server.replies["/api/admin/version"] = "3.7.2"
    check = check_prefect(tmp_path)
    assert not check.passed
    assert "is 3.7.2, here is" in check.found and "pip install prefect==" in check.remedy


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(("ahead", "found"), [(3600.0, "1h00m ahead of"), (-3600.0, "1h00m behind")])
def test_a_clock_that_is_an_hour_off(tmp_path: Path, server: FakeServer, ahead: float, found: str) -> None:
    assert check_clock(tmp_path).passed
    server.seconds_ahead = ahead
    check = check_clock(tmp_path)
    assert not check.passed and not check.optional
    assert f"server's is {found} this machine's" in check.found and "timedatectl" in check.remedy


def test_a_run_of_the_future(tmp_path: Path, server: FakeServer) -> None:
    (tmp_path / "runs").mkdir()
    assert check_clock(tmp_path).passed
    (tmp_path / "runs" / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(time.time() + 3600))}-ab.json").touch()
    check = check_clock(tmp_path)
    assert not check.passed and check.optional
    assert "is 1h00m ahead of this machine's" in check.found


def test_a_schedule_that_was_paused(tmp_path: Path, server: FakeServer) -> None:
    deployments = Deployments(PrefectRest(server.url), tmp_path)
    [(state, about)] = deployments.schedules()
    assert (state, about) == ("is active", "build-llm/nightly: 30 2 * * *; next run 2026-05-01 02:30 UTC")
    server.replies["/api/deployments/filter"] = [NIGHTLY | {"paused": True}]
    [(state, about)] = deployments.schedules()
    assert state == "is paused" and "resume it in the UI" in about


def test_no_server_at_all(tmp_path: Path) -> None:
    with pytest.raises(RetryableError, match="does not answer") as caught:
        PrefectRest("http://127.0.0.1:9/api").version()
    assert "glassworks up" in caught.value.hint


def test_nobody_is_stopped_by_looking(running: dict[str, Service], tmp_path: Path) -> None:
    check_services(tmp_path)
    assert all(service.alive for service in running.values())
    assert subprocess.run(["kill", "-0", str(running["worker"].pid)], check=False).returncode == 0
