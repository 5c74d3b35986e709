"""A stage that may write nothing but its work folder hands its artifact over; nothing is lost in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.runtime.delivery import delivered, take_delivery
from stages.runtime.errors import ContractError
from stages.runtime.lock import exclusive
from stages.runtime.store import Store, damage, read_manifest


@pytest.fixture
def handed_over(fake_stage: Any, tmp_path: Path) -> tuple[Store, str]:
    """A store with an artifact in a work folder, as a container leaves it, and its fingerprint."""
    probe = tmp_path / "probe"
    fake_stage.run(probe)
    manifest = read_manifest(probe)
    assert manifest is not None
    store = Store(tmp_path / "store")
    work = store.work_dir("fake", manifest.fingerprint)
    done = fake_stage.run(work / "delivered", "{}", "--work", str(work))
    assert done.returncode == 0, done.stderr
    return store, manifest.fingerprint


def take(store: Store, key: str) -> Any:
    return take_delivery(store, "fake", key, lambda message: None, lambda: False)


def test_what_is_delivered_is_all_that_stays(handed_over: tuple[Store, str]) -> None:
    store, key = handed_over
    work = store.work_dir("fake", key)
    assert [path.name for path in work.iterdir()] == ["delivered"]
    assert delivered(work, key) is not None
    assert store.find("fake", key) is None


def test_it_is_moved_into_the_store_once(handed_over: tuple[Store, str]) -> None:
    store, key = handed_over
    artifact = take(store, key)
    assert artifact.folder == store.artifact_dir("fake", key)
    assert damage(artifact.folder, artifact.manifest) == []
    assert not store.work_dir("fake", key).exists()
    assert take(store, key).folder == artifact.folder


def test_a_process_takes_what_a_container_has_left(fake_stage: Any, handed_over: tuple[Store, str]) -> None:
    store, key = handed_over
    work = store.work_dir("fake", key)
    output = store.artifact_dir("fake", key)
    before = (work / "delivered" / "manifest.json").read_bytes()
    done = fake_stage.run(output, "{}", "--work", str(work), "--events", "json")
    assert done.returncode == 0, done.stderr
    assert '"already_built": true' in done.stdout
    assert (output / "manifest.json").read_bytes() == before
    assert not work.exists()


def test_who_is_told_to_makes_it_anew(fake_stage: Any, handed_over: tuple[Store, str]) -> None:
    store, key = handed_over
    work = store.work_dir("fake", key)
    done = fake_stage.run(work / "delivered", "{}", "--work", str(work), "--force", "--events", "json")
    assert done.returncode == 0, done.stderr
    assert '"already_built"' not in done.stdout
    assert [path.name for path in work.iterdir()] == ["delivered"]
    assert take(store, key) is not None


def test_what_is_damaged_or_another_is_not_taken(handed_over: tuple[Store, str]) -> None:
    store, key = handed_over
    assert take(store, "0" * 24) is None
    (store.work_dir("fake", key) / "delivered" / "numbers" / "numbers.txt").write_text("9")
    assert take(store, key) is None
    assert store.find("fake", key) is None


def test_links_are_refused(handed_over: tuple[Store, str], tmp_path: Path) -> None:
    store, key = handed_over
    (store.work_dir("fake", key) / "delivered" / "link").symlink_to(tmp_path)
    with pytest.raises(ContractError, match="neither a file nor a folder"):
        take(store, key)


def test_nothing_is_taken_from_who_is_at_work(handed_over: tuple[Store, str]) -> None:
    store, key = handed_over
    lock = store.work_dir("fake", key).with_name(f"{key}.lock")
    told: list[str] = []
    with exclusive(lock, told.append, lambda: False), pytest.raises(InterruptedError):
        take_delivery(store, "fake", key, told.append, lambda: bool(told))
    assert "is making the same artifact" in told[0]
    assert json.loads(lock.read_text())["pid"] > 0
    assert take(store, key) is not None
