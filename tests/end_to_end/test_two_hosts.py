"""Two hosts build one run together: two network namespaces with a worker each, and one of them is killed.

Each host has an address, a name, a Prefect home and a clock of its own, an hour before and an hour behind.
What they share is the Prefect server and the store.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows.records import latest_record
from stages.runtime.store import Store, read_manifest

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are for root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="no `ip`: apt-get install iproute2"),
]

SUBNET = f"10.213.{os.getpid() % 250}"
SILENCE_SECONDS = "8"
FORCED = ("pretrain", "vector_store")
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


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
        return ours | ({"LD_PRELOAD": str(FAKETIME), "FAKETIME": self.clock} if FAKETIME else {})

    def processes(self) -> list[int]:
        """Everything that runs on it."""
        return [int(word) for word in ip("netns", "pids", self.name).split()]

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
        ip("address", "add", f"{SUBNET}.1/24", "dev", bridge)
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


@dataclass
class SharedBuild:
    """A build by both hosts, of which one was killed while it trained."""

    store: Store
    output: str
    lost: str
    """The host that was killed."""
    hosts: list[str]
    """All of them."""
    seconds: float

    def ran_on(self, stage: str) -> list[str]:
        """The hosts on which a stage began, in order."""
        return re.findall(rf"^  {stage} +\.\.\. +runs on (\S+)$", self.output, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def shared(tiny: Any, hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedBuild]:
    """Everything is there but what two stages made, which one host's build by processes made before."""
    root = tmp_path_factory.mktemp("shared") / "store"
    shutil.copytree(tiny.store.root, root, ignore=shutil.ignore_patterns("prefect", "work"))
    cli = type(tiny.run)(tiny.run.repository, root / "prefect")
    place = ["--store", str(root)]
    started = cli("up", "--host", f"{SUBNET}.1", *place)
    assert started.returncode == 0, started.stdout + started.stderr
    url = re.findall(r"^server +started +(\S+),", started.stdout, flags=re.MULTILINE)[0] + "/api"
    try:
        joining = [
            subprocess.Popen(
                host.command(cli.command("join", url, "--store", str(host.folder / "store"))),
                cwd=cli.repository,
                env=host.environment(cli),
            )
            for host in hosts
        ]
        assert [one.wait(120) for one in joining] == [0, 0]
        yield build_and_kill(cli, Store(root), hosts)
    finally:
        assert cli("down", *place).returncode == 0


def build_and_kill(cli: Any, store: Store, hosts: list[Host]) -> SharedBuild:
    """One build; the host that trains is killed as soon as it has saved a checkpoint."""
    forced = [word for stage in FORCED for word in ("--force", stage)]
    asked = ["build", "--preset", "tiny", "--backend", "workers", *forced, "--store", str(store.root)]
    begun = time.monotonic()
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
    result = SharedBuild(store, "", "", [host.name for host in hosts], 0.0)

    def both_run() -> bool:
        result.output = "".join(lines)
        assert building.poll() is None, result.output
        return all(map(result.ran_on, FORCED))

    until(both_run)
    result.lost = result.ran_on("pretrain")[0]
    next(host for host in hosts if host.name == result.lost).kill()
    assert building.wait(180) == 0, "".join(lines)
    reading.join()
    result.output, result.seconds = "".join(lines), time.monotonic() - begun
    return result


def test_each_host_ran_a_stage(shared: SharedBuild) -> None:
    began = {shared.ran_on(stage)[0] for stage in FORCED}
    assert began == set(shared.hosts)


def test_what_a_killed_host_did_goes_on_elsewhere(shared: SharedBuild) -> None:
    assert f"lost {shared.lost}" in shared.output
    assert shared.ran_on("pretrain") == [shared.lost, *set(shared.hosts) - {shared.lost}]
    assert latest_record(shared.store).status == "completed"


def test_the_run_is_that_of_one_host(shared: SharedBuild, tiny: Any) -> None:
    there, here = latest_record(shared.store), tiny.record
    assert [(s.name, s.fingerprint) for s in there.stages] == [(s.name, s.fingerprint) for s in here.stages]
    assert {s.name for s in there.stages if s.outcome == "ran"} == set(FORCED)
    for stage in there.stages:
        made = read_manifest(shared.store.artifact_dir(stage.name, stage.fingerprint or "-"))
        assert made is not None
        assert {name: part.digest for name, part in made.parts.items() if name != "chroma"} == {
            name: part.digest
            for name, part in tiny.artifact(stage.name).manifest.parts.items()
            if name != "chroma"
        }


@pytest.mark.skipif(FAKETIME is None, reason="no libfaketime: apt-get install faketime")
def test_their_clocks_were_an_hour_off(shared: SharedBuild) -> None:
    record = latest_record(shared.store)
    for stage in record.stages:
        if stage.outcome == "ran":
            made = read_manifest(shared.store.artifact_dir(stage.name, stage.fingerprint or "-"))
            assert made is not None
            began = datetime.fromisoformat(made.provenance.started_at)
            assert 3000 < abs((began - datetime.fromisoformat(record.started_at)).total_seconds()) < 4200
