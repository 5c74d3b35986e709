"""Where the machine code of the compiled loops is kept, so that only the first process on a machine compiles.

Numba looks only at the file of the function that is called, not at those that it calls into; so the folder
is named after all of our sources, and an old one is never read. An image compiles while it is built
(`compile_kernels`) and may be started from a folder that nobody can write to: then what is there is copied
to a folder of this process.

The code is for one kind of processor. On another one numba compiles anew, which takes time and changes
nothing: the loops count in whole numbers.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent


@contextmanager
def kept_machine_code() -> Iterator[Path]:
    """While a module with compiled loops is imported: the folder that numba keeps their machine code in."""
    from numba import config

    before = config.CACHE_DIR
    folder = cache_folder(Path(before) if before else HERE / "__pycache__")
    config.CACHE_DIR = str(folder)
    try:
        yield folder
    finally:
        config.CACHE_DIR = before


@lru_cache(maxsize=1)
def cache_folder(parent: Path) -> Path:
    """A folder under `parent` or, where nobody may write there, a copy of it for this process."""
    folder = parent / f"kernels-{sources_digest()}"
    if _is_writable(folder):
        return folder
    own = Path(tempfile.mkdtemp(prefix="kernels-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, own, dirs_exist_ok=True)
    return own


def sources_digest() -> str:
    """Of all sources here: a loop may call into any other."""
    joined = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        joined.update(path.read_bytes())
    return joined.hexdigest()[:16]


def _is_writable(folder: Path) -> bool:
    """Asked by writing: for root every folder says that it is writable, even on a read-only disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
    except OSError:
        return False
    os.close(handle)
    Path(name).unlink()
    return True
