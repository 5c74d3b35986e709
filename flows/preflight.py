"""`glassworks doctor`: is everything there that a build needs? Each check names the command that mends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from flows.checks import Check
from flows.service_checks import check_prefect, check_services
from flows.shared_store_check import check_shared
from flows.stores import shared
from stages.runtime.store import Store

MIN_FREE_DISK_BYTES = 5 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30


def run_checks(place: Store) -> list[Check]:
    """All checks, in order."""
    store = place.root
    checks: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        check_torch_build,
        lambda: check_store(store),
        lambda: check_locks(store),
        lambda: check_disk(store),
        check_memory,
        check_compiler,
        check_gpu,
        check_docker,
        lambda: check_prefect(store),
        lambda: check_services(store),
    ]
    if (there := shared(place)) is not None:
        checks.append(lambda: check_shared(there))
    return [check() for check in checks]


def check_python() -> Check:
    """Python 3.11 or newer."""
    found = ".".join(str(n) for n in sys.version_info[:3])
    return Check(
        "Python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer, then make install"
    )


def check_packages() -> Check:
    """Every run-time requirement in the version that we ask for; known bad combinations are such failures."""
    requirements = [Requirement(text) for text in _requirements()]
    wrong = {
        str(one.name) + str(one.specifier): problem for one in requirements if (problem := _problem(one))
    }
    found = "; ".join(wrong.values()) or f"{len(requirements)} requirements are met"
    # Not `make install`: for make everything is in order as long as pyproject.toml is older than .venv.
    remedy = shlex.join([sys.executable, "-m", "pip", "install", *wrong])
    return Check("packages", not wrong, found, remedy)


def _requirements() -> list[str]:
    declared = metadata.requires("glassworks") or []
    optional = ('extra == "test"', 'extra == "s3"', "glassworks[")  # without s3fs, a store on s3:// says so
    return [text for text in declared if not any(mark in text for mark in optional)]


def _problem(requirement: Requirement) -> str:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}, needed {requirement.specifier}"
    return ""


def check_torch_build() -> Check:
    """Which build of torch is installed (read from its metadata, not imported)."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check("torch", False, "not installed", "pip install torch==2.13.0")
    return Check("torch", True, version)


def check_store(store: Path) -> Check:
    """The store can be written, and a rename inside it is one operation."""
    try:
        (store / "work").mkdir(parents=True, exist_ok=True)
        (store / "artifacts").mkdir(parents=True, exist_ok=True)
        probe = store / "work" / f".probe-{os.getpid()}"
        probe.mkdir()
        probe.rename(store / "artifacts" / probe.name).rmdir()
    except OSError as error:
        return Check(
            "store", False, f"{store}: {error}", "pass --store DIR with a folder of yours on one disk"
        )
    return Check("store", True, str(store))


def check_disk(store: Path) -> Check:
    """Room for a few builds."""
    free = shutil.disk_usage(store if store.exists() else Path.cwd()).free
    return Check("disk", free >= MIN_FREE_DISK_BYTES, f"{free / 2**30:.0f} GiB free", "glassworks gc --yes")


def check_memory() -> Check:
    """The laptop preset stays under 4 GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{memory / 2**30:.0f} GiB, {os.cpu_count()} CPUs"
    return Check("memory", memory >= MIN_MEMORY_BYTES, found, "build with --preset tiny")


def check_compiler() -> Check:
    """torch.compile needs a C++ compiler; without one training is slower, not wrong."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    remedy = "install g++ (Debian: apt-get install g++) for faster training"
    return Check("C++ compiler", compiler is not None, compiler or "none", remedy, optional=True)


def check_gpu() -> Check:
    """An NVIDIA device node, without starting a driver."""
    devices = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
    return Check(
        "GPU", bool(devices), ", ".join(devices) or "none", "not needed: --preset laptop", optional=True
    )


def check_docker() -> Check:
    """A Docker Engine's socket."""
    path = Path("/var/run/docker.sock")
    found = str(path) if path.exists() else "no engine"
    return Check("Docker", path.exists(), found, "not needed: stages run as processes", optional=True)


def check_locks(store: Path) -> Check:
    """Two builds on one store wait for each other by flock, which some network file systems do not have."""
    probe = store / f".probe-{os.getpid()}"
    try:
        with probe.open("w") as first, probe.open("w") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                works = False
            except BlockingIOError:
                works = True
    except OSError as error:
        return Check("locks", False, f"{store}: {error}", "pass --store DIR with a folder on a local disk")
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    found = "flock works" if works else f"flock keeps nobody out of {store}"
    return Check("locks", works, found, "pass --store DIR with a folder on a local disk")
