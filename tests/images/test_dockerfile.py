"""Each image holds the code that its stage can import, and no other. Needs no Docker."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from flows import dockerfile
from flows.dockerfile import (
    copied_files,
    image_targets,
    pieces,
    recipe,
    source_digest,
    targets,
    with_parents,
)
from stages.catalog import STAGES
from stages.runtime.fingerprint import code_digests, import_closure
from stages.runtime.spec import StageSpec

ARGUMENTS = {"BASE_IMAGE": "python:3.11-slim", "TORCH": "cpu"}
ALWAYS = ("data_contracts/", "stages/__init__.py", "stages/runtime/")


def each_stage() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.name)


def unit(file: str) -> str:
    """What a COPY line names for a file of the closure."""
    parts = file.split("/")
    if parts[0] == "stages":
        return "stages/__init__.py" if len(parts) == 2 else f"stages/{parts[1]}/"
    return f"{parts[0]}/"


def test_there_is_a_target_for_each_image() -> None:
    families = ["base", "data", "torch", "vector"]
    assert [t.name for t in image_targets()] == [*families, *(spec.name for spec in STAGES), "flow"]


@each_stage()
def test_a_stage_copies_what_it_can_import_and_nothing_else(repository: Path, spec: StageSpec) -> None:
    closure = import_closure(f"stages.{spec.name}.__main__")
    needed = {unit(path.relative_to(repository).as_posix()) for path in closure}
    assert set(targets()[spec.name].copies) == needed


@each_stage()
def test_whatever_counts_in_the_fingerprint_is_in_the_image(repository: Path, spec: StageSpec) -> None:
    copied = {p.relative_to(repository).as_posix() for p in copied_files(targets()[spec.name], ARGUMENTS)}
    assert set(code_digests(f"stages.{spec.name}.__main__")) <= copied


@each_stage()
def test_the_own_folder_comes_last_so_that_a_change_in_it_makes_one_layer(spec: StageSpec) -> None:
    assert targets()[spec.name].copies[-1] == f"stages/{spec.name}/"


@each_stage()
def test_a_stage_stands_on_its_family_and_starts_its_program(spec: StageSpec) -> None:
    target = targets()[spec.name]
    assert target.parent == spec.image
    assert target.lines[-1] == f'ENTRYPOINT ["python", "-m", "stages.{spec.name}"]'


def test_images_run_as_nobody_and_stop_on_sigterm() -> None:
    lines = targets()["base"].lines
    assert "USER 10001:10001" in lines
    assert "STOPSIGNAL SIGTERM" in lines
    changed = [t.name for t in image_targets() if any(line.startswith("USER") for line in t.lines)]
    assert changed == ["base"]


def test_no_step_needs_a_shell_or_buildkit() -> None:
    text = dockerfile.DOCKERFILE.read_text()
    assert "--mount" not in "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "<<" not in text
    for word in ("RUN", "ENTRYPOINT", "CMD"):
        assert re.findall(rf"^{word} (?!\[)", text, flags=re.MULTILINE) == []


def test_packages_are_installed_by_hash_only() -> None:
    installs = [t for t in targets().values() if t.name.endswith("-packages")]
    assert len(installs) == 5
    for target in installs:
        assert '"--require-hashes"' in "\n".join(target.lines)
        assert '"--no-deps"' in "\n".join(target.lines)


def test_what_a_build_is_given_stays_out_of_every_image() -> None:
    for target in image_targets():
        assert dockerfile.OWN not in target.copies
        assert all(name.endswith(("packages", "kernels")) for name in target.copied_targets)


def test_a_recipe_holds_one_image_and_the_package_targets_that_it_needs() -> None:
    text = recipe(targets()["torch"], "glassworks/base:dev")
    assert re.findall(r"^FROM (\S+) AS (\S+)", text, flags=re.MULTILINE) == [
        ("${BASE_IMAGE}", "packages"),
        ("packages", "torch-packages"),
        ("glassworks/base:dev", "torch"),
    ]
    assert [piece.name for piece in pieces(targets()["dpo"])] == ["dpo"]


def test_images_are_built_after_those_below_them() -> None:
    assert [t.name for t in with_parents(["vector_store"])] == ["base", "torch", "vector", "vector_store"]
    assert len(with_parents([])) == len(image_targets())


@pytest.fixture
def copy(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The code and the images' files, to change them."""
    for name in ("data_contracts", "stages", "flows", "images"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / name, tmp_path / name, ignore=skip)
    monkeypatch.setattr(dockerfile, "REPOSITORY", tmp_path)
    return tmp_path


def digests() -> dict[str, str]:
    return {target.name: source_digest(target, ARGUMENTS) for target in image_targets()}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("stages/dpo/run.py", {"dpo", "flow"}),
        ("stages/dpo/README.md", set()),
        ("images/locks/vector.txt", {"vector", "vector_store", "flow"}),
        ("images/locks/torch-cuda.txt", {"flow"}),
        ("flows/plan.py", {"flow"}),
        ("stages/whitebox/losses.py", {spec.name for spec in STAGES} | {"flow"}),
    ],
)
def test_a_change_makes_only_what_holds_it_out_of_date(copy: Path, file: str, changed: set[str]) -> None:
    before = digests()
    with (copy / file).open("a") as text:
        text.write("\n# changed\n")
    after = digests()
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_ignore_file_lets_through_what_is_copied(repository: Path) -> None:
    lines = (repository / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {source.strip("/") for target in targets().values() for source in target.copies}
    for source in copied:
        assert any(source == folder or source.startswith(f"{folder}/") for folder in allowed), source


def test_the_repository_names_no_registry_host(repository: Path) -> None:
    known = re.compile(r"(docker\.io|ghcr\.io|quay\.io|pypi\.org|pytorch\.org|gcr\.io)")
    files = [p for p in (repository / "images").rglob("*") if p.is_file()]
    files = [p for p in files if "own" not in p.parts or p.name == "README.md"]
    assert [p.name for p in files if known.search(p.read_text())] == []
