"""Libraries that read one kind of file each, imported when the first such file comes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stages.corpus_prep.reading.damage import DamagedFile


def needed(module: str, package: str, kind: str) -> Any:
    """The module. Raises DamagedFile that says what to install where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DamagedFile(
            "missing_package",
            f"needs the package {package} to be read, because it is {kind} ({error})",
            f"pip install {package}",
        ) from None
