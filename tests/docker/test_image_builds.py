"""Images are built anew only as far as their sources changed, by either builder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import dockerfile, images
from flows.docker_engine import Engine
from flows.dockerfile import targets
from flows.images import BuildOptions, build_image, image_name

NAMES = "glassworks-test/{target}:dev"
OPTIONS = BuildOptions(names=NAMES)


@pytest.fixture
def checkout(
    engine: Engine, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A copy of the code, and names for images that are removed afterwards."""
    for name in ("data_contracts", "stages", "flows", "images"):
        skip = shutil.ignore_patterns("__pycache__", "own")
        shutil.copytree(repository / name, tmp_path / name, ignore=skip)
    for module in (dockerfile, images):
        monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    engine.api.tag(image_name("torch"), *image_name("torch", NAMES).split(":"))
    yield tmp_path
    for target in ("dpo", "sft", "torch"):
        if engine.image(image_name(target, NAMES)):
            engine.api.remove_image(image_name(target, NAMES), force=True)


def build(engine: Engine, target: str, kit: bool) -> str:
    built = build_image(engine, targets()[target], OPTIONS, lambda _: None, anew=False, kit=kit)
    return built.outcome


def has_buildkit() -> bool:
    """Whether the docker command can speak to BuildKit."""
    done = subprocess.run(
        ["docker", "build", "--quiet", "-"],
        input="FROM scratch\nLABEL a=b\n",
        env=os.environ | {"DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.parametrize("kit", [False, True], ids=["classic", "buildkit"])
def test_a_changed_line_makes_one_layer_of_one_image(engine: Engine, checkout: Path, kit: bool) -> None:
    if kit and not (shutil.which("docker") and has_buildkit()):
        pytest.skip("needs a docker command with BuildKit")
    assert build(engine, "dpo", kit) == "built"
    assert build(engine, "sft", kit) == "built"
    before = engine.image(image_name("dpo", NAMES))
    assert before is not None
    assert build(engine, "dpo", kit) == "up to date"
    with (checkout / "stages" / "dpo" / "run.py").open("a") as code:
        code.write("\nCHANGED = True\n")
    assert build(engine, "dpo", kit) == f"1 of {len(before.layers)} layers new"
    assert build(engine, "sft", kit) == "up to date"
