"""Builds with every stage in a container of its own: the same results, and nothing left whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from stages.catalog import STAGES

Glassworks = Any  # as conftest.py makes them
Training = tuple[Glassworks, subprocess.Popen[str]]


def test_containers_and_processes_make_the_same_bytes(
    by_process: Glassworks, by_container: Glassworks
) -> None:
    assert len(by_process.digests()) > len(STAGES)
    assert by_container.digests() == by_process.digests()
    assert by_container.containers() == []
    for artifact in by_container.store.artifacts("dpo"):
        provenance = artifact.manifest.provenance
        assert (provenance.image_digest or "").startswith("sha256:")
        assert provenance.git_commit


def test_processes_take_what_containers_have_made(by_container: Glassworks) -> None:
    again = by_container("build", "--preset", "tiny", "--backend", "process")
    assert again.stdout.count(" HIT ") == len(STAGES), again.stdout


def test_the_harvest_is_that_of_the_users_python(make_glassworks: Callable[[], Glassworks]) -> None:
    by_process, by_container = make_glassworks(), make_glassworks()
    changes = [
        "--set",
        "corpus_prep.packages=('python', 'pydantic')",
        "--set",
        "corpus_prep.max_megabytes=2.0",
    ]
    for each, backend in ((by_process, "process"), (by_container, "docker")):
        done = each("build", "--until", "corpus_prep", *changes, "--backend", backend)
        assert done.returncode == 0, done.stdout + done.stderr
    assert by_container.digests() == by_process.digests()


def checkpoints(glassworks: Glassworks) -> list[Any]:
    return list((glassworks.store.root / "work" / "pretrain").glob("*/checkpoints/*"))


def test_kill_9_of_the_controller_leaves_a_checkpoint_and_no_container(training: Training) -> None:
    glassworks, build = training
    os.killpg(build.pid, signal.SIGKILL)
    build.wait()
    glassworks.wait_until(lambda: not glassworks.containers(), "the container to end by itself", seconds=30)
    assert checkpoints(glassworks)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_a_build_stops_its_container(training: Training, number: int, code: int) -> None:
    glassworks, build = training
    build.send_signal(number)
    assert build.wait(timeout=60) == code
    assert glassworks.containers() == []
    assert checkpoints(glassworks)


def test_a_container_that_is_killed_is_said_to_be_killed(training: Training) -> None:
    glassworks, build = training
    [container] = glassworks.containers("pretrain")
    glassworks.engine.api.kill(container["Id"], signal="SIGKILL")
    output, _ = build.communicate(timeout=60)
    assert build.returncode == 75
    assert "pretrain was killed by SIGKILL" in output


def test_a_missing_image_is_told_before_anything_runs(make_glassworks: Callable[[], Glassworks]) -> None:
    glassworks = make_glassworks()
    glassworks.environment["GLASSWORKS_IMAGES"] = "glassworks/no-such-{target}:dev"
    done = glassworks("build", "--preset", "tiny", "--backend", "docker")
    assert done.returncode == 2, done.stdout
    assert "there is no image glassworks/no-such-corpus_prep:dev" in done.stdout
    assert "glassworks images build corpus_prep" in done.stdout
    assert not (glassworks.store.root / "artifacts").exists()
