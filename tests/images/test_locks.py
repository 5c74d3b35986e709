"""The lock files: complete, hashed, and each with only what its image adds."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flows.dockerfile import targets
from flows.image_locks import (
    CONSTRAINTS,
    FAMILIES,
    Pin,
    for_older_patches,
    locked_packages,
    read_lock,
    requirements,
)
from flows.images import locks_of, wheels_for
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import imported_packages, public_version
from stages.runtime.spec import StageSpec


def each_family() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", FAMILIES)


@each_family()
def test_every_package_has_a_hash(family: str) -> None:
    pins = read_lock(family)
    assert pins
    for pin in pins.values():
        assert pin.version
        assert pin.hashes
        assert all(h.startswith("sha256:") and len(h) == 71 for h in pin.hashes)


@each_family()
def test_what_pyproject_asks_for_is_locked_in_a_fitting_version(family: str) -> None:
    below = {name: pin for lock in FAMILIES[family].below for name, pin in read_lock(lock).items()}
    pins = below | read_lock(family)
    for text in requirements(FAMILIES[family].extra):
        asked = Requirement(text)
        version = pins[canonicalize_name(asked.name)].version.split("+")[0]
        assert asked.specifier.contains(version), text


@each_family()
@pytest.mark.parametrize("patch", ["3.11.0", "3.11.13"])
def test_what_packages_need_on_any_patch_release_is_locked_too(family: str, patch: str) -> None:
    pins = read_lock(family)
    held = pins.keys() | {name for below in FAMILIES[family].below for name in read_lock(below)}
    installed = {canonicalize_name(d.name) for d in metadata.distributions()}
    for name in pins.keys() & installed:
        for asked in map(Requirement, metadata.requires(name) or []):
            there = asked.marker is None or asked.marker.evaluate({"python_full_version": patch, "extra": ""})
            assert not there or canonicalize_name(asked.name) in held, f"{name} needs {asked}"


def test_what_older_patch_releases_need_is_asked_for() -> None:
    needs = ['old>=4; python_full_version < "3.11.3"', 'other; python_version < "3.9"', "always"]
    newest = sys.version_info >= (3, 11, 3)
    found = for_older_patches([{"metadata": {"requires_dist": needs}}, {"metadata": {}}])
    assert found == ({"old>=4"} if newest and sys.version_info < (3, 12) else set())


@each_family()
def test_no_lock_repeats_what_is_there_already(family: str) -> None:
    for lock in FAMILIES[family].below:
        assert set(read_lock(family)) & set(read_lock(lock)) == set()


def test_the_two_builds_of_torch_differ_in_nothing_that_they_share() -> None:
    cpu, cuda = read_lock("torch-cpu"), read_lock("torch-cuda")
    assert set(cpu) <= set(cuda)
    assert {n for n in cpu if cpu[n] != cuda[n]} == {"torch"}
    assert cpu["torch"].version.split("+")[0] == cuda["torch"].version
    assert any(name.startswith("nvidia-") for name in cuda)
    assert not any(name.startswith("nvidia-") for name in cpu)


@pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.name)
def test_every_package_that_a_stage_imports_is_in_its_image(spec: StageSpec) -> None:
    assert list(locked_packages(spec)) == imported_packages(f"stages.{spec.name}.__main__")


def test_the_gpu_build_counts_as_the_same_packages() -> None:
    for name, pin in read_lock("torch-cpu").items():
        assert public_version(read_lock("torch-cuda")[name].version) == public_version(pin.version)


def test_processes_are_installed_with_the_versions_of_all_locks(repository: Path) -> None:
    lines = CONSTRAINTS.read_text().splitlines()
    told = dict(line.split("==") for line in lines if not line.startswith("#"))
    locked = {
        name: public_version(pin.version) for family in FAMILIES for name, pin in read_lock(family).items()
    }
    assert told == locked
    path = CONSTRAINTS.relative_to(repository).as_posix()
    assert f"LOCKED := {path}\n" in (repository / "Makefile").read_text()


@pytest.mark.parametrize("name", sorted({name for family in FAMILIES for name in read_lock(family)}))
def test_no_two_locks_disagree(name: str) -> None:
    found = {public_version(pins[name].version) for pins in map(read_lock, FAMILIES) if name in pins}
    assert len(found) == 1


def test_a_lock_survives_reading_and_writing(tmp_path: Path) -> None:
    pin = Pin("torch", "2.13.0+cpu", ("sha256:" + "a" * 64, "sha256:" + "b" * 64))
    text = str(pin).replace("\\\n", " ").split()
    assert text[0] == "torch==2.13.0+cpu"
    assert [word.removeprefix("--hash=") for word in text[1:]] == list(pin.hashes)


def test_an_image_installs_its_own_lock() -> None:
    assert locks_of(targets()["torch"], "cuda") == ["torch-cuda"]
    assert locks_of(targets()["vector"], "cpu") == ["vector"]
    assert locks_of(targets()["dpo"], "cpu") == []
    assert locks_of(targets()["flow"], "cpu") == ["flow"]


def test_a_wheelhouse_is_searched_for_exactly_what_is_locked(tmp_path: Path) -> None:
    for name in ("ftfy-6.3.1-py3-none-any.whl", "ftfy-6.2.0-py3-none-any.whl", "no-wheel.whl"):
        (tmp_path / name).touch()
    lock = {"ftfy": Pin("ftfy", "6.3.1", ())}
    assert [p.name for p in wheels_for(lock, tmp_path)] == ["ftfy-6.3.1-py3-none-any.whl"]
    with pytest.raises(UserError, match=r"lacks 1 wheels: duckdb==1\.0") as caught:
        wheels_for(lock | {"duckdb": Pin("duckdb", "1.0", ())}, tmp_path)
    assert "pip download" in caught.value.hint
