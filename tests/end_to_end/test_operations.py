"""Server, worker and deployments as `glassworks up` leaves them: form, cancel, retry, crashes, `down`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.deployments import POOL, planned_runs
from flows.prefect_rest import PrefectRest
from flows.prefect_server import answers
from flows.services import Service, ServiceBook, left_behind
from stages.catalog import STAGES
from stages.runtime.errors import RetryableError
from stages.runtime.store import Store, read_manifest

pytestmark = pytest.mark.end_to_end

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Site:
    """A store with a finished tiny build, and the services that keep it."""

    cli: Any
    store: Store
    output: str

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

    def state(self, run: str) -> dict[str, Any]:
        """What the run is doing."""
        found: dict[str, Any] = self.api.get(f"/flow_runs/{run}")["state"]
        return found

    def ended(self, run: str) -> str:
        """Wait for the end of a run; returns the kind of it."""
        until(lambda: self.state(run)["type"] in FINAL)
        return str(self.state(run)["type"])

    def task_states(self, run: str) -> dict[str, str]:
        """Stage -> how its last task run ended, so far."""
        filtered = {"id": {"any_": [run]}}
        found = self.api.post("/task_runs/filter", flow_runs=filtered, sort="EXPECTED_START_TIME_ASC")
        return {task["name"]: task["state"]["name"] for task in found if task["state"]}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def site(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site") / "store"
    shutil.copytree(tiny.store.root, root, ignore=shutil.ignore_patterns("prefect", "work"))
    cli = type(tiny.run)(tiny.run.repository, root / "prefect")
    started = cli("up", "--store", str(root))
    assert started.returncode == 0, started.stdout + started.stderr
    yield Site(cli, Store(root), started.stdout)
    assert cli("down", "--store", str(root)).returncode == 0


@pytest.fixture(scope="module")
def messages(site: Site, repository: Path) -> Iterator[list[dict[str, str]]]:
    """What arrives at a team's webhook, by the automation that the documentation shows."""
    received: list[dict[str, str]] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    text = (repository / "flows" / "OPERATIONS.md").read_text()
    [script] = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = site.cli.environment() | {
            "PREFECT_API_URL": site.api.api_url,
            "WEBHOOK_URL": f"http://127.0.0.1:{server.server_address[1]}",
        }
        subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
        yield received
        server.shutdown()


def stage_pid(store: Store, stage: str) -> int | None:
    """The process of a stage that works on this store."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"stages.{stage}" in words and any(word.startswith(str(store.root)) for word in words):
            return int(path.parent.name)
    return None


def test_up_tells_where_to_look_and_what_comes(site: Site) -> None:
    assert f"open         {site.api.api_url.removesuffix('/api')}" in site.output
    assert "build-llm/nightly: 30 2 * * *; next run 2" in site.output
    assert "02:30 UTC" in planned_runs(site.api, site.deployment("build-llm/nightly")["id"])[0]
    assert site.api.get(f"/work_pools/{POOL}")["type"] == "process"


def test_every_stage_has_a_deployment(site: Site) -> None:
    for spec in STAGES:
        found = site.deployment(f"rerun-stage/{spec.name}")
        assert found["parameters"]["stages"] == [spec.name]
        assert found["description"]


def test_an_overlap_is_refused(site: Site) -> None:
    nightly = site.deployment("build-llm/nightly")
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_up_again_changes_nothing(site: Site) -> None:
    before = site.service("server"), site.service("worker")
    output = site("up")
    assert output.count("runs already") == 2 and "there already" in output
    assert (site.service("server"), site.service("worker")) == before


@pytest.mark.parametrize(
    "parameters",
    [
        {"stages": ["sfd"]},
        {"stages": []},
        {"stages": "sft"},
        {"stages": ["sft"], "overrides": ["epochs=4"]},
        {"stages": ["sft"], "force": "perhaps"},
    ],
)
def test_the_form_refuses_what_cannot_be(site: Site, parameters: dict[str, Any]) -> None:
    with pytest.raises(RetryableError, match=r"refused \(4\d\d\)"):
        site.start("rerun-stage/on-demand", **parameters)


def test_cancel_keeps_the_checkpoint(site: Site) -> None:
    long = ["sft.epochs=500", "sft.checkpoint_every_seconds=0.5"]
    run = site.start("rerun-stage/on-demand", stages=["sft"], overrides=long)
    checkpoints = site.store.root / "work" / "sft"
    until(lambda: list(checkpoints.glob("*/checkpoints/*")))
    site.api.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    assert site.ended(run) == "CANCELLED"
    until(lambda: stage_pid(site.store, "sft") is None)
    assert list(checkpoints.glob("*/checkpoints/*"))


def test_retry_runs_only_what_failed(site: Site, messages: list[dict[str, str]]) -> None:
    run = site.start("rerun-stage/vector_store", with_downstream=True)
    until(lambda: stage_pid(site.store, "agent_smoke"))
    os.kill(stage_pid(site.store, "agent_smoke") or 0, signal.SIGKILL)
    assert site.ended(run) == "FAILED"
    assert tasks_when(site, run, agent_smoke="Failed")["vector_store"] == "Completed"
    until(lambda: messages)
    assert messages[0]["text"].startswith("rerun-stage ") and ": Failed\n" in messages[0]["text"]
    assert "agent_smoke was killed by SIGKILL" in messages[0]["text"]
    first = newest(site.store, "vector_store")
    until(lambda: run not in left_behind(site.service("worker")).values())
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    site.api.post(f"/flow_runs/{run}/set_state", state=again, force=True)
    until(lambda: site.state(run)["type"] not in FINAL)
    assert site.ended(run) == "COMPLETED"
    assert tasks_when(site, run, agent_smoke="Completed")["vector_store"] == "Cached"
    assert newest(site.store, "vector_store") == first


def tasks_when(site: Site, run: str, **expected: str) -> dict[str, str]:
    """Stage -> how its last task run ended, once it is as expected: task runs arrive a moment later."""
    until(lambda: expected.items() <= site.task_states(run).items())
    return site.task_states(run)


def newest(store: Store, stage: str) -> str:
    """When the youngest artifact of a stage was begun."""
    found = (read_manifest(artifact.folder) for artifact in store.artifacts(stage))
    return max(manifest.provenance.started_at for manifest in found if manifest is not None)


def test_up_mends_what_was_killed(site: Site) -> None:
    before = site.service("server"), site.service("worker")
    for service in before:
        os.kill(service.pid, signal.SIGKILL)
        until(lambda service=service: not service.alive)
    found = site.cli("doctor", "--store", str(site.store.root))
    assert found.returncode == 1
    assert "the server (pid" in found.stdout and "glassworks up" in found.stdout
    output = site("up")
    assert output.count("had ended") == 2 and output.count("started") == 2 and "there already" in output
    assert site.service("server").about == before[0].about
    assert site("doctor")


def test_down_stops_both_and_no_more(site: Site) -> None:
    server, worker = site.service("server"), site.service("worker")
    output = site("down")
    assert output.count("stopped") == 2
    assert not server.alive and not worker.alive
    assert not answers(server.about["api_url"])
    assert "nothing that glassworks up started runs here" in site("down")
