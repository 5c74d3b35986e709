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
from typing import Any

import pytest

from flows.container_run import Ended, run_container
from flows.container_spec import STAGE_LABEL, STORE_LABEL, User, request, user_of
from flows.docker_engine import Engine
from flows.images import image_name
from flows.job import Job
from flows.launch_container import prepare
from stages.catalog import STAGES
from stages.runtime.fingerprint import key_parts
from stages.runtime.spec import Limits, Outside, StageConfig, StageSpec
from stages.runtime.store import Store, damage
from tests.lacking import lacking
from tests.session_server import SessionServer
from tests.tiny_build import TinyBuild

DEADLINE_SECONDS = 120
GONE_SECONDS = 30
"""What is promised: no container is left so long after whatever has happened."""
TINY = ("build", "--preset", "tiny")
BRIEF = (
    *("--set", "pretrain.train_tokens=30_000", "--set", "pretrain.checkpoint_every_seconds=0.2"),
    *("--set", "pretrain.num_threads=1"),  # two that wait for each other take minutes on a busy machine
)
"""A pretraining of seconds: there is time to kill it after its first checkpoint, and the rest is short."""
PRETRAINING = (*TINY, "--until", "pretrain", *BRIEF)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def needed_program() -> Callable[[str], str]:
    """Where a program lies."""

    def find(name: str) -> str:
        return shutil.which(name) or lacking(f"needs {name}: apt-get install {name}")

    return find


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

    def wait_until_gone(self) -> None:
        """No container is left within the time that is promised."""
        self.wait_until(lambda: not self.containers(), "the container to be gone", seconds=GONE_SECONDS)

    def digests(self, *stages: str) -> dict[tuple[str, str], str]:
        """Digests of the parts of these stages, or of all; without Chroma, which is never the same."""
        return {
            (artifact.manifest.stage, part): entry.digest
            for stage in stages or [spec.name for spec in STAGES]
            for artifact in self.store.artifacts(stage)
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
    """A store with the first two stages of the tiny preset and a brief pretraining, built by processes."""
    glassworks = make_glassworks()
    glassworks.take(tiny.store, "corpus_prep", "tokenizer")
    done = glassworks(*PRETRAINING)
    assert done.returncode == 0, done.stdout + done.stderr
    return glassworks


class Training:
    """A build that is at a brief pretraining, in a container, with a checkpoint on disk."""

    def __init__(self, glassworks: Glassworks) -> None:
        self.glassworks = glassworks
        self.build = glassworks.start(*PRETRAINING, "--backend", "docker")

    def checkpoints(self) -> list[Path]:
        """What it has saved."""
        return list((self.glassworks.store.root / "work" / "pretrain").glob("*/checkpoints/*"))

    def kept_its_checkpoint_only(self) -> bool:
        """Whether a checkpoint is there, and nothing that could be taken for an artifact."""
        return bool(self.checkpoints()) and not any(self.glassworks.store.root.glob("artifacts/pretrain/*"))

    def again(self, *more: str) -> subprocess.CompletedProcess[str]:
        """The same command to its end."""
        return self.glassworks(*PRETRAINING, "--backend", "docker", *more)

    def check_that_it_goes_on(self, unbroken: Glassworks, *more: str) -> None:
        """The same command takes up the checkpoint, and ends with the bytes of a build undisturbed."""
        again = self.again(*more)
        assert again.returncode == 0, again.stdout + again.stderr
        [made] = self.glassworks.store.artifacts("pretrain")
        assert made.manifest.provenance.resumed
        assert damage(made.folder, made.manifest) == []
        assert self.glassworks.digests("pretrain") == unbroken.digests("pretrain")
        assert self.checkpoints() == [] and self.glassworks.containers() == []


@pytest.fixture
def training(make_glassworks: Callable[[], Glassworks], begun: Glassworks) -> Iterator[Training]:
    """A build that is at its pretraining; `begun` is what it comes to when nothing disturbs it."""
    glassworks = make_glassworks()
    glassworks.take(begun.store, "corpus_prep", "tokenizer")
    training = Training(glassworks)
    try:
        glassworks.wait_until(training.checkpoints, "a checkpoint of pretrain")
        assert glassworks.containers("pretrain")
        yield training
    finally:
        if training.build.poll() is None:
            os.killpg(training.build.pid, signal.SIGKILL)
            training.build.wait()
