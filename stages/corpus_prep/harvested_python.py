"""The Python whose documentation is harvested: this one, or one that a file describes.

A container has a Python of its own, and the user wants the documentation of theirs. So whoever starts the
stage there binds the folders of the user's Python into it, and describes in a file what cannot be bound:
its version and the documentation of the modules that are compiled into it. The harvest is then the same to
the byte.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.runtime.errors import UserError

DESCRIPTION_VARIABLE = "GLASSWORKS_HARVESTED_PYTHON"


@dataclass(frozen=True)
class HarvestedPython:
    """Where a Python's documentation is to be found."""

    version: str
    """Implementation and version in full: what is compiled in may differ between builds."""
    standard_library: Path
    package_folders: tuple[str, ...]
    """Folders with installed packages, in the order in which imports look."""
    compiled_modules: tuple[dict[str, Any], ...] | None = None
    """Records of the modules without source, where this interpreter cannot be asked for them."""


def harvested_python() -> HarvestedPython:
    """The Python that GLASSWORKS_HARVESTED_PYTHON describes, else this one.

    Raises UserError where the described one has another grammar: its files are parsed with ours.
    """
    path = os.environ.get(DESCRIPTION_VARIABLE)
    return _described(Path(path)) if path else this_python()


def this_python() -> HarvestedPython:
    """The interpreter that runs."""
    return HarvestedPython(
        version=f"{platform.python_implementation()} {sys.version}",
        standard_library=Path(sysconfig.get_paths()["stdlib"]),
        package_folders=tuple(folder for folder in sys.path if _holds_packages(Path(folder))),
    )


def _holds_packages(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.dist-info"))


@lru_cache(maxsize=4)
def _described(path: Path) -> HarvestedPython:
    told = json.loads(path.read_text(encoding="utf-8"))
    grammar = f"{sys.version_info.major}.{sys.version_info.minor}"
    if told["grammar"] != grammar:
        raise UserError(
            f"your Python is {told['grammar']}, the image has {grammar}: which may read it otherwise",
            hint=f"make the locks with yours (glassworks images lock) and the images on it (--base-image "
            f"python:{told['grammar']}-slim); or pass --source, or run with --backend process",
        )
    return HarvestedPython(
        told["version"],
        Path(told["standard_library"]),
        tuple(told["package_folders"]),
        tuple(told["compiled_modules"]),
    )


def description(python: HarvestedPython, standard_library: str, package_folders: list[str]) -> str:
    """The text of the file that describes `python` to a stage that finds its folders at other places."""
    told = {
        "grammar": f"{sys.version_info.major}.{sys.version_info.minor}",
        "version": python.version,
        "standard_library": standard_library,
        "package_folders": package_folders,
        "compiled_modules": python.compiled_modules,
    }
    return json.dumps(told, ensure_ascii=False)
