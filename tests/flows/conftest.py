"""One Prefect server for all tests of the flows, and the command line with five dummy stages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

DUMMY_STAGES = Path(__file__).with_name("dummy_stages.py")


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The URL of a server that the whole session shares; flows in this process use it by themselves."""
    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


class DummyCli:
    """`glassworks` with the stages first, second, left, right and last."""

    def __init__(self, folder: Path, api_url: str | None) -> None:
        self.store = folder / "store"
        self.preset = folder / "dummy.toml"
        self.preset.write_text("[left]\nsteps = 3\n")
        self._environment = os.environ | {"PREFECT_HOME": str(folder / "home")}
        self._environment.pop("PREFECT_API_URL", None)
        if api_url is not None:
            self._environment["PREFECT_API_URL"] = api_url

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of `glassworks NAME`."""
        preset = ["--preset", str(self.preset)] if name in ("build", "plan") else []
        asked = [name, *arguments, *preset, "--store", str(self.store)]
        return [sys.executable, str(DUMMY_STAGES), "glassworks", *asked]

    def __call__(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(name, *arguments),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, name: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it in a session of its own, as a terminal would."""
        return subprocess.Popen(
            self.command(name, *arguments),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )


@pytest.fixture
def glassworks(tmp_path: Path, prefect_api: str) -> DummyCli:
    """The command line on a server that runs already."""
    return DummyCli(tmp_path, prefect_api)


@pytest.fixture
def lonely_glassworks(tmp_path: Path) -> DummyCli:
    """The command line where no server runs."""
    return DummyCli(tmp_path, None)
