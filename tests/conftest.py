"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.docker_engine import Engine
from flows.images import holds_our_code, image_name
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError
from stages.runtime.store import Store
from tests.lacking import lacking
from tests.session_server import SessionServer, prefect_server
from tests.tiny_build import Cli, TinyBuild

# Two threads that fight over the cores make small tests slower, and results must not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Builds take all cores, as a user's do, and share them here with other tests. A thread that waits awake is in
# the way of the one that it waits for: tiny's pretraining took 281 s so, and 43 s with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# MKL reads it once, when the first test computes. Stages set it themselves (device.fix_threads); only with it
# does the same run have the same bits here as in its own process: on AMD, MKL's modes differ.
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

# A shell that starts the suite in the background makes it, and all that it starts, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that answers, with images of this code."""
    try:
        found = Engine()
    except GlassworksError as error:
        lacking(f"needs Docker: {error.message}")
    for spec in STAGES:
        image = found.image(image_name(spec.name))
        if image is None or not holds_our_code(image, spec.name):
            lacking(f"needs the image {image_name(spec.name)} of this code: glassworks images build")
    return found


@pytest.fixture(scope="session")
def session_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionServer]:
    """A Prefect server for every build that needs none of its own: a new one takes 9 s of a processor."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="session")
def glassworks(
    repository: Path, session_server: SessionServer, tmp_path_factory: pytest.TempPathFactory
) -> Cli:
    """The command line on the server of the session."""
    return Cli(repository, tmp_path_factory.mktemp("home"), session_server.url)


@pytest.fixture(scope="session")
def tiny(
    glassworks: Cli, session_server: SessionServer, tmp_path_factory: pytest.TempPathFactory
) -> TinyBuild:
    """The whole chain on the tiny preset, with a Prefect server of its own."""
    store = tmp_path_factory.mktemp("tiny") / "store"
    lonely = Cli(glassworks.repository, store.parent / "home")
    session_server.seed(lonely.home)
    done = lonely("build", "--preset", "tiny", "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    return TinyBuild(Store(store), done.stdout, glassworks)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of the size that it is told, such as `size=64k`; skips where that is not allowed."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
