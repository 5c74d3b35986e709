"""Files below a folder in a fixed order, each folder once even where links lead in circles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A path below the folder. problem: why it is no file that can be read; "" for one that is."""

    path: Path
    name: str
    problem: str = ""


def walk(folder: Path) -> Iterator[Entry]:
    """Everything below `folder` but hidden names, sorted by path; folders only where they cannot be read."""
    yield from sorted(_below(folder, "", set()), key=lambda entry: Path(entry.name))


def _below(folder: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:  # a link to a folder above, or a second one to the same
        return
    seen.add((status.st_dev, status.st_ino))
    try:
        inside = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except PermissionError:
        yield Entry(folder, prefix.rstrip("/"), "no_permission")
        return
    for entry in inside:
        if entry.name.startswith("."):
            continue
        path, name = Path(entry.path), prefix + entry.name
        if path.is_dir():
            yield from _below(path, f"{name}/", seen)
        else:
            yield Entry(path, name, "" if _is_file(path) else "not_a_file")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, RuntimeError):  # a link that leads to itself
        return False
