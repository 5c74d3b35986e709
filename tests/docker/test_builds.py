"""Builds with every stage in a container of its own: the same results, and nothing left whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from stages.catalog import STAGES

Glassworks = Any  # as conftest.py makes them
Training = Any


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


def test_kill_9_of_the_controller_then_the_same_bytes(training: Training, begun: Glassworks) -> None:
    os.killpg(training.build.pid, signal.SIGKILL)
    training.build.wait()
    training.glassworks.wait_until_gone()
    assert training.kept_its_checkpoint_only()
    training.check_that_it_goes_on(begun)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_a_build_stops_its_container(training: Training, number: int, code: int) -> None:
    training.build.send_signal(number)
    assert training.build.wait(timeout=60) == code
    assert training.glassworks.containers() == []
    assert training.kept_its_checkpoint_only()


def test_kill_9_of_a_container_then_too_little_memory_then_the_same_bytes(
    training: Training, begun: Glassworks
) -> None:
    glassworks, enough = training.glassworks, "pretrain.memory_gib=0.6"
    [container] = glassworks.containers("pretrain")
    glassworks.engine.api.kill(container["Id"], signal="SIGKILL")
    output, _ = training.build.communicate(timeout=60)
    assert training.build.returncode == 75
    assert "pretrain was killed by SIGKILL" in output
    glassworks.wait_until_gone()
    assert training.kept_its_checkpoint_only()
    starved = training.again("--limit", "pretrain.memory_gib=0.3")
    assert starved.returncode == 2, starved.stdout + starved.stderr
    assert "pretrain needed more than its 0.3 GiB of memory and was killed" in starved.stdout
    assert f"--limit {enough}" in starved.stdout
    glassworks.wait_until_gone()
    assert training.kept_its_checkpoint_only()
    training.check_that_it_goes_on(begun, "--limit", enough)


def test_a_missing_image_is_told_before_anything_runs(make_glassworks: Callable[[], Glassworks]) -> None:
    glassworks = make_glassworks()
    glassworks.environment["GLASSWORKS_IMAGES"] = "glassworks/no-such-{target}:dev"
    done = glassworks("build", "--preset", "tiny", "--backend", "docker")
    assert done.returncode == 2, done.stdout
    assert "images named like glassworks/no-such-corpus_prep:dev are missing: corpus_prep, " in done.stdout
    assert "hint: glassworks images build\n" in done.stdout
    assert not (glassworks.store.root / "artifacts").exists()
