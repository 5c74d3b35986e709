"""What `glassworks doctor` says about containers: the engine, its rights, its images, its GPUs, its disk.

Optional findings, unless somebody asks for `--backend docker`. An engine that hangs must not make us hang:
every answer has a deadline, and so have all of them together.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flows.checks import Check
from flows.container_run import INSTALL_GPU_RUNTIME
from flows.docker_engine import Engine, Image, engine_address, facts_of, in_our_words
from flows.images import has_cpu_torch, image_name, lacking
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError

ANSWER_SECONDS = 4
ALL_ANSWERS_SECONDS = 10.0
MIN_FREE_DISK_BYTES = 3 * 2**30
"""All images together take 2.2 GB, and building them a little more."""
PROGRAM_FOLDERS = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"
"""Where `dockerd` lies, which is not on every user's PATH."""


def check_docker(gpus: list[str], asked: bool) -> list[Check]:
    """All findings about containers. `gpus`: the host's; `asked`: whether they count as failures."""
    found: list[Check] = []

    def look() -> None:
        for check in _checks(gpus):
            found.append(check)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(ALL_ANSWERS_SECONDS)
    checks = list(found)
    if looking.is_alive():
        checks.append(_hangs(f"does not answer within {ALL_ANSWERS_SECONDS:.0f} s"))
    return [replace(check, optional=not asked) for check in checks]


def _checks(gpus: list[str]) -> Iterator[Check]:
    if (away := _engine_is_away()) is not None:
        yield away
        return
    try:
        engine = Engine(timeout_seconds=ANSWER_SECONDS)
        with in_our_words():
            info = engine.api.info()
        yield Check("Docker", True, f"{info.get('ServerVersion', 'an engine')} at {engine_address()}")
        yield _check_engine_disk(Path(info.get("DockerRootDir", "/var/lib/docker")))
        images = {spec.name: engine.image(image_name(spec.name)) for spec in STAGES}
        yield _check_images(images)
        if gpus:
            yield _check_gpus(gpus, images, facts_of(info).has_gpus)
    except GlassworksError as error:
        yield Check("Docker", False, error.message, error.hint)


def _engine_is_away() -> Check | None:
    """Whether anybody listens at the engine's socket; the SDK's errors do not tell these cases apart."""
    host = engine_address()
    if not host.startswith("unix://"):
        return None
    path = host.removeprefix("unix://")
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(ANSWER_SECONDS)
            line.connect(path)
            line.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
            if not line.recv(1):
                return _hangs("hangs up without an answer")
    except PermissionError:
        remedy = "sudo usermod --append --groups docker $USER, then log in again (or: newgrp docker)"
        return Check("Docker", False, f"you may not use the engine at {host}", remedy)
    except TimeoutError:
        return _hangs(f"accepts, but does not answer within {ANSWER_SECONDS} s")
    except OSError as error:
        return _nobody_there(error)
    return None


def _hangs(what: str) -> Check:
    return Check("Docker", False, f"the engine at {engine_address()} {what}", _service("restart"))


def _nobody_there(error: OSError) -> Check:
    if os.environ.get("DOCKER_HOST") and error.errno == errno.ENOENT:
        found = f"DOCKER_HOST names {engine_address()}, which does not exist"
        return Check("Docker", False, found, "unset DOCKER_HOST, or name the socket of an engine that runs")
    if error.errno == errno.ECONNREFUSED:
        found = f"nobody answers at {engine_address()}: the engine has stopped and left its socket"
        return Check("Docker", False, found, _service("start"))
    if _program("dockerd") is None:
        found = "no engine is installed (stages run as processes without one)"
        return Check("Docker", False, found, _install())
    return Check("Docker", False, "an engine is installed, but does not run", _service("start"))


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=PROGRAM_FOLDERS)


def _service(verb: str) -> str:
    """How to start or restart the engine on this machine."""
    if Path("/run/systemd/system").exists():
        return f"sudo systemctl {verb} docker"
    return f"sudo service docker {verb}" if Path("/etc/init.d/docker").exists() else "sudo dockerd &"


def _install() -> str:
    if _program("apt-get"):
        return "sudo apt-get install docker.io"
    return "install Docker Engine: https://docs.docker.com/engine/install"


def _check_engine_disk(root: Path) -> Check:
    """Room for images where the engine keeps them, which is seldom where the store is."""
    name = "engine's disk"
    try:
        free = shutil.disk_usage(root).free
    except OSError:
        return Check(name, True, f"{root} cannot be seen from here")
    found = f"{free / 2**30:.1f} GiB free in {root}"
    remedy = "docker image prune --force; docker builder prune --force"
    return Check(name, free >= MIN_FREE_DISK_BYTES, found, remedy)


def _check_images(images: dict[str, Image | None]) -> Check:
    """Every stage's image is there and holds the code of this checkout."""
    found, remedy = lacking(images)
    return Check("images", not found, found or f"all {len(images)}, of this checkout's code", remedy)


def _check_gpus(gpus: list[str], images: dict[str, Image | None], has_runtime: bool) -> Check:
    """The host has GPUs: containers can get them, and their torch can use them."""
    name = "GPU in containers"
    if not has_runtime:
        found = f"{', '.join(gpus)}, but the engine has no NVIDIA runtime"
        return Check(name, False, found, INSTALL_GPU_RUNTIME)
    wants = {spec.name for spec in STAGES if spec.gpu != "none"}
    of_cpu = [stage for stage, image in images.items() if image and stage in wants and has_cpu_torch(image)]
    found = f"torch for processors in the images of {', '.join(of_cpu)}" if of_cpu else "containers get it"
    return Check(name, not of_cpu, found, "glassworks images build --torch cuda")
