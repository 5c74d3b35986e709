"""An image is pushed to a registry of one's own, and a stage runs by the digest that it got there."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.build import Build
from flows.docker_engine import Engine
from flows.dockerfile import targets
from flows.images import NAMES_VARIABLE, BuildOptions, build_image, image_name
from flows.launch_container import DockerBackend
from flows.settings import build_settings
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.store import Artifact, Store

Glassworks = Any  # as conftest.py makes them
OWN_NAMES = "glassworks-registry-test/"


def forget(engine: Engine, beginning: str) -> None:
    """Take names that begin so away, and with them the images that have no other."""
    for kind in ("RepoTags", "RepoDigests"):  # without its last tag an image loses the name by digest too
        names = [name for image in engine.api.images() for name in image[kind] or ()]
        for name in names:
            if name.startswith(beginning):
                engine.api.remove_image(name)


@pytest.fixture
def own_names(engine: Engine) -> Iterator[str]:
    """Names under which `corpus_prep` is an image of its own, with layers that no other image has."""
    names = OWN_NAMES + "{target}:dev"
    for below in ("base", "data"):
        engine.api.tag(image_name(below), OWN_NAMES + below, "dev")
    build_image(
        engine, targets()["corpus_prep"], BuildOptions(names=names), lambda _: None, anew=True, kit=False
    )
    yield names
    forget(engine, OWN_NAMES)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture
def registry(
    engine: Engine, make_glassworks: Callable[[], Glassworks], needed_program: Callable[[str], str]
) -> Iterator[str]:
    """What names of images begin with in a registry on the loopback, which keeps them as long as the test."""
    program = needed_program("docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "settings.yml")  # JSON is YAML
        storage = {"filesystem": {"rootdirectory": folder}}
        asked = {"version": "0.1", "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}
        settings.write_text(json.dumps(asked))
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen([program, "serve", str(settings)], stdout=log, stderr=log)
        try:
            make_glassworks().wait_until(lambda: listens(port), "the registry to listen")
            yield f"localhost:{port}/glassworks"
        finally:
            server.terminate()
            server.wait()
            forget(engine, f"localhost:{port}/")


def push(repository: Path, registry: str, names: str, digests: Path) -> str:
    """`glassworks images push` of one stage's image; returns the name by which it can be run."""
    pushed = subprocess.run(
        [
            sys.executable,
            "-m",
            "flows.cli",
            "images",
            "push",
            registry,
            "corpus_prep",
            "--digests",
            str(digests),
        ],
        cwd=repository,
        env=os.environ | {NAMES_VARIABLE: names},
        capture_output=True,
        text=True,
        check=False,
    )
    assert pushed.returncode == 0, pushed.stdout + pushed.stderr
    name = str(json.loads(digests.read_text())["corpus_prep"])
    assert name == pushed.stdout.split()[-1]
    assert name.startswith(f"{registry}/corpus_prep@sha256:")
    return name


def build(store: Store) -> Artifact:
    """A build of the first stage, in a container."""
    first = STAGES[:1]
    build = Build(store, build_settings("tiny"), Terminal(), specs=first, backend=DockerBackend())

    async def run() -> Artifact:
        await build.check()
        return await build.stage(first[0], lambda _: None)

    return asyncio.run(run())


def test_a_stage_runs_by_the_digest_that_was_pushed(
    registry: str,
    own_names: str,
    engine: Engine,
    make_glassworks: Callable[[], Glassworks],
    begun: Glassworks,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    glassworks, digests = make_glassworks(), tmp_path / "digests.json"
    here = engine.image(image_name("corpus_prep", own_names))
    name = push(repository, registry, own_names, digests)
    forget(engine, registry)
    forget(engine, OWN_NAMES)
    monkeypatch.setenv(NAMES_VARIABLE, str(digests))
    with pytest.raises(UserError, match=f"there is no image {name}") as caught:
        build(glassworks.store)
    assert caught.value.hint == f"docker pull {name}"
    engine.api.pull(name)
    made = build(glassworks.store)
    assert here is not None and made.manifest.provenance.image_digest == here.digest
    assert glassworks.digests() == begun.digests("corpus_prep")
