"""The command line as tests of the nine stages use it, and a finished build of the tiny preset."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from flows.records import latest_record
from flows.report.record import RunRecord
from stages.runtime.store import Artifact, Store, read_manifest


class Cli:
    """Runs `glassworks ...` as a user would, with a Prefect home of its own; or on a server that runs."""

    def __init__(self, repository: Path, home: Path, api_url: str = "") -> None:
        self.repository = repository
        self.home = home
        self._server = {"PREFECT_API_URL": api_url} if api_url else {}

    def command(self, *arguments: str) -> list[str]:
        """The command, with the Python that runs the tests."""
        return [sys.executable, "-m", "flows.cli", *arguments]

    def environment(self, code: Path | None = None, home: Path | None = None) -> dict[str, str]:
        """All threads as a user would have them; the code of `code` instead of this checkout's."""
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        ours = {"PREFECT_HOME": str(home or self.home), "PYTHONPATH": str(code or self.repository)}
        return inherited | self._server | ours

    def __call__(
        self, *arguments: str, cwd: Path | None = None, input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and return what it printed."""
        return subprocess.run(
            self.command(*arguments),
            cwd=cwd or self.repository,
            env=self.environment(cwd),
            input=input,
            capture_output=True,
            text=True,
            timeout=540,
            check=False,
        )


@dataclass(frozen=True)
class TinyBuild:
    """A finished build and how to go on with it."""

    store: Store
    output: str
    run: Cli

    @property
    def record(self) -> RunRecord:
        """The newest run of the store."""
        return latest_record(self.store)

    def artifact(self, stage: str) -> Artifact:
        """The newest run's artifact of a stage."""
        fingerprint = next(s.fingerprint for s in self.record.stages if s.name == stage)
        folder = self.store.artifact_dir(stage, fingerprint or "-")
        manifest = read_manifest(folder)
        assert manifest is not None
        return Artifact(folder, manifest)
