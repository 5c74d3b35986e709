"""Server, worker and deployments as `glassworks up` leaves them: form, cancel, retry, crashes, `down`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.container_spec import STORE_LABEL
from flows.deployments import POOL, planned_runs
from flows.docker_engine import Engine
from flows.prefect_server import answers
from flows.services import left_behind
from stages.catalog import STAGES
from stages.runtime.errors import RetryableError
from stages.runtime.store import Store, read_manifest

pytestmark = [pytest.mark.end_to_end, pytest.mark.host]

Site = Any  # as conftest.py makes it
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


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


def test_cancel_stops_the_stage_and_keeps_its_checkpoint(site: Site) -> None:
    run = site.start_long("sft")
    site.cancel(run)
    site.until(lambda: site.stage_pid("sft") is None, site.CANCELLED_WITHIN_SECONDS)
    site.assert_ended(run, "CANCELLED")
    assert site.checkpoints("sft")


def test_cancel_stops_the_container_and_keeps_its_checkpoint(site: Site, engine: Engine) -> None:
    wanted = {"label": [f"{STORE_LABEL}={site.store.root}"]}
    run = site.start_long("sft", force=False, backend="docker")
    assert engine.api.containers(filters=wanted)
    site.cancel(run)
    site.until(lambda: not engine.api.containers(all=True, filters=wanted), site.CANCELLED_WITHIN_SECONDS)
    site.assert_ended(run, "CANCELLED")
    assert site.checkpoints("sft")


def test_retry_runs_only_what_failed(site: Site, messages: list[dict[str, str]]) -> None:
    run = site.start("rerun-stage/vector_store", with_downstream=True)
    site.until(lambda: site.stage_pid("agent_smoke"))
    os.kill(site.stage_pid("agent_smoke") or 0, signal.SIGKILL)
    site.assert_ended(run, "FAILED")
    assert tasks_when(site, run, agent_smoke="Failed")["vector_store"] == "Completed"
    site.until(lambda: messages)
    assert messages[0]["text"].startswith("rerun-stage ") and ": Failed\n" in messages[0]["text"]
    assert "agent_smoke was killed by SIGKILL" in messages[0]["text"]
    first = newest(site.store, "vector_store")
    site.until(lambda: run not in left_behind(site.service("worker")).values())
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    site.api.post(f"/flow_runs/{run}/set_state", state=again, force=True)
    site.until(lambda: site.state(run)["type"] not in FINAL)
    site.assert_ended(run, "COMPLETED")
    assert tasks_when(site, run, agent_smoke="Completed")["vector_store"] == "Cached"
    assert newest(site.store, "vector_store") == first


def tasks_when(site: Site, run: str, **expected: str) -> dict[str, str]:
    """Stage -> how its last task run ended, once it is as expected: task runs arrive a moment later."""
    site.until(lambda: expected.items() <= site.task_states(run).items())
    return site.task_states(run)


def newest(store: Store, stage: str) -> str:
    """When the youngest artifact of a stage was begun."""
    found = (read_manifest(artifact.folder) for artifact in store.artifacts(stage))
    return max(manifest.provenance.started_at for manifest in found if manifest is not None)


def test_up_mends_what_was_killed(site: Site) -> None:
    run = site.start_long("sft", force=False)
    before = site.service("server"), site.service("worker")
    for service in before:
        os.kill(service.pid, signal.SIGKILL)
        site.until(lambda service=service: not service.alive)
    found = site.cli("doctor", "--store", str(site.store.root))
    assert found.returncode == 1
    assert "the server (pid" in found.stdout and "glassworks up" in found.stdout
    output = site("up")
    assert output.count("had ended") == 2 and output.count("started") == 2 and "there already" in output
    assert site.service("server").about == before[0].about
    assert "1 runs of it go on" in output
    site.cancel(run)  # no worker is left that would signal it
    site.until(lambda: site.stage_pid("sft") is None, site.CANCELLED_WITHIN_SECONDS)
    site.assert_ended(run, "CANCELLED")
    assert site("doctor")


def test_down_stops_both_and_no_more(site: Site) -> None:
    server, worker = site.service("server"), site.service("worker")
    output = site("down")
    assert output.count("stopped") == 2
    assert not server.alive and not worker.alive
    assert not answers(server.about["api_url"])
    assert "nothing that glassworks up started runs here" in site("down")
