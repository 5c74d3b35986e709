"""Loops that numba compiles to machine code, and where that is kept: the first process on a machine compiles.

    from stages.runtime.compiled import njit

Numba looks at the file of a function to see whether its machine code is still right, and not at those that
the function calls into. So the folder is named after all sources with compiled loops, and what belongs to
others is never read. An image compiles while it is built (`GLASSWORKS_KERNELS` names the folder there) and
runs from a file system that nobody can write to, which numba refuses: then what is there is copied to a
folder of this process.

The code is for one kind of processor. On another one numba compiles anew: that takes time, and changes
nothing.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numba

FOLDER_VARIABLE = "GLASSWORKS_KERNELS"
STAGES = Path(__file__).resolve().parents[1]
_MARK = b"from stages.runtime.compiled import"


def sources_digest(stages: Path = STAGES) -> str:
    """16 hex digits over every file with compiled loops."""
    joined = hashlib.sha256()
    for path in sorted(stages.rglob("*.py")):
        content = path.read_bytes()
        if _MARK in content:
            joined.update(path.relative_to(stages).as_posix().encode() + b"\0" + content)
    return joined.hexdigest()[:16]


def kernel_folder() -> Path:
    """The folder for machine code: one that can be written to, with what is known already."""
    parent = Path(os.environ.get(FOLDER_VARIABLE) or STAGES / "__pycache__")
    folder = parent / f"kernels-{sources_digest()}"
    if _is_writable(folder):
        return folder
    own = Path(tempfile.mkdtemp(prefix="kernels-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, own, dirs_exist_ok=True)
    return own


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


setattr(numba.config, "CACHE_DIR", str(kernel_folder()))  # noqa: B010 (its stubs do not know it)
njit = numba.njit
