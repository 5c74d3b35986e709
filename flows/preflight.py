"""`glassworks doctor`: is everything there that a build needs? Each check names the command that mends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from flows.checks import Check
from flows.image_locks import CONSTRAINTS, locked_packages
from flows.service_checks import check_clock, check_prefect, check_services
from flows.shared_store_check import check_shared
from flows.stores import shared
from stages.catalog import STAGES
from stages.runtime.errors import is_disk_full
from stages.runtime.fingerprint import REPOSITORY, installed_packages
from stages.runtime.store import Store

OURSELVES = "glassworks"
MIN_FREE_DISK_BYTES = 5 * 2**30
MIN_FREE_FILES = 10_000
MIN_MEMORY_BYTES = 4 * 2**30


def run_checks(place: Store, backend: str = "process") -> list[Check]:
    """All checks, in order. What containers need counts as a failure where they are the `backend`."""
    store = place.root
    gpus = host_gpus()
    checks: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        check_locked_packages,
        lambda: check_torch_build(gpus),
        lambda: check_store(store),
        lambda: check_locks(store),
        lambda: check_disk(store),
        check_memory,
        check_compiler,
        lambda: check_gpu(gpus),
        lambda: check_prefect(store),
        lambda: check_services(store),
        lambda: check_clock(store),
    ]
    if (there := shared(place)) is not None:
        checks.append(lambda: check_shared(there))
    return [*(check() for check in checks), *_containers(gpus, asked=backend.endswith("docker"))]


def host_gpus(devices: Path = Path("/dev")) -> list[str]:
    """NVIDIA's device nodes, without starting a driver."""
    return sorted(str(path) for path in devices.glob("nvidia[0-9]*"))


def _containers(gpus: list[str], asked: bool) -> list[Check]:
    try:
        from flows.docker_checks import check_docker  # the SDK takes a third of a second
    except ModuleNotFoundError as error:
        remedy = shlex.join([sys.executable, "-m", "pip", "install", str(error.name)])
        found = f"the package {error.name} is not installed"
        return [Check("Docker", False, found, remedy, optional=not asked)]
    return check_docker(gpus, asked)


def check_python() -> Check:
    """Python 3.11 or newer."""
    found = ".".join(str(n) for n in sys.version_info[:3])
    return Check(
        "Python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer, then make install"
    )


def check_packages() -> Check:
    """Every run-time requirement in the version that we ask for; known bad combinations are such failures."""
    try:
        requirements = [Requirement(text) for text in _requirements()]
    except metadata.PackageNotFoundError:
        found = "glassworks itself is not installed, so nobody knows what it needs"
        remedy = shlex.join([sys.executable, "-m", "pip", "install", "--editable", f"{REPOSITORY}[all]"])
        return Check("packages", False, found, remedy)
    wrong = {
        str(one.name) + str(one.specifier): problem for one in requirements if (problem := _problem(one))
    }
    found = "; ".join(wrong.values()) or f"{len(requirements)} requirements are met"
    # Not `make install`: for make everything is in order as long as pyproject.toml is older than .venv.
    return Check("packages", not wrong, found, _install(wrong))


def _install(wanted: Iterable[str]) -> str:
    """The command that installs packages in the versions that images have too."""
    return shlex.join([sys.executable, "-m", "pip", "install", "--constraint", str(CONSTRAINTS), *wanted])


def _requirements() -> list[str]:
    declared = metadata.requires(OURSELVES) or []
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


def check_locked_packages() -> Check:
    """Stages find the same packages as processes and in containers, so each takes what the other makes."""
    name = "packages as in images"
    other: dict[str, str] = {}
    for spec in STAGES:
        here, there = installed_packages(spec.name), locked_packages(spec)
        for package in here.keys() & there:
            if here[package] != there[package]:
                other[package] = f"{package} {here[package]}, in images {there[package]}"
    found = "; ".join(other.values()) or "the same versions"
    return Check(name, not other, found, _install(sorted(other)), optional=True)


def check_torch_build(gpus: list[str]) -> Check:
    """Which build of torch is installed, from its metadata, and whether that can use the GPUs."""
    pip = [sys.executable, "-m", "pip", "install"]
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check("torch", False, "not installed", shlex.join([*pip, "torch==2.13.0"]))
    if gpus and version.endswith("+cpu"):
        found = f"{version} is for processors; {', '.join(gpus)} stays idle"
        remedy = shlex.join([*pip, "--force-reinstall", f"torch=={version.removesuffix('+cpu')}"])
        return Check("torch", False, found, remedy, optional=True)
    return Check("torch", True, version)


def check_store(store: Path) -> Check:
    """The store can be written, and a rename inside it is one operation."""
    probe = store / "work" / f".probe-{os.getpid()}"
    try:
        (store / "work").mkdir(parents=True, exist_ok=True)
        (store / "artifacts").mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        (probe / "page").write_bytes(bytes(4096))
        shutil.rmtree(probe.rename(store / "artifacts" / probe.name))
    except OSError as error:
        shutil.rmtree(probe, ignore_errors=True)
        elsewhere = "pass --store DIR with a folder of yours on one disk"
        remedy = _clear_up(store) if is_disk_full(error) else elsewhere
        return Check("store", False, f"{store}: {error}", remedy)
    return Check("store", True, str(store))


def check_disk(store: Path) -> Check:
    """Room for a few builds, in bytes and in files."""
    about = os.statvfs(_nearest(store))
    free = about.f_bavail * about.f_frsize
    found = f"{free / 2**30:.1f} GiB free for {store}"
    if about.f_files and about.f_favail < MIN_FREE_FILES:
        return Check("disk", False, f"{found}, but only for {about.f_favail} more files", _clear_up(store))
    return Check("disk", free >= MIN_FREE_DISK_BYTES, found, _clear_up(store))


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there already."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _clear_up(store: Path) -> str:
    return shlex.join(["glassworks", "gc", "--yes", "--store", str(store)])


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


def check_gpu(gpus: list[str]) -> Check:
    """Whether the machine has a GPU."""
    return Check("GPU", bool(gpus), ", ".join(gpus) or "none", "not needed: --preset laptop", optional=True)


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
