"""The doctor finds what is wrong and names the command that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows import preflight
from flows.image_locks import CONSTRAINTS
from flows.preflight import (
    check_disk,
    check_locked_packages,
    check_locks,
    check_packages,
    check_prefect,
    check_store,
    run_checks,
)
from stages.runtime.fingerprint import installed_packages
from stages.runtime.store import Store


def test_this_environment_is_fit(tmp_path: Path) -> None:
    assert [check for check in run_checks(Store(tmp_path)) if not check.passed and not check.optional] == []


def test_a_wrong_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_requirements", lambda: ["prefect==1.0", "no-such-package>=1"])
    check = check_packages()
    assert not check.passed
    assert "needed ==1.0" in check.found
    assert "no-such-package is not installed" in check.found
    assert "-m pip install --constraint " in check.remedy
    assert check.remedy.endswith("constraints.txt prefect==1.0 'no-such-package>=1'")


def test_other_packages_than_in_the_images_are_worth_knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_locked_packages().passed
    monkeypatch.setattr(
        preflight, "locked_packages", lambda spec: {**installed_packages(spec.name), "numpy": "1.0"}
    )
    check = check_locked_packages()
    assert not check.passed and check.optional
    assert check.found == f"numpy {metadata.version('numpy')}, in images 1.0"
    assert check.remedy.endswith("images/locks/constraints.txt numpy")


def test_the_known_bad_pins_are_among_the_requirements() -> None:
    pins = {Requirement(text).name: Requirement(text).specifier for text in preflight._requirements()}
    assert not pins["fastapi"].contains("0.165.0")
    assert not pins["sqlalchemy"].contains("2.1.9")
    assert pins["prefect"].contains("3.8.8")


@pytest.fixture
def bad_versions(tmp_path: Path) -> Path:
    """A folder that, first on the path, makes an environment one in which Prefect's server cannot start."""
    for name, version in (("fastapi", "0.165.0"), ("sqlalchemy", "2.1.9"), ("prefect", "3.7.2")):
        folder = tmp_path / "bad" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return tmp_path / "bad"


def test_wrong_prefect_dependencies_come_with_what_mends_them(
    bad_versions: Path, tmp_path: Path, repository: Path
) -> None:
    path = os.pathsep.join([str(bad_versions), str(repository)])
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "doctor", "--store", str(tmp_path / "store")],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✗ packages: prefect 3.7.2, needed ==3.8.8; fastapi 0.165.0, needed" in done.stdout
    told = f"{sys.executable} -m pip install --constraint {CONSTRAINTS}"
    assert f"{told} prefect==3.8.8 'fastapi<0.151,>=0.139'" in done.stdout


def test_an_environment_that_does_not_know_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "OURSELVES", "no-such-package")
    check = check_packages()
    assert not check.passed
    assert "not installed" in check.found and check.remedy.endswith("[all]'")


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    check = check_store(tmp_path / "store")
    assert not check.passed
    assert "--store" in check.remedy


def test_a_prefect_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert "builds bring their own" in check_prefect(tmp_path).found
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    check = check_prefect(tmp_path)
    assert not check.passed
    assert "unset PREFECT_API_URL" in check.remedy


def test_locks_that_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_locks(tmp_path).passed
    monkeypatch.setattr(preflight.fcntl, "flock", lambda *_: None)
    assert not check_locks(tmp_path).passed


def test_a_disk_without_a_byte_free() -> None:
    check = check_disk(Path("/proc/store"))
    assert not check.passed
    assert check.found == "0.0 GiB free for /proc/store"
    assert check.remedy == "glassworks gc --yes --store /proc/store"


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk(tmp_path / "not" / "there" / "yet").passed
    monkeypatch.setattr(preflight, "MIN_FREE_DISK_BYTES", 2**60)
    assert not check_disk(tmp_path).passed


@pytest.mark.parametrize("size", ["size=64k", "nr_inodes=3"])
def test_a_store_on_a_full_disk(small_disk: Callable[[str], Path], size: str) -> None:
    store = small_disk(size)
    with suppress(OSError):
        for number in range(4):
            (store / f"filler-{number}").write_bytes(bytes(2**16))
    checks = {check.name: check for check in run_checks(Store(store))}
    assert not checks["store"].passed and not checks["disk"].passed
    for name in ("store", "disk"):
        assert checks[name].remedy == f"glassworks gc --yes --store {store}"
