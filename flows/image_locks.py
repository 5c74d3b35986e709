"""Lock files of the images: every package with its version and the hashes of the files that may be installed.

One lock per image family, and in it only what the family adds to the images below it. So the image build
installs each lock as it is, with no resolving, and each layer holds what its name says.

torch has two locks. The build for processors and the one for NVIDIA's GPUs are different files under one
version, and the second needs some fifteen packages more. One lock with the hashes of both would let pip
take whichever the index offers: a build that is given the wrong one would end well and fail at the first
import.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from stages.runtime.errors import UserError
from stages.runtime.fingerprint import REPOSITORY, imported_packages, public_version
from stages.runtime.spec import StageSpec
from stages.runtime.store import write_durably

LOCKS = REPOSITORY / "images" / "locks"
CONSTRAINTS = LOCKS / "constraints.txt"
CONSTRAINTS_HEADER = """\
# The versions of all locks, for `pip install --constraint`. Made by:
#     glassworks images lock
"""
HEADER = """\
# Packages that the image `{family}` adds, with the files that may be installed. Made by:
#     glassworks images lock {family}
"""


@dataclass(frozen=True)
class Family:
    """What a lock is made of."""

    extra: str
    """The extra of pyproject.toml that it installs; "" for the packages that everything needs."""
    below: tuple[str, ...] = ()
    """Locks whose packages are there already."""
    local: bool | None = None
    """Whether a version with a local part (`2.13.0+cpu`) is wanted (True), refused (False), or either."""


FAMILIES: Mapping[str, Family] = {
    "base": Family(""),
    "data": Family("data", ("base",)),
    "torch-cpu": Family("torch", ("base",), local=True),
    "torch-cuda": Family("torch", ("base",), local=False),
    "vector": Family("vector", ("base", "torch-cpu")),
    "flow": Family("flow", ("base",)),
}


@dataclass(frozen=True)
class Pin:
    """One line of a lock."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        return " \\\n    ".join([f"{self.name}=={self.version}", *(f"--hash={h}" for h in self.hashes)])


def lock_path(family: str) -> Path:
    """Where the lock of a family lies."""
    return LOCKS / f"{family}.txt"


def read_lock(family: str) -> dict[str, Pin]:
    """Package -> pin. Raises UserError where there is no such lock."""
    path = lock_path(family)
    if not path.is_file():
        raise UserError(f"there is no lock {path}", hint=f"glassworks images lock {family}")
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    pins = [_read_pin(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {pin.name: pin for pin in pins}


def _read_pin(line: str) -> Pin:
    requirement, *options = line.split()
    name, _, version = requirement.partition("==")
    return Pin(name, version, tuple(option.removeprefix("--hash=") for option in options))


def locked_packages(spec: StageSpec) -> dict[str, str]:
    """Package that a stage can import -> version in its image, for its fingerprint. Raises as `read_lock`."""
    family = "torch-cpu" if spec.image == "torch" else spec.image  # the other build has the same versions
    pins = {name: pin for lock in (*FAMILIES[family].below, family) for name, pin in read_lock(lock).items()}
    imported = imported_packages(f"stages.{spec.name}.__main__")
    named = {name: pins.get(canonicalize_name(name)) for name in imported}
    return {name: public_version(pin.version) for name, pin in named.items() if pin is not None}


def write_lock(family: str) -> int:
    """Resolve a family anew and write its lock; returns how many packages it holds.

    Versions that are installed here are preferred, so that containers and processes run the same code.
    """
    held = {name: pin for below in FAMILIES[family].below for name, pin in read_lock(below).items()}
    found = _resolve(family, held)
    added = [pin for pin in found if pin.name not in held]
    lines = [str(pin) for pin in sorted(added, key=lambda pin: pin.name)]
    write_durably(lock_path(family), HEADER.format(family=family) + "\n".join(lines) + "\n")
    return len(added)


def write_constraints() -> None:
    """Write for pip what all locks say without hashes: processes get the packages that containers have."""
    pins = {name: pin for family in FAMILIES for name, pin in read_lock(family).items()}
    lines = [f"{name}=={public_version(pin.version)}" for name, pin in sorted(pins.items())]
    write_durably(CONSTRAINTS, CONSTRAINTS_HEADER + "\n".join(lines) + "\n")


def requirements(extra: str) -> list[str]:
    """What pyproject.toml asks for."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return wanted


def _resolve(family: str, held: Mapping[str, Pin]) -> list[Pin]:
    asked = FAMILIES[family]
    constraints = "\n".join(_constraints(asked, held))
    found = _ask_pip(family, constraints, requirements(asked.extra))
    if older := sorted(for_older_patches(found)):
        found = _ask_pip(family, constraints, [*requirements(asked.extra), *older])
    pins = [_pin(item) for item in found]
    _check_local(family, pins)
    return pins


def _ask_pip(family: str, constraints: str, wanted: list[str]) -> list[dict[str, Any]]:
    """What pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        told, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        told.write_text(constraints, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--only-binary=:all:", "--report", str(report), "--constraint", str(told), *wanted]
        if subprocess.run(command, check=False).returncode != 0:
            raise UserError(f"pip could not resolve {family}", hint="its message is above")
        installed: list[dict[str, Any]] = json.loads(report.read_bytes())["install"]
        return installed


def for_older_patches(found: Iterable[Mapping[str, Any]]) -> set[str]:
    """What these packages need besides on the oldest patch release of this Python: images may have that one.

    `async-timeout; python_full_version < "3.11.3"` of redis is nothing to a Python 3.11.7 that makes locks.
    """
    oldest = {"python_full_version": f"{sys.version_info.major}.{sys.version_info.minor}.0", "extra": ""}
    texts = [text for item in found for text in item["metadata"].get("requires_dist", ())]
    marked = [(one, one.marker) for one in map(Requirement, texts) if one.marker is not None]
    return {
        f"{one.name}{one.specifier}"
        for one, marker in marked
        if marker.evaluate(oldest) and not marker.evaluate({"extra": ""})
    }


def _constraints(family: Family, held: Mapping[str, Pin]) -> Iterable[str]:
    versions: dict[str, str] = {
        canonicalize_name(d.name): d.version for d in metadata.distributions() if d.name
    }
    versions |= {name: pin.version for name, pin in held.items()}
    for name, version in sorted(versions.items()):
        # `==2.13.0` lets pip take any local build of it, and it prefers those; `===` takes none but this.
        plain = Version(version).public
        yield f"{name}==={plain}" if family.local is False and plain != version else f"{name}=={plain}"


def _pin(item: Mapping[str, Any]) -> Pin:
    hashes = item["download_info"]["archive_info"]["hashes"]
    name = canonicalize_name(item["metadata"]["name"])
    return Pin(name, item["metadata"]["version"], (f"sha256:{hashes['sha256']}",))


def _check_local(family: str, pins: Iterable[Pin]) -> None:
    wanted = FAMILIES[family].local
    for pin in pins:
        if pin.name == "torch" and wanted is not None and (Version(pin.version).local is not None) != wanted:
            raise UserError(
                f"the index gave torch {pin.version} for {family}",
                hint="set PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL to where PyTorch has the build that you want",
            )
