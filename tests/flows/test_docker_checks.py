"""What the doctor says about containers, asked of a small engine that answers at a socket of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import docker_checks, docker_engine, images_cli
from flows.checks import Check
from flows.docker_checks import check_docker
from flows.images import CODE_LABEL, TORCH_LABEL, code_digest, image_name
from flows.preflight import check_torch_build, host_gpus
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError

GPUS = ["/dev/nvidia0"]
NAMES = [spec.name for spec in STAGES]
FULL = "/proc"
"""A file system that never has a byte free."""


class FakeEngine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Speaks as much of the engine's API as the doctor asks for; `silent_after` paths it answers no more."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.info: dict[str, Any] = {
            "NCPU": 2,
            "ServerVersion": "24.0.5",
            "DockerRootDir": "/",
            "Runtimes": {},
        }
        self.images = {
            image_name(name): {CODE_LABEL: code_digest(name), TORCH_LABEL: "2.13.0+cu130"} for name in NAMES
        }
        self.silent_at = "nowhere"
        self.let_go = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """`GET /v1.41/info` and the like."""

    server: FakeEngine

    def do_GET(self) -> None:
        path = self.path if self.path == "/_ping" else "/" + self.path.partition("/v1.41/")[2]
        path = "/version" if self.path == "/version" else path
        if path.startswith(self.server.silent_at):
            self.server.let_go.wait(60)
            return
        code, reply = self._reply(path)
        self.send_response(code)
        body = json.dumps(reply).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reply(self, path: str) -> tuple[int, Any]:
        if path in ("/_ping", "/version"):
            return 200, {"ApiVersion": "1.41"}
        if path == "/info":
            return 200, self.server.info
        name = path.removeprefix("/images/").removesuffix("/json")
        if (labels := self.server.images.get(name)) is None:
            return 404, {"message": f"No such image: {name}"}
        return 200, {"Id": "sha256:1", "Size": 1, "RootFS": {"Layers": []}, "Config": {"Labels": labels}}

    def address_string(self) -> str:
        return "here"

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose name is short enough for a socket, and that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="engine", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def engine(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/docker.sock")
    monkeypatch.delenv("GLASSWORKS_IMAGES", raising=False)
    with FakeEngine(str(place / "docker.sock")) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.let_go.set()
        server.shutdown()


def found(gpus: list[str], asked: bool = True) -> dict[str, Check]:
    return {check.name: check for check in check_docker(gpus, asked)}


@pytest.mark.usefixtures("engine")
def test_all_is_well() -> None:
    checks = found([])
    assert list(checks) == ["Docker", "engine's disk", "images"]
    assert all(check.passed for check in checks.values()), checks
    assert checks["Docker"].found.startswith("24.0.5 at unix:///tmp/engine")


def test_no_engine_is_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(docker_engine, "SOCKET", place / "none.sock")
    monkeypatch.setattr(docker_checks, "PROGRAM_FOLDERS", str(place))
    monkeypatch.setenv("PATH", str(place))
    (place / "apt-get").touch(mode=0o755)
    check = found([])["Docker"]
    assert not check.passed
    assert "no engine is installed" in check.found and check.remedy == "sudo apt-get install docker.io"
    (place / "dockerd").touch(mode=0o755)
    check = found([])["Docker"]
    assert check.found == "an engine is installed, but does not run"
    assert check.remedy in ("sudo systemctl start docker", "sudo service docker start", "sudo dockerd &")


def test_a_docker_host_that_does_not_exist(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/none.sock")
    check = found([])["Docker"]
    assert "which does not exist" in check.found and check.remedy.startswith("unset DOCKER_HOST")


def test_an_engine_that_stopped_and_left_its_socket(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/docker.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{place}/docker.sock")
    check = found([])["Docker"]
    assert not check.passed
    assert "has stopped and left its socket" in check.found
    assert "start" in check.remedy or "dockerd" in check.remedy


def test_an_engine_that_accepts_and_says_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/docker.sock")
    monkeypatch.setattr(docker_checks, "ANSWER_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{place}/docker.sock")
        deaf.listen()
        check = found([])["Docker"]
    assert not check.passed
    assert "accepts, but does not answer" in check.found
    assert "restart" in check.remedy or "dockerd" in check.remedy


@pytest.mark.parametrize("path", ["/version", "/info", "/images/"])
def test_an_engine_that_hangs_later(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(docker_checks, "ALL_ANSWERS_SECONDS", 1.0)
    engine.silent_at = path
    assert "does not answer within" in check_docker([], asked=True)[-1].found


def test_a_user_who_may_not(engine: FakeEngine, place: Path) -> None:
    (place / "docker.sock").chmod(0)
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        check = found([])["Docker"]
    finally:
        os.seteuid(before)
    assert not check.passed
    assert "you may not use the engine" in check.found
    assert check.remedy.startswith("sudo usermod --append --groups docker $USER")


def test_a_table_of_images_needs_an_engine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/nobody.sock")
    ended = CliRunner().invoke(images_cli.app, ["list"])
    assert isinstance(ended.exception, GlassworksError)
    assert ended.output == ""


def test_no_image_at_all(engine: FakeEngine) -> None:
    engine.images.clear()
    check = found([])["images"]
    assert not check.passed
    assert check.found == f"missing: {', '.join(NAMES)}" and check.remedy == "glassworks images build"


def test_images_that_are_missing_or_of_other_code(engine: FakeEngine) -> None:
    del engine.images[image_name("sft")]
    engine.images[image_name("dpo")] = {CODE_LABEL: "of yesterday"}
    engine.images[image_name("tokenizer")] = {}
    check = found([])["images"]
    assert not check.passed
    assert check.found == "missing: sft; of other code or packages than this checkout: tokenizer, dpo"
    assert check.remedy == "glassworks images build tokenizer sft dpo"


def test_images_of_a_registry_are_pulled(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSWORKS_IMAGES", "registry.company:5000/glassworks/{target}:1")
    check = found([])["images"]
    assert "missing: corpus_prep" in check.found
    assert check.remedy.startswith("docker pull registry.company:5000/glassworks/corpus_prep:1 && ")
    monkeypatch.setenv("GLASSWORKS_IMAGES", "/no/such/file")
    assert "names no image" in check_docker([], asked=True)[-1].found


def test_a_gpu_that_containers_do_not_get(engine: FakeEngine) -> None:
    check = found(GPUS)["GPU in containers"]
    assert not check.passed
    assert "/dev/nvidia0, but the engine has no NVIDIA runtime" in check.found
    assert "nvidia-ctk runtime configure --runtime=docker" in check.remedy
    engine.info["Runtimes"] = {"nvidia": {}}
    assert found(GPUS)["GPU in containers"].passed


def test_a_gpu_that_the_images_cannot_use(engine: FakeEngine) -> None:
    engine.info["Runtimes"] = {"nvidia": {}}
    engine.images[image_name("sft")][TORCH_LABEL] = "2.13.0+cpu"
    check = found(GPUS)["GPU in containers"]
    assert not check.passed
    assert check.found == "torch for processors in the images of sft"
    assert check.remedy == "glassworks images build --torch cuda"


def test_a_full_disk_of_the_engine(engine: FakeEngine) -> None:
    engine.info["DockerRootDir"] = FULL
    check = found([])["engine's disk"]
    assert not check.passed
    assert check.found == "0.0 GiB free in /proc" and "docker image prune" in check.remedy
    engine.info["DockerRootDir"] = "/on/another/machine"
    assert found([])["engine's disk"].passed


def test_findings_count_for_who_asks_for_containers(
    engine: FakeEngine, tmp_path: Path, repository: Path
) -> None:
    engine.images.clear()
    command = [sys.executable, "-m", "flows.cli", "doctor", "--store", str(tmp_path)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        asked = [*command, *more]
        return subprocess.run(asked, cwd=repository, capture_output=True, text=True, timeout=60, check=False)

    without, asked = run(), run("--backend", "docker")
    assert (without.returncode, asked.returncode) == (0, 1), without.stdout
    assert "- images: missing: corpus_prep" in without.stdout
    assert "✗ images: missing: corpus_prep" in asked.stdout
    assert "        glassworks images build\n" in asked.stdout


def test_a_gpu_that_this_environment_cannot_use(tmp_path: Path) -> None:
    assert host_gpus(tmp_path) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    gpus = host_gpus(tmp_path)
    assert [Path(gpu).name for gpu in gpus] == ["nvidia0", "nvidia1"]
    dist = tmp_path / "torch-2.13.0+cpu.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n")
    sys.path.insert(0, str(tmp_path))
    try:
        check = check_torch_build(gpus)
        assert check_torch_build([]).passed
    finally:
        sys.path.remove(str(tmp_path))
    assert not check.passed and check.optional
    assert "2.13.0+cpu is for processors" in check.found
    assert check.remedy.endswith("-m pip install --force-reinstall torch==2.13.0")
