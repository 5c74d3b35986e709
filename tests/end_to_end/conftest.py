"""`glassworks up` on a copy of the tiny build's store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flows.prefect_rest import PrefectRest
from flows.services import Service, ServiceBook
from stages.runtime.store import Store
from tests.session_server import SessionServer
from tests.tiny_build import Cli, TinyBuild

#: Long enough for a machine with other things to do.
WITHIN_SECONDS = 480
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
#: Fine-tuning in short steps, with little beside them.
ENDLESS = (
    "epochs=100",
    "max_steps=100_000",
    "batch_tokens=1024",
    "checkpoint_every_seconds=0.5",
    "validation_conversations=4",
    "validation_documents=2",
    "sample_tokens=4",
)


@dataclass(frozen=True)
class Site:
    """A store with a finished tiny build, and the services that keep it."""

    cli: Cli
    store: Store
    output: str

    CANCELLED_WITHIN_SECONDS: ClassVar[float] = 15
    """What is promised: from the button to a stage or container that is gone."""

    @staticmethod
    def until(condition: Callable[[], object], seconds: float = WITHIN_SECONDS) -> None:
        """Wait for something that must come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    @property
    def book(self) -> ServiceBook:
        """What runs."""
        return ServiceBook(self.store.root / "prefect")

    @property
    def api(self) -> PrefectRest:
        """The server."""
        return PrefectRest(self.service("server").about["api_url"])

    def service(self, name: str) -> Service:
        """One of the two."""
        service = self.book.read(name)
        assert service is not None
        return service

    def __call__(self, name: str) -> str:
        """`glassworks NAME` on this store, which must end well."""
        done = self.cli(name, "--store", str(self.store.root))
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment as the server has it."""
        flow, _, deployment = name.partition("/")
        found: dict[str, Any] = self.api.get(f"/deployments/name/{flow}/{deployment}")
        return found

    def start(self, name: str, **parameters: Any) -> str:
        """Start a run as the UI's form does; returns its id."""
        place = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return str(self.api.post(place, parameters=parameters, state={"type": "SCHEDULED"})["id"])

    def start_long(self, *stages: str, **parameters: Any) -> str:
        """Start these stages and an endless fine-tuning; returns the run once that has a new checkpoint."""
        before = self.checkpoints("sft")
        changes = [f"sft.{name}" for name in ENDLESS]
        run = self.start("rerun-stage/on-demand", stages=[*stages], overrides=changes, **parameters)
        self.until(lambda: self.checkpoints("sft") - before or self.state(run)["type"] in FINAL)
        assert self.state(run)["type"] == "RUNNING", self.state(run)
        return run

    def cancel(self, run: str) -> None:
        """What the UI's button asks for."""
        self.api.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})

    def checkpoints(self, stage: str) -> set[Path]:
        """What a stage that has not ended would go on from."""
        return set((self.store.root / "work" / stage).glob("*/checkpoints/step-*"))

    def stage_pid(self, stage: str) -> int | None:
        """The process of a stage that works on this store."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if f"stages.{stage}" in words and any(word.startswith(str(self.store.root)) for word in words):
                return int(path.parent.name)
        return None

    def state(self, run: str) -> dict[str, Any]:
        """What the run is doing."""
        found: dict[str, Any] = self.api.get(f"/flow_runs/{run}")["state"]
        return found

    def assert_ended(self, run: str, as_: str) -> None:
        """Wait for the end of a run, which must be of this kind; if not, tells what the run logged."""
        self.until(lambda: self.state(run)["type"] in FINAL)
        state = self.state(run)
        assert state["type"] == as_, "\n".join([f"{state['type']}: {state['message']}", *self.logged(run)])

    def logged(self, run: str) -> list[str]:
        """The last lines that the server has of a run."""
        asked = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC", "limit": 50}
        return [log["message"] for log in reversed(self.api.post("/logs/filter", **asked))]

    def task_states(self, run: str) -> dict[str, str]:
        """Stage -> how its last task run ended, so far."""
        filtered = {"id": {"any_": [run]}}
        found = self.api.post("/task_runs/filter", flow_runs=filtered, sort="EXPECTED_START_TIME_ASC")
        return {task["name"]: task["state"]["name"] for task in found if task["state"]}


@pytest.fixture(scope="module")
def site(
    tiny: TinyBuild, session_server: SessionServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """`glassworks up` on a copy of the tiny build's store; `down` at the end."""
    root = tmp_path_factory.mktemp("site") / "store"
    shutil.copytree(tiny.store.root, root, ignore=shutil.ignore_patterns("prefect", "work"))
    cli = Cli(tiny.run.repository, root / "prefect")
    session_server.seed(cli.home)
    started = cli("up", "--store", str(root))
    assert started.returncode == 0, started.stdout + started.stderr
    yield Site(cli, Store(root), started.stdout)
    assert cli("down", "--store", str(root)).returncode == 0
