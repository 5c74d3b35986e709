"""What starts a stage, whichever backend does it: one request, the same for a process and a container."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_contracts.manifest import KeyParts
from stages.runtime.fingerprint import fingerprint as fingerprint_of
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Artifact, Store

OnEvent = Callable[[dict[str, Any]], None]


def notice(message: str) -> dict[str, Any]:
    """An event that everybody in front of the terminal should read, without being a warning."""
    return {"event": "log", "level": "notice", "message": message}


@dataclass(frozen=True)
class Job:
    """One stage to run."""

    spec: StageSpec
    config: StageConfig
    key: KeyParts
    inputs: Mapping[str, Path]
    """Role -> folder of the part."""
    store: Store
    force: bool = False
    niceness: int = 0
    """How far it stands back for stages that run beside it."""
    run_id: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it gets beside ours, such as the GPU that it may use."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what it makes."""
        return fingerprint_of(self.key)

    @property
    def work(self) -> Path:
        """Where it works."""
        return self.store.work_dir(self.spec.name, self.fingerprint)

    @property
    def settings(self) -> Path:
        """The file with its configuration."""
        return self.work.with_name(f"{self.fingerprint}.config.json")

    @property
    def lock(self) -> Path:
        """The file that the stage locks, so that nobody else makes the same artifact meanwhile."""
        return self.work.with_name(f"{self.fingerprint}.lock")

    def options(self, output: Path) -> list[str]:
        """What the stage's program is told. Folders have the same paths wherever it runs."""
        options = ["--config", str(self.settings), "--output", str(output), "--work", str(self.work)]
        options += ["--expect", self.fingerprint, "--events", "json", "--lease", "stdin"]
        for role, folder in self.inputs.items():
            options += ["--input", f"{role}={folder}"]
        return [*options, "--force"] if self.force else options


class Backend(Protocol):
    """Where stages run."""

    name: str
    elsewhere: bool
    """Whether other hosts run the stages; then those see to their own GPUs."""

    def packages(self, spec: StageSpec) -> Mapping[str, str]:
        """Package -> version, of those that the stage imports where it will run: its fingerprint has them."""

    async def check(self, to_run: Callable[[], Sequence[StageSpec]]) -> None:
        """Raise GlassworksError where the stages of `to_run` cannot run, before the first of them starts."""

    async def launch(self, job: Job, on_event: OnEvent) -> Artifact:
        """Run one stage and return its artifact. Raises the stage's own error."""

    async def clear(self, store: Store) -> None:
        """Remove what builds on this store have left behind; only for who holds the store alone."""
