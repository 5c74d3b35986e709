"""Who may import whom: the rules hold, and a planted violation is caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("flows", "stages", "data_contracts")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    environment = os.environ | {"PYTHONPATH": str(folder), "NO_COLOR": "1"}
    return subprocess.run(
        [str(program), "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def copy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(repository / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", folder)
    return folder


def test_the_rules_hold(repository: Path) -> None:
    done = lint_imports(repository)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("stages/pretrain/run.py", "import stages.sft.spec", "stages meet only through artifacts"),
        ("stages/whitebox/losses.py", "import stages.runtime.errors", "the white box needs nothing of ours"),
        ("flows/plan.py", "import stages.dpo.run", "planning needs no torch"),
        ("stages/tokenizer/run.py", "import prefect", "only flows know Prefect"),
    ],
)
def test_a_planted_violation_is_caught(copy: Path, file: str, line: str, broken: str) -> None:
    path = copy / file
    before = path.read_text()
    path.write_text(f"{before}\n\n{line}\n")
    try:
        done = lint_imports(copy)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert f"{broken} BROKEN" in done.stdout


def test_flows_start_without_torch() -> None:
    code = (
        "import sys, stages.catalog, flows.cli; sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
