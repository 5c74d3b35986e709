"""The GitHub Actions workflow for users' repositories: its steps, run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def steps(repository: Path) -> dict[str, str]:
    """Name -> command of every step that is a command."""
    text = (repository / ".github" / "workflows" / "tiny-build.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["tiny"]
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step}


@pytest.fixture(scope="module")
def checkout(
    tiny: Any,
    session_server: Any,
    steps: dict[str, str],
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder as the workflow has it after its build step, which reuses what this session has made."""
    folder = tmp_path_factory.mktemp("checkout")
    program = folder / ".venv" / "bin" / "glassworks"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli "$@"\n')
    program.chmod(0o755)
    shutil.copytree(tiny.store.root, folder / "store", ignore=shutil.ignore_patterns("prefect"))
    session_server.seed(folder / "home")
    done = run_step(steps["Build"], folder, repository)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run_step(command: str, checkout: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    """As the runner does: `bash -eo pipefail`."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PYTHONPATH": str(repository), "GLASSWORKS_STORE": "store"}
    environment["PREFECT_HOME"] = str(checkout / "home")
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_build_step_is_the_build_of_these_tests(steps: dict[str, str]) -> None:
    assert steps["Build"] == ".venv/bin/glassworks build --preset tiny"


def test_the_install_step_is_known_to_make(steps: dict[str, str], repository: Path) -> None:
    done = subprocess.run(
        [*steps["Install"].split(), "--dry-run", "--always-make"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv" in done.stdout and "--editable '.[all]'" in done.stdout


def test_every_other_step_passes(steps: dict[str, str], checkout: Path, repository: Path) -> None:
    for name in [name for name in steps if name not in ("Install", "Build")]:
        done = run_step(steps[name], checkout, repository)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def test_a_broken_artifact_fails_the_verification(
    steps: dict[str, str], checkout: Path, repository: Path
) -> None:
    [file] = (checkout / "store" / "artifacts" / "tokenizer").glob("*/tokenizer/vocab.txt")
    file.write_text(file.read_text() + "x")
    verify = next(command for name, command in steps.items() if name.startswith("Verify"))
    done = run_step(verify, checkout, repository)
    assert done.returncode == 3
    assert "tokenizer       BROKEN" in done.stdout and "vocab.txt" in done.stdout
    assert "glassworks build" in done.stderr
