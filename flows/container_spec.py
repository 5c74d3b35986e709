"""What a stage's container may see, write and take: a pure function from a job to a request.

Everything lies where it lies for who asks, so the program is told the same as a process and its messages
name paths that the user can open. Two things can be written: the work folder of this very artifact, and the
file that it locks. Nothing else of the store can, so a stage cannot spoil what another one has made.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from data_contracts.manifest import MANIFEST_NAME
from flows.docker_engine import NO_NETWORK, EngineFacts
from flows.gpus import GPU_VARIABLE, asks_for_several, gpus_asked
from flows.host_paths import HostRoots, on_host
from flows.job import Job
from stages.runtime.delivery import DELIVERED_NAME
from stages.runtime.errors import UserError
from stages.runtime.provenance import COMMIT_VARIABLE, IMAGE_VARIABLE, PRICE_VARIABLE
from stages.runtime.spec import Limits, Outside

RUN_LABEL = "glassworks.run"
STAGE_LABEL = "glassworks.stage"
STORE_LABEL = "glassworks.store"
NOBODY = "10001:10001"
"""Who stages run as when root starts them: the user of the images."""
GIB = 2**30
SHARED_MEMORY_BYTES = 8 * GIB
"""The most of /dev/shm for a stage of several processes; what is used counts as its memory. Engines give
64 MiB; NCCL's guide asks for 1 GiB and for pinned memory without limit (troubleshooting, "Docker")."""
#: What a process would inherit and results or figures depend on.
INHERITED = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", PRICE_VARIABLE),
    # Each of these changes the last bits of sums: how they are split, or the instructions that make them.
    *("OMP_THREAD_LIMIT", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
)
#: Folders of the image that a mount must not hide.
TAKEN = frozenset(
    Path("/", name)
    for name in (
        *("", "bin", "dev", "etc", "glassworks", "lib", "lib64", "opt", "opt/venv", "proc", "run", "sbin"),
        *("sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/local", "usr/local/bin", "usr/local/lib", "var"),
    )
)
PRIVATE_HOME = Path("/root")


@dataclass(frozen=True)
class User:
    """Whose rights a stage has."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @classmethod
    def current(cls) -> User:
        """Who started us."""
        return cls(os.getuid(), os.getgid(), tuple(os.getgroups()))


@dataclass(frozen=True)
class Request:
    """What the engine is asked to create."""

    container: Mapping[str, Any]
    """Arguments of the SDK's create_container, but the host configuration."""
    host: Mapping[str, Any]
    """Arguments of the SDK's create_host_config."""


def request(
    job: Job,
    image: str,
    digest: str,
    facts: EngineFacts,
    user: User,
    *,
    limits: Limits,
    outside: Outside,
    documents: Mapping[str, Path],
    commit: str = "",
    inherited: Mapping[str, str] = os.environ,
    cores: Collection[int] = (),
    roots: HostRoots = None,
) -> Request:
    """Ask for one stage. `documents`: place in the container -> the file that holds the text; `cores`: those
    that it may use, all where there are none.

    `roots` says where on the host our folders lie, if that is elsewhere. Raises UserError where a file or
    folder would hide a part of the image, or is not on the host.
    """
    mounts = list(_mounts(job, outside, documents, roots))
    environment = {name: inherited[name] for name in INHERITED if name in inherited}
    # Which GPUs it gets is said by the device request: inside, they are counted from 0.
    asked_for = {name: value for name, value in job.environment.items() if name != GPU_VARIABLE}
    environment |= {IMAGE_VARIABLE: digest, **asked_for, **outside.environment}
    if commit:
        environment[COMMIT_VARIABLE] = commit
    container = {
        "image": image,
        "command": job.options(job.work / DELIVERED_NAME),
        "user": user_of(user, facts),
        "environment": environment,
        "labels": {
            RUN_LABEL: job.run_id,
            STAGE_LABEL: job.spec.name,
            STORE_LABEL: str(on_host(job.store.root, roots)),
        },
        "stdin_open": True,
        "network_disabled": True,
        "stop_signal": "SIGTERM",
    }
    host = _host(job, facts, user, limits, mounts)
    if cores:
        host["cpuset_cpus"] = ",".join(map(str, sorted(cores)))
    return Request(container, host)


def own_cores(facts: EngineFacts) -> Collection[int]:
    """The cores that this process is kept to, as by taskset; none where it may use all, or the engine is on
    another machine. A stage takes as many threads as it has cores, and their number decides last bits."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return mine if len(mine) < facts.num_cpus == os.cpu_count() else ()


def user_of(user: User, facts: EngineFacts) -> str:
    """`uid:gid` inside. Without root rights of its own the engine maps its root to the user."""
    if facts.is_rootless:
        return "0:0"
    return f"{user.uid}:{user.gid}" if user.uid else NOBODY


def _host(
    job: Job, facts: EngineFacts, user: User, limits: Limits, mounts: Sequence[Mount]
) -> dict[str, Any]:
    memory = int(limits.memory_gib * GIB)
    asked: dict[str, Any] = {
        "mounts": list(mounts),
        "tmpfs": _tmpfs(mounts, limits),
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "network_mode": NO_NETWORK,
        "pids_limit": limits.num_processes,
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": int(min(limits.num_cpus or facts.num_cpus, facts.num_cpus) * 1e9),
        "cpu_shares": cpu_shares(job.niceness),
        "ulimits": [Ulimit(name="core", soft=0, hard=0)],
        "init": True,
        "auto_remove": True,
        "log_config": LogConfig(type="json-file", config={"max-size": "10m", "max-file": "1"}),
    }
    if user.uid and not facts.is_rootless:
        asked["group_add"] = sorted(set(user.groups) - {0, user.gid})
    if facts.remaps_users:
        asked["userns_mode"] = "host"
    if job.spec.gpu != "none" and facts.has_gpus:
        asked["device_requests"] = [
            DeviceRequest(driver="nvidia", capabilities=[["gpu"]], **_which_gpus(job))
        ]
    if asks_for_several(job.config):
        asked["shm_size"] = SHARED_MEMORY_BYTES
        if "device_requests" in asked and not facts.is_rootless:  # that one may not raise its own limits
            asked["ulimits"].append(Ulimit(name="memlock", soft=-1, hard=-1))
    return asked


def _which_gpus(job: Job) -> dict[str, Any]:
    """Those that are held, else as many as the settings ask for; -1 is all."""
    if held := job.environment.get(GPU_VARIABLE):
        return {"device_ids": held.split(",")}
    asked = gpus_asked(job.config)
    return {"count": -1 if asked == "all" else asked}


def cpu_shares(niceness: int) -> int:
    """The weight that Linux gives a process of that niceness, of 1024 for niceness 0."""
    return max(2, round(1024 / 1.25**niceness))


def _mounts(job: Job, outside: Outside, documents: Mapping[str, Path], roots: HostRoots) -> Iterator[Mount]:
    """Each target once; what can be written last."""
    read_only = {job.settings: job.settings}
    for folder in job.inputs.values():
        read_only[folder] = folder
        if (manifest := folder.parent / MANIFEST_NAME).is_file():
            read_only[manifest] = manifest
    read_only |= {path: path for path in _outermost(outside.same_place)}
    read_only |= {Path(place): path for place, path in outside.moved.items()}
    read_only |= {Path(place): path for place, path in documents.items()}
    for target, source in read_only.items():
        if target in TAKEN:
            raise UserError(
                f"{target} cannot be brought into a container: it would hide that folder of the image",
                hint="move the data to a folder of its own, or run with --backend process",
            )
        yield Mount(str(target), str(on_host(source, roots)), type="bind", read_only=True)
    for writable in (job.work, job.lock):
        yield Mount(str(writable), str(on_host(writable, roots)), type="bind")


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Paths that lie in no other of them."""
    known = set(paths)
    return [path for path in sorted(known) if not known.intersection(path.parents)]


def _tmpfs(mounts: Sequence[Mount], limits: Limits) -> dict[str, str]:
    asked = {"/tmp": f"rw,nosuid,nodev,noexec,mode=1777,size={int(limits.scratch_gib * GIB)}"}
    if any(PRIVATE_HOME in Path(mount["Target"]).parents for mount in mounts):
        # Images keep this folder closed to everybody but root, so nothing below it could be reached.
        asked[str(PRIVATE_HOME)] = "ro,nosuid,nodev,noexec,mode=755,size=65536"
    return asked
