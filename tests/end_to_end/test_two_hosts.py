"""Two hosts build one run together: two network namespaces with a worker each, and one of them is killed.

Each host has an address, a name, a folder, a Prefect home and a clock of its own, an hour before and an hour
behind. What they share is a Prefect server and an S3 server.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from data_contracts.manifest import Manifest
from flows.object_storage import ObjectStorage
from flows.records import latest_record
from flows.report.record import RunRecord
from flows.shared_store import SharedStore

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are for root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="no `ip`: apt-get install iproute2"),
]

SUBNET = f"10.213.{os.getpid() % 250}"
HOME = f"{SUBNET}.1"
S3_PORT = 9000
#: The server listens to this host alone; here it is for the two others.
S3_SERVER = """
import sys
from werkzeug.serving import run_simple
from tests.flows.s3_server import MotoRequestHandler, Server
run_simple(sys.argv[1], int(sys.argv[2]), Server(), threaded=True, request_handler=MotoRequestHandler)
"""
SILENCE_SECONDS = "8"
FORCED = ("pretrain", "vector_store")
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Host:
    """A network namespace with a worker for stages."""

    name: str
    folder: Path
    clock: str

    def command(self, words: list[str]) -> list[str]:
        """The same command, on this host."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.name, *named, *words]

    def environment(self, cli: Any) -> dict[str, str]:
        """What the host's programs find: its own home, its own clock."""
        ours = cli.environment(home=self.folder / "prefect") | {"GLASSWORKS_CLAIM_SECONDS": SILENCE_SECONDS}
        ours |= {"OMP_WAIT_POLICY": "PASSIVE", "PREFECT_WORKER_QUERY_SECONDS": "1"}
        ours |= {"GLASSWORKS_CACHE": str(self.folder / "cache")}
        return ours | ({"LD_PRELOAD": str(FAKETIME), "FAKETIME": self.clock} if FAKETIME else {})

    def processes(self) -> list[int]:
        """Everything that runs on it."""
        return [int(word) for word in ip("netns", "pids", self.name).split()]

    def trains(self) -> bool:
        """Whether its pretraining has taken a step."""
        events = (self.folder / "cache").glob("*/work/pretrain/*/events.jsonl")
        return any('"event": "progress"' in path.read_text() for path in events)

    def kill(self) -> None:
        """Pull the plug."""
        while left := self.processes():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Two hosts on one bridge, whose own address is the first of their network."""
    bridge = f"gw{os.getpid() % 100000}"
    made = [
        Host(f"{bridge}{letter}", tmp_path_factory.mktemp(f"host-{letter}"), clock)
        for letter, clock in (("a", "+1h"), ("b", "-1h"))
    ]
    with ExitStack() as undo:
        ip("link", "add", bridge, "type", "bridge")
        undo.callback(ip, "link", "del", bridge)
        ip("address", "add", f"{HOME}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number, host in enumerate(made, start=2):
            ip("netns", "add", host.name)
            undo.callback(ip, "netns", "del", host.name)
            undo.callback(host.kill)
            cable = f"{host.name}0"
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("link", "set", cable, "master", bridge, "up")
            ip("-n", host.name, "address", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.name, "link", "set", device, "up")
        yield made


@pytest.fixture(scope="module")
def store(
    hosts: list[Host], repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedStore]:
    """An empty store on an S3 server that all hosts reach."""
    command = [sys.executable, "-c", S3_SERVER, HOME, str(S3_PORT)]
    server = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{HOME}:{S3_PORT}")
        patch.setenv("AWS_ACCESS_KEY_ID", "glassworks-test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("GLASSWORKS_CACHE", str(tmp_path_factory.mktemp("home")))
        try:
            until(lambda: answers(HOME, S3_PORT))
            ObjectStorage("s3://models")._ask("create_bucket")
            yield SharedStore("s3://models/two-hosts")
        finally:
            server.kill()
            server.wait()


@dataclass
class SharedBuild:
    """A build by both hosts, of which one was killed while it trained."""

    store: SharedStore
    output: str
    lost: str
    """The host that was killed."""
    hosts: list[str]
    """All of them."""

    def ran_on(self, stage: str) -> list[str]:
        """The hosts on which a stage began, in order."""
        return re.findall(rf"^  {stage} +\.\.\. +runs on (\S+)$", self.output, flags=re.MULTILINE)

    @property
    def record(self) -> RunRecord:
        """What the run was."""
        return latest_record(self.store)

    def manifest(self, stage: str) -> Manifest:
        """What the run made of a stage, as every host sees it."""
        [key] = [one.fingerprint for one in self.record.stages if one.name == stage]
        found = self.store.find_there(stage, key or "-")
        assert found is not None
        return found.manifest


@pytest.fixture(scope="module")
def shared(tiny: Any, hosts: list[Host], store: SharedStore) -> Iterator[SharedBuild]:
    """A build of two stages; the others were made before, by processes of one host that now shares them."""
    shutil.copytree(tiny.store.root / "artifacts", store.root / "artifacts")
    cli = type(tiny.run)(tiny.run.repository, store.root / "prefect")
    place = ["--store", store.url]
    started = cli("up", "--host", HOME, *place)
    assert started.returncode == 0, started.stdout + started.stderr
    url = re.findall(r"^server +started +(\S+),", started.stdout, flags=re.MULTILINE)[0] + "/api"
    try:
        joining = [
            subprocess.Popen(
                host.command(cli.command("join", url, *place)),
                cwd=cli.repository,
                env=host.environment(cli),
            )
            for host in hosts
        ]
        assert [one.wait(120) for one in joining] == [0, 0]
        yield build_and_kill(cli, store, hosts)
    finally:
        assert cli("down", *place).returncode == 0


def build_and_kill(cli: Any, store: SharedStore, hosts: list[Host]) -> SharedBuild:
    """One build; the host that trains is killed after its first steps."""
    forced = [word for stage in FORCED for word in ("--force", stage)]
    asked = ["build", "--preset", "tiny", "--backend", "workers", *forced, "--store", store.url]
    building = subprocess.Popen(
        cli.command(*asked),
        cwd=cli.repository,
        env=cli.environment() | {"GLASSWORKS_CLAIM_SECONDS": SILENCE_SECONDS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    assert building.stdout is not None
    reading = threading.Thread(target=lambda: lines.extend(building.stdout or ()), daemon=True)
    reading.start()
    until(lambda: building.poll() is not None or any(host.trains() for host in hosts))
    assert building.poll() is None, "".join(lines)
    lost = next(host for host in hosts if host.trains())
    lost.kill()
    assert building.wait(180) == 0, "".join(lines)
    reading.join()
    return SharedBuild(store, "".join(lines), lost.name, [host.name for host in hosts])


def test_each_host_ran_a_stage(shared: SharedBuild) -> None:
    began = {shared.ran_on(stage)[0] for stage in FORCED}
    assert began == set(shared.hosts)


def test_what_a_killed_host_did_goes_on_elsewhere(shared: SharedBuild) -> None:
    assert f"lost {shared.lost}" in shared.output
    assert shared.ran_on("pretrain") == [shared.lost, *set(shared.hosts) - {shared.lost}]
    assert shared.record.status == "completed"


def test_the_run_is_that_of_one_host(shared: SharedBuild, tiny: Any) -> None:
    there, here = shared.record, tiny.record
    assert [(s.name, s.fingerprint) for s in there.stages] == [(s.name, s.fingerprint) for s in here.stages]
    assert {s.name for s in there.stages if s.outcome == "ran"} == set(FORCED)
    for stage in there.stages:
        assert digests(shared.manifest(stage.name)) == digests(tiny.artifact(stage.name).manifest)


def digests(manifest: Manifest) -> dict[str, str]:
    """All parts but the database of a vector store, which holds ids of its own."""
    return {name: part.digest for name, part in manifest.parts.items() if name != "chroma"}


@pytest.mark.skipif(FAKETIME is None, reason="no libfaketime: apt-get install faketime")
def test_their_clocks_were_an_hour_off(shared: SharedBuild) -> None:
    begun = datetime.fromisoformat(shared.record.started_at)
    for stage in FORCED:
        began = datetime.fromisoformat(shared.manifest(stage).provenance.started_at)
        assert 3000 < abs((began - begun).total_seconds()) < 4200
