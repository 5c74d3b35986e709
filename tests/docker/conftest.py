"""Tests that need a Docker Engine and the images; each says what is missing where it is skipped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from flows.container_run import Ended, run_container
from flows.container_spec import STAGE_LABEL, STORE_LABEL, User, request, user_of
from flows.docker_engine import Engine
from flows.images import CODE_LABEL, code_digest, image_name
from flows.job import Job
from flows.launch_container import prepare
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError
from stages.runtime.fingerprint import key_parts
from stages.runtime.spec import Limits, Outside, StageConfig, StageSpec
from stages.runtime.store import Store
from tests.session_server import SessionServer
from tests.tiny_build import TinyBuild

DEADLINE_SECONDS = 120
REQUIRED = "GLASSWORKS_NEEDS_DOCKER"
TINY = ("build", "--preset", "tiny")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that answers, with images of this code."""
    try:
        found = Engine()
    except GlassworksError as error:
        lacking(f"needs Docker: {error.message}")
    for spec in STAGES:
        image = found.image(image_name(spec.name))
        if image is None or image.labels.get(CODE_LABEL) != code_digest(spec.name):
            lacking(f"needs the image {image_name(spec.name)} of this code: glassworks images build")
    return found


def lacking(what: str) -> NoReturn:
    """Skip the test; fail it where somebody has seen to it that nothing is lacking."""
    if REQUIRED in os.environ:
        pytest.fail(f"{what} ({REQUIRED} is set)")
    pytest.skip(what)


class Config(StageConfig):
    """No settings."""


Probe = Callable[..., tuple[Ended, list[bytes]]]


@pytest.fixture
def probe(engine: Engine, tmp_path: Path) -> Probe:
    """Run Python text in the place of a stage, in a container that is made as for one."""

    def run(
        text: str, limits: Limits | None = None, outside: Outside | None = None
    ) -> tuple[Ended, list[bytes]]:
        asked = _request(engine, tmp_path, limits or Limits(memory_gib=0.5), outside or Outside())
        container = {**asked.container, "entrypoint": ["python", "-c", text]}
        lines: list[bytes] = []
        ended = asyncio.run(run_container(engine, type(asked)(container, asked.host), lines.append))
        return ended, lines

    return run


def _request(engine: Engine, folder: Path, limits: Limits, outside: Outside) -> Any:
    spec = StageSpec(name="probe", version=1, config=Config, writes={})
    part = folder / "store" / "artifacts" / "first" / "aa" / "text"
    part.mkdir(parents=True)
    (part / "text.txt").write_text("sand")
    (part.parent / "manifest.json").write_text("{}")
    (folder / "store" / "artifacts" / "other").mkdir()
    job = Job(spec, Config(), key_parts(spec, Config(), {}), {"text": part}, Store(folder / "store"))
    facts, user = engine.facts(), User.current()
    prepare(job, outside, user_of(user, facts))
    image = image_name("base")
    return request(job, image, "", facts, user, limits=limits, outside=outside, documents={})


class Glassworks:
    """The command line on a store of its own."""

    def __init__(self, engine: Engine, repository: Path, folder: Path, api_url: str) -> None:
        self.engine = engine
        self.repository = repository
        self.store = Store(folder / "store")
        ours = {"PREFECT_HOME": str(folder / "home"), "PYTHONPATH": str(repository)}
        ours["PREFECT_API_URL"] = api_url
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self.environment = inherited | ours

    def command(self, *arguments: str) -> list[str]:
        """`glassworks ...` on the store."""
        return [sys.executable, "-m", "flows.cli", *arguments, "--store", str(self.store.root)]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.repository,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=540,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it in a session of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.repository,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def containers(self, stage: str = "") -> list[dict[str, Any]]:
        """Containers of this store, whatever their state."""
        labels = [f"{STORE_LABEL}={self.store.root}", *([f"{STAGE_LABEL}={stage}"] if stage else [])]
        found: list[dict[str, Any]] = self.engine.api.containers(all=True, filters={"label": labels})
        return found

    def take(self, other: Store, *stages: str) -> None:
        """Have what another store holds of these stages."""
        for stage in stages:
            folder = Path("artifacts", stage)
            shutil.copytree(other.root / folder, self.store.root / folder)

    def created(self, since: float) -> list[str]:
        """Stage of each container that was created for this store, in order."""
        wanted = {"type": "container", "event": "create", "label": f"{STORE_LABEL}={self.store.root}"}
        until = int(time.time()) + 1
        told = self.engine.api.events(since=int(since), until=until, filters=wanted, decode=True)
        return [event["Actor"]["Attributes"][STAGE_LABEL] for event in told]

    @staticmethod
    def wait_until(true: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> None:
        """Poll until it is true; fails the test when it does not come true."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
            time.sleep(0.2)

    def digests(self) -> dict[tuple[str, str], str]:
        """Digest of every part that must be the same each time; that of Chroma is not."""
        return {
            (artifact.manifest.stage, part): entry.digest
            for spec in STAGES
            for artifact in self.store.artifacts(spec.name)
            for part, entry in artifact.manifest.parts.items()
            if part != "chroma"
        }


@pytest.fixture(scope="session")
def make_glassworks(
    engine: Engine,
    repository: Path,
    session_server: SessionServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], Glassworks]]:
    """Makes command lines, each with a store of its own; ends what they leave."""
    made: list[Glassworks] = []

    def make() -> Glassworks:
        folder = tmp_path_factory.mktemp("glassworks")
        made.append(Glassworks(engine, repository, folder, session_server.url))
        return made[-1]

    yield make
    for each in made:
        for container in each.containers():
            each.engine.api.remove_container(container["Id"], force=True)


@pytest.fixture(scope="session")
def by_process(make_glassworks: Callable[[], Glassworks], tiny: TinyBuild) -> Glassworks:
    """A store with the tiny preset, built by processes."""
    glassworks = make_glassworks()
    glassworks.take(tiny.store, *(spec.name for spec in STAGES))
    return glassworks


@pytest.fixture(scope="session")
def by_container(make_glassworks: Callable[[], Glassworks]) -> Glassworks:
    """A store with the tiny preset, each stage built in a container of its own."""
    glassworks = make_glassworks()
    done = glassworks(*TINY, "--backend", "docker")
    assert done.returncode == 0, done.stdout + done.stderr
    return glassworks


@pytest.fixture(scope="session")
def begun(make_glassworks: Callable[[], Glassworks], tiny: TinyBuild) -> Glassworks:
    """A store with the first two stages of the tiny preset, built by processes."""
    glassworks = make_glassworks()
    glassworks.take(tiny.store, "corpus_prep", "tokenizer")
    return glassworks


@pytest.fixture
def training(
    make_glassworks: Callable[[], Glassworks], begun: Glassworks
) -> Iterator[tuple[Glassworks, subprocess.Popen[str]]]:
    """A build that is at a long pretraining in a container, with a checkpoint on disk."""
    glassworks = make_glassworks()
    glassworks.take(begun.store, "corpus_prep", "tokenizer")
    long = ["--set", "pretrain.train_tokens=50_000_000", "--set", "pretrain.checkpoint_every_seconds=1.0"]
    build = glassworks.start(*TINY, "--backend", "docker", "--until", "pretrain", *long)
    checkpoints = glassworks.store.root / "work" / "pretrain"
    try:
        glassworks.wait_until(lambda: any(checkpoints.glob("*/checkpoints/*")), "a checkpoint of pretrain")
        assert glassworks.containers("pretrain")
        yield glassworks, build
    finally:
        if build.poll() is None:
            os.killpg(build.pid, signal.SIGKILL)
            build.wait()
