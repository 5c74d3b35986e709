"""The doctor finds what is wrong and names the command that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows import preflight
from flows.preflight import (
    check_disk,
    check_locks,
    check_packages,
    check_prefect,
    check_store,
    run_checks,
)
from stages.runtime.store import Store


def test_this_environment_is_fit(tmp_path: Path) -> None:
    assert [check for check in run_checks(Store(tmp_path)) if not check.passed and not check.optional] == []


def test_a_wrong_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_requirements", lambda: ["prefect==1.0", "no-such-package>=1"])
    check = check_packages()
    assert not check.passed
    assert "needed ==1.0" in check.found
    assert "no-such-package is not installed" in check.found
    assert check.remedy.endswith("-m pip install prefect==1.0 'no-such-package>=1'")


def test_the_known_bad_pins_are_among_the_requirements() -> None:
    pins = {Requirement(text).name: Requirement(text).specifier for text in preflight._requirements()}
    assert not pins["fastapi"].contains("0.165.0")
    assert not pins["sqlalchemy"].contains("2.1.9")
    assert pins["prefect"].contains("3.8.8")


def test_the_known_bad_versions_come_with_what_mends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"fastapi": "0.165.0", "sqlalchemy": "2.1.9"}
    real = preflight.metadata.version
    monkeypatch.setattr(preflight.metadata, "version", lambda name: bad.get(name) or real(name))
    check = check_packages()
    assert "fastapi 0.165.0, needed" in check.found and "sqlalchemy 2.1.9, needed" in check.found
    assert "pip install 'fastapi" in check.remedy and "'sqlalchemy" in check.remedy


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


def test_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MIN_FREE_DISK_BYTES", 2**60)
    assert not check_disk(tmp_path).passed
