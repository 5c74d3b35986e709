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
from tests.lacking import lacking

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.host,
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


def why_no_hosts() -> str:
    """What keeps this machine from having hosts within, if anything does."""
    if os.geteuid() != 0:
        return "network namespaces are for root"
    if shutil.which("ip") is None:
        return "no `ip`: apt-get install iproute2"
    name = f"gw{os.getpid() % 100000}t"
    with ExitStack() as undo:
        try:
            ip("link", "add", name, "type", "bridge")
            undo.callback(ip, "link", "del", name)
            undo.callback(Path("/run/netns", name).unlink, missing_ok=True)
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("netns", "exec", name, "unshare", "--uts", "true")
        except subprocess.CalledProcessError as error:
            return f"this machine forbids namespaces or mounts: {error.stderr.strip()}"
    return ""


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

    def has_saved(self) -> bool:
        """Whether its fine-tuning has a checkpoint."""
        return any((self.folder / "cache").glob("*/work/sft/*/checkpoints/*"))

    def runs(self, stage: str) -> bool:
        """Whether a stage runs on it."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                found.append(f"stages.{stage}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
        return any(found)

    def kill(self) -> None:
        """Pull the plug."""
        while left := self.processes():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Two hosts on one bridge, whose own address is the first of their network."""
    if lack := why_no_hosts():
        lacking(lack)
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


@dataclass(frozen=True)
class Site:
    """The host of the builds, and the two that run their stages."""

    cli: Any
    store: SharedStore
    hosts: list[Host]

    def build(self, *options: str) -> subprocess.Popen[str]:
        """Begin a build whose stages the hosts run."""
        asked = ["build", "--preset", "tiny", "--backend", "workers", *options, "--store", self.store.url]
        return subprocess.Popen(
            self.cli.command(*asked),
            cwd=self.cli.repository,
            env=self.cli.environment() | {"GLASSWORKS_CLAIM_SECONDS": SILENCE_SECONDS},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def host_of(self, building: subprocess.Popen[str], found: Callable[[Host], object]) -> Host:
        """The host where this is so, as soon as it is."""
        until(lambda: building.poll() is not None or any(map(found, self.hosts)), 180)
        if building.poll() is not None:
            pytest.fail(building.communicate()[0])
        return next(filter(found, self.hosts))


@pytest.fixture(scope="module")
def site(tiny: Any, hosts: list[Host], store: SharedStore) -> Iterator[Site]:
    """What one host's build by processes has made is here, and will be shared."""
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
        yield Site(cli, store, hosts)
    finally:
        assert cli("down", *place).returncode == 0


@dataclass
class SharedBuild:
    """A build by both hosts, of which one was killed while it trained."""

    store: SharedStore
    record: RunRecord
    output: str
    lost: Host
    """The one that was killed."""
    kept: Host
    """The other."""

    def ran_on(self, stage: str) -> list[str]:
        """The hosts on which a stage began, in order."""
        return re.findall(rf"^  {stage} +\.\.\. +runs on (\S+)$", self.output, flags=re.MULTILINE)

    def manifest(self, stage: str) -> Manifest:
        """What the run made of a stage, as every host sees it."""
        [key] = [one.fingerprint for one in self.record.stages if one.name == stage]
        found = self.store.find_there(stage, key or "-")
        assert found is not None
        return found.manifest


@pytest.fixture(scope="module")
def shared(site: Site) -> SharedBuild:
    """Two stages are run in any case; the host that trains is killed after its first steps."""
    building = site.build(*(word for stage in FORCED for word in ("--force", stage)))
    lost = site.host_of(building, Host.trains)
    lost.kill()
    output, _ = building.communicate(timeout=240)
    assert building.returncode == 0, output
    [kept] = [host for host in site.hosts if host is not lost]
    return SharedBuild(site.store, latest_record(site.store), output, lost, kept)


def test_each_host_ran_a_stage(shared: SharedBuild) -> None:
    began = {shared.ran_on(stage)[0] for stage in FORCED}
    assert began == {shared.lost.name, shared.kept.name}


def test_what_a_killed_host_did_goes_on_elsewhere(shared: SharedBuild) -> None:
    assert f"lost {shared.lost.name}" in shared.output
    assert shared.ran_on("pretrain") == [shared.lost.name, shared.kept.name]
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


def test_cancelling_the_build_stops_the_stage_where_it_runs(site: Site, shared: SharedBuild) -> None:
    long = ("--set", "sft.epochs=500", "--set", "sft.checkpoint_every_seconds=0.5", "--until", "sft")
    building = site.build(*long)
    assert site.host_of(building, Host.has_saved) is shared.kept
    building.send_signal(signal.SIGINT)
    output, _ = building.communicate(timeout=120)
    assert building.returncode == 130, output
    assert not shared.kept.runs("sft")
    assert shared.kept.has_saved()
