"""Paths as the Docker Engine sees them: where we run in a container ourselves, they are not ours.

What a container is to see is named by paths of the host. A flow that runs in a container sees the store
where it was mounted, so each path is translated back by the mounts of that container. The engine knows them;
where it does not, GLASSWORKS_HOST_ROOT says them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from flows.docker_engine import Engine, in_our_words
from flows.images import REVISION_LABEL
from stages.runtime.errors import UserError

VARIABLE = "GLASSWORKS_HOST_ROOT"
EXAMPLE = f"{VARIABLE}=/store=/srv/llm/store"
MOUNT_TABLE = Path("/proc/self/mountinfo")
#: The engine mounts three files of its own into every container; their folder is named after it.
OWN_FILES = re.compile(r"/containers/([0-9a-f]{64})/\S* /etc/(?:hostname|hosts|resolv\.conf) ")

#: Folder in this container -> the same folder on the host. None where we are on the host.
HostRoots = Mapping[Path, Path] | None


def on_host(path: Path, roots: HostRoots) -> Path:
    """The host's path of `path`. Raises UserError for what is in our own container and nowhere else."""
    if roots is None:
        return path
    for folder in (path, *path.parents):
        if folder in roots:
            return roots[folder] / path.relative_to(folder)
    mounted = ", ".join(sorted(map(str, roots))) or "nothing"
    raise UserError(
        f"{path} lies in the flow's own container, where the Docker Engine cannot fetch it for a stage's "
        f"(mounted from the host: {mounted})",
        hint="mount it from the host (`volumes` of the work pool), or name data that is mounted: sources",
    )


def host_roots(engine: Engine, variables: Mapping[str, str] = os.environ) -> HostRoots:
    """What of us lies on the host, by GLASSWORKS_HOST_ROOT, else by what the engine mounted into us."""
    if text := variables.get(VARIABLE):
        return parse_host_roots(text)
    if (container := _own_container()) is None:
        return None
    if (about := _inspected(engine, container)) is None:
        raise UserError(
            "this is a container of another Docker Engine than the one that is to run the stages",
            hint=f"say where on its host the store lies: {EXAMPLE}",
        )
    return mounted_from_host(about)


def own_revision(engine: Engine) -> str:
    """The commit that our own container's image was built from; "" on a host and where nobody knows."""
    container = _own_container()
    about = None if container is None else _inspected(engine, container)
    image = None if about is None else engine.image(about["Image"])
    return "" if image is None else image.labels.get(REVISION_LABEL, "")


def _own_container() -> str | None:
    return own_container(MOUNT_TABLE.read_text(encoding="utf-8")) if MOUNT_TABLE.exists() else None


def _inspected(engine: Engine, container: str) -> Mapping[str, Any] | None:
    """What the engine knows of a container; None for another engine's."""
    with in_our_words():
        try:
            found: Mapping[str, Any] = engine.api.inspect_container(container)
        except NotFound:
            return None
    return found


def parse_host_roots(text: str) -> dict[Path, Path]:
    """`/store=/srv/llm/store,/data=/srv/data` as a mapping. UserError for anything else."""
    roots = {}
    for pair in text.split(","):
        inside, _, outside = (part.strip() for part in pair.partition("="))
        if not (Path(inside).is_absolute() and Path(outside).is_absolute()):
            raise UserError(
                f"{VARIABLE}={text}: {pair!r} is not two full paths, container=host",
                hint=f"such as {EXAMPLE}",
            )
        roots[Path(inside)] = Path(outside)
    return roots


def own_container(mount_table: str) -> str | None:
    """The id of the container that has this /proc/self/mountinfo; None on a host."""
    found = OWN_FILES.search(mount_table)
    return found.group(1) if found else None


def mounted_from_host(container: Mapping[str, Any]) -> dict[Path, Path]:
    """The binds and volumes of an inspected container."""
    kinds = {"bind", "volume"}
    return {
        Path(mount["Destination"]): Path(mount["Source"])
        for mount in container.get("Mounts") or ()
        if mount["Type"] in kinds
    }
