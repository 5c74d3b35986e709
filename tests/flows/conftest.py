"""One Prefect server for all tests of the flows, and the command line with five dummy stages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.context import _temporary_global_settings_context, get_settings_context
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import object_storage
from tests.session_server import SessionServer

DUMMY_STAGES = Path(__file__).with_name("dummy_stages.py")


@pytest.fixture(scope="session")
def prefect_api(session_server: SessionServer) -> Iterator[str]:
    """The URL of a server that the whole session shares; flows in this process use it by themselves."""
    with temporary_settings({PREFECT_API_URL: session_server.url}):
        with _temporary_global_settings_context(get_settings_context()):  # for threads
            yield session_server.url


class DummyCli:
    """`glassworks` with the stages first, second, left, right and last."""

    def __init__(self, folder: Path, api_url: str | None) -> None:
        self.store = folder / "store"
        self.preset = folder / "dummy.toml"
        self.preset.write_text("[left]\nsteps = 3\n")
        self._environment = os.environ | {"PREFECT_HOME": str(folder / "home")}
        self._environment.pop("PREFECT_API_URL", None)
        if api_url is not None:
            self._environment["PREFECT_API_URL"] = api_url

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of `glassworks NAME`."""
        preset = ["--preset", str(self.preset)] if name in ("build", "plan") else []
        asked = [name, *arguments, *preset, "--store", str(self.store)]
        return [sys.executable, str(DUMMY_STAGES), "glassworks", *asked]

    def __call__(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(name, *arguments),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, name: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it in a session of its own, as a terminal would."""
        return subprocess.Popen(
            self.command(name, *arguments),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )


@pytest.fixture
def glassworks(tmp_path: Path, prefect_api: str) -> DummyCli:
    """The command line on a server that runs already."""
    return DummyCli(tmp_path, prefect_api)


@pytest.fixture
def lonely_glassworks(tmp_path: Path, session_server: SessionServer) -> DummyCli:
    """The command line where no server runs."""
    session_server.seed(tmp_path / "home")
    return DummyCli(tmp_path, None)


S3_SERVER = Path(__file__).with_name("s3_server.py")
S3_KEY = "glassworks-test"


@dataclass(frozen=True)
class S3:
    """An S3 server and a bucket of its own for the test; the usual variables name them."""

    port: int
    url: str
    """Of the store: s3://BUCKET/PREFIX."""


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of an S3 server that the whole session shares."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(S3_SERVER), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not listens(port):
            assert server.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


CLIENTS: dict[tuple[str | None, ...], Any] = {}
new_client = object_storage._file_system


def s3_client() -> Any:
    """One client per server and key: each takes a sixth of a second of a processor."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return CLIENTS.setdefault(tuple(map(os.environ.get, names)), new_client())


@pytest.fixture
def s3(s3_port: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3:
    """A new bucket, and the variables with which everything that the test starts finds it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("GLASSWORKS_CLAIM_SECONDS", "2")
    monkeypatch.setenv("GLASSWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_storage, "WAITS_SECONDS", (0.05, 0.05, 0.05))
    monkeypatch.setattr(object_storage, "_file_system", s3_client)
    bucket = f"test-{abs(hash(request.node.nodeid))}"
    object_storage.ObjectStorage(f"s3://{bucket}")._ask("create_bucket")
    return S3(s3_port, f"s3://{bucket}/models")


CHUNK = 65536


class CuttingProxy:
    """Forwards to a port. Once so many bytes have gone up or down, closes every line and takes no more."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.sent = {"up": 0, "down": 0}
        self.limits: dict[str, int] = {}
        self.seconds_per_chunk = 0.0
        self._cut = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def is_cut(self) -> bool:
        """Whether the line is down."""
        return self._cut.is_set()

    def cut_after(self, **limits: int) -> None:
        """Cut the line when so many more bytes have gone `up` or `down`."""
        self.limits = {way: self.sent[way] + limit for way, limit in limits.items()}

    def mend(self) -> None:
        """Put the line up again, for good."""
        self.limits = {}
        self._cut.clear()

    def close(self) -> None:
        """End."""
        self._cut_now()
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.is_cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                for way, source, target in (("up", client, server), ("down", server, client)):
                    threading.Thread(target=self._forward, args=(way, source, target), daemon=True).start()

    def _forward(self, way: str, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                self.sent[way] += len(data)
                if self.sent[way] > self.limits.get(way, 1 << 62):
                    self._cut_now()
                    return
                time.sleep(self.seconds_per_chunk)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _cut_now(self) -> None:
        self._cut.set()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open = []


@pytest.fixture
def proxy(s3: S3) -> Iterator[CuttingProxy]:
    """A line to the S3 server that can be cut."""
    line = CuttingProxy(s3.port)
    yield line
    line.close()


@pytest.fixture
def dummy_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run the five short stages in the place of the nine, and all waits are short."""
    from flows import launch, stage_order, stage_watch, worker_runs
    from tests.flows import dummy_stages

    monkeypatch.setattr(stage_order, "STAGES", dummy_stages.STAGES)
    monkeypatch.setattr(launch, "entry_point", dummy_stages.entry_point)
    monkeypatch.setattr(worker_runs, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(stage_watch, "LOOK_EVERY_SECONDS", 0.2)


@pytest.fixture
def prefect_line(prefect_api: str) -> Iterator[CuttingProxy]:
    """A line to the Prefect server that can be cut; flows in this process use it by themselves."""
    line = CuttingProxy(int(prefect_api.split(":")[2].partition("/")[0]))
    with temporary_settings({PREFECT_API_URL: f"{line.url}/api"}):
        yield line
    line.close()
