"""What files outside the store hold, for the fingerprints of the stages that read them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def external_digest(path: Path) -> str:
    """sha256 of a file, read once while its time and size stay: a plan asks often, and weights are large."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _digest(path: Path, _modified: int, _size: int) -> str:
    # Not `store.file_sha256`: fingerprints cover what a spec imports, and the store is to be none of it.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
