"""From a work folder into the store: how a stage hands its artifact over that may not write there itself.

A stage in a container can write nothing but its own work folder. It commits its artifact to `delivered` in
there, with one rename as ever, and whoever started it moves that folder into the store, with a second one.
Each is atomic. When the first has happened and the second has not, because somebody pulled the plug, the
next build of the same artifact finds it here, whole, and only has to take it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stages.runtime.errors import ContractError
from stages.runtime.lock import exclusive
from stages.runtime.store import Artifact, Store, damage, move_into_place, read_manifest

DELIVERED_NAME = "delivered"


def delivered(work: Path, key: str) -> Artifact | None:
    """The artifact that lies whole in a work folder; None where there is none.

    Raises ContractError where it holds anything but files and folders: who wrote it is not trusted with links
    that would be followed out of it.
    """
    folder = work / DELIVERED_NAME
    manifest = read_manifest(folder)
    if manifest is None or manifest.fingerprint != key or damage(folder, manifest):
        return None
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ContractError(
                f"{path} is neither a file nor a folder", hint=f"remove {work} and build again"
            )
    return Artifact(folder, manifest)


def take_delivery(
    store: Store, stage: str, key: str, on_wait: Callable[[str], None], should_stop: Callable[[], bool]
) -> Artifact | None:
    """Move what a stage delivered into the store and clear its work folder away; the artifact, or None.

    Waits for whoever is working on the same artifact. Raises InterruptedError when `should_stop` turns true.
    """
    work = store.work_dir(stage, key)
    with exclusive(work.with_name(f"{work.name}.lock"), on_wait, should_stop):
        if (found := delivered(work, key)) is None:
            return store.find(stage, key)
        _take_ownership(found.folder)
        folder = store.artifact_dir(stage, key)
        move_into_place(found.folder, folder, aside=work)
        shutil.rmtree(work, ignore_errors=True)
        return Artifact(folder, found.manifest)


def _take_ownership(folder: Path) -> None:
    """Root lets stages run as somebody else; what they made is root's again, as if root had made it."""
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 0, 0, follow_symlinks=False)
