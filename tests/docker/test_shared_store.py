"""Builds that meet in one store, and a store whose disk is full."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.build import Build
from flows.launch_container import DockerBackend
from flows.settings import build_settings
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import RetryableError
from stages.runtime.store import Store

Glassworks = Any  # as conftest.py makes them


async def two_builds(store: Store) -> list[tuple[str, str]]:
    """Stage and outcome of two builds that start at the same moment."""
    builds = [Build(store, build_settings("tiny"), Terminal(), backend=DockerBackend()) for _ in range(2)]
    for spec in STAGES[:2]:
        await asyncio.gather(*(build.stage(spec, lambda _: None) for build in builds))
    return [(name, stage.outcome) for build in builds for name, stage in build.outcomes.items()]


def test_two_builds_at_once_make_each_stage_once(
    make_glassworks: Callable[[], Glassworks], begun: Glassworks
) -> None:
    glassworks, since = make_glassworks(), time.time()
    assert asyncio.run(two_builds(glassworks.store)) == 2 * [("corpus_prep", "ran"), ("tokenizer", "ran")]
    assert glassworks.created(since) == ["corpus_prep", "tokenizer"]
    glassworks.wait_until_gone()
    assert glassworks.digests() == begun.digests("corpus_prep", "tokenizer")


@pytest.fixture
def small_disk(make_glassworks: Callable[[], Glassworks], begun: Glassworks) -> Iterator[Glassworks]:
    """A store on a disk of its own of 64 MiB, with the corpus in it."""
    glassworks = make_glassworks()
    disk = glassworks.store.root
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    try:
        glassworks.take(begun.store, "corpus_prep")
        yield glassworks
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """A file that takes all space of the disk but `leave_bytes`."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(b"\0" * (shutil.disk_usage(disk).free - leave_bytes))
    return filler


async def tokenize(store: Store) -> None:
    """One build of the first two stages."""
    build = Build(store, build_settings("tiny"), Terminal(), backend=DockerBackend())
    for spec in STAGES[:2]:
        await build.stage(spec, lambda _: None)


def test_a_full_disk_is_told_and_the_next_build_goes_on(small_disk: Glassworks, begun: Glassworks) -> None:
    filler = fill(small_disk.store.root, leave_bytes=128 * 2**10)
    with pytest.raises(RetryableError, match="is full") as caught:
        asyncio.run(tokenize(small_disk.store))
    assert "glassworks gc" in caught.value.hint
    small_disk.wait_until_gone()
    assert not list((small_disk.store.root / "artifacts").glob("tokenizer/*"))
    filler.unlink()
    asyncio.run(tokenize(small_disk.store))
    assert small_disk.digests() == begun.digests("corpus_prep", "tokenizer")
