"""Where an artifact came from: code, packages, hardware, time, memory, money."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from data_contracts.manifest import Hardware, Provenance
from stages.runtime.fingerprint import REPOSITORY

PACKAGES = (
    "chromadb",
    "duckdb",
    "ftfy",
    "numpy",
    "pyarrow",
    "pydantic",
    "safetensors",
    "sentencepiece",
    "torch",
)
PRICE_VARIABLE = "GLASSWORKS_PRICE_PER_HOUR"
IMAGE_VARIABLE = "GLASSWORKS_IMAGE_DIGEST"
COMMIT_VARIABLE = "GLASSWORKS_GIT_COMMIT"


class Stopwatch:
    """Measures one run of a stage; `finish` gives the record."""

    def __init__(self) -> None:
        self._started_at = datetime.now(UTC)
        self._clock = time.monotonic()
        self.resumed = False

    def finish(self) -> Provenance:
        """Everything known about this process, up to now."""
        seconds = time.monotonic() - self._clock
        return Provenance(
            started_at=self._started_at.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            peak_memory_bytes=peak_memory_bytes(),
            git_commit=git_commit(),
            packages=package_versions(),
            python=platform.python_version(),
            hardware=hardware(),
            image_digest=os.environ.get(IMAGE_VARIABLE),
            cost=_cost(seconds),
            resumed=self.resumed,
        )


def _cost(seconds: float) -> float | None:
    price = os.environ.get(PRICE_VARIABLE)
    return round(float(price) * seconds / 3600, 6) if price else None


def peak_memory_bytes() -> int:
    """Largest resident size of this process or of any child that it waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children) * unit


def git_commit(repository: Path = REPOSITORY) -> str | None:
    """The checked-out commit, with `+changes` when files differ from it; None outside a checkout.

    In a container there is no checkout: who started it says what it was.
    """
    if told := os.environ.get(COMMIT_VARIABLE):
        return told
    try:
        head = _git(repository, "rev-parse", "HEAD")
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+changes" if changed else head


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> Hardware:
    """Processor, memory and, where torch is in use already, its GPUs."""
    return Hardware(
        cpu=_cpu_name(),
        num_cpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
        platform=platform.platform(),
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    torch = sys.modules.get("torch")  # never imported for this: most stages do not need it
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
