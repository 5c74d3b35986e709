"""Flow process, worker and server are killed in mid-run, the disk fills, the clock is wrong: nothing is lost.

Every test leaves the site as `up` would. Stages that are killed get a seed of their own, so that no test
finds what another one made.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.garbage import find_garbage
from flows.prefect_server import answers
from flows.records import latest_record, run_ids
from flows.services import left_behind
from stages.catalog import STAGES
from stages.runtime.store import Artifact, Store, damage, read_manifest, write_durably

pytestmark = [pytest.mark.end_to_end, pytest.mark.host]

Site = Any  # as conftest.py makes it
GONE_WITHIN_SECONDS = 30.0


def often(seed: int) -> list[str]:
    """Settings of a short pretraining of its own that saves a checkpoint twice a second."""
    # One thread: two that must wait for each other take ten times as long where others use the cores too.
    brief = ["pretrain.train_tokens=30_000", "pretrain.num_threads=1"]
    return [f"pretrain.seed={seed}", "pretrain.checkpoint_every_seconds=0.5", *brief]


def start_training(site: Site, seed: int) -> str:
    """Start a run that pretrains, and wait for its first checkpoint; returns the run's id."""
    before = site.checkpoints("pretrain")
    run = str(site.start("rerun-stage/pretrain", overrides=often(seed)))
    site.until(lambda: site.checkpoints("pretrain") - before)
    return run


def processes(site: Site, run: str) -> dict[int, bool]:
    """Pids that work for a run, and whether each is a stage."""
    found = (pid for pid, theirs in left_behind(site.service("worker")).items() if theirs == run)
    return {pid: b"stages." in command_line(pid) for pid in found}


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_service(site: Site, name: str) -> None:
    service = site.service(name)
    os.kill(service.pid, signal.SIGKILL)
    site.until(lambda: not service.alive)


def gone_in_time(site: Site, run: str) -> bool:
    """Whether everything that works for the run ends within the promised time."""
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    while processes(site, run):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def trained(site: Site, seed: int) -> Artifact | None:
    """The artifact of the pretraining with that seed."""
    found = (a for a in site.store.artifacts("pretrain") if a.manifest.config["seed"] == seed)
    return next(found, None)


def assert_whole(store: Store) -> None:
    """Every folder among the artifacts is one, byte for byte."""
    for folder in (store.root / "artifacts").glob("*/*/"):
        manifest = read_manifest(folder)
        assert manifest is not None, folder
        assert damage(folder, manifest) == []


def test_kill_9_of_the_flow_process(site: Site) -> None:
    run = start_training(site, seed=101)
    kill(*(pid for pid, is_stage in processes(site, run).items() if not is_stage))
    assert gone_in_time(site, run)
    site.assert_ended(run, "CRASHED")
    assert site.checkpoints("pretrain") and trained(site, 101) is None
    again = site.start("rerun-stage/pretrain", overrides=often(101))
    site.assert_ended(again, "COMPLETED")
    made = trained(site, 101)
    assert made is not None and made.manifest.provenance.resumed
    assert_whole(site.store)


def test_kill_9_of_worker_and_server_under_a_run(site: Site) -> None:
    run = start_training(site, seed=102)
    kill_service(site, "worker")
    kill_service(site, "server")
    assert not answers(site.service("server").about["api_url"])
    output = site("up")
    assert "1 runs of it go on" in output and output.count("had ended") == 2
    site.assert_ended(run, "COMPLETED")
    assert trained(site, 102) is not None
    assert gone_in_time(site, run)


def build(site: Site, store: Path, *more: str) -> subprocess.Popen[str]:
    """Start a build that reports to the site's server, and gives up soon on one that is gone."""
    asked = ["build", "--preset", "tiny", "--store", str(store), *more]
    return subprocess.Popen(
        site.cli.command(*asked),
        cwd=site.cli.repository,
        env=site.cli.environment() | {"PREFECT_CLIENT_MAX_RETRIES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until_pretrained(seed: int) -> list[str]:
    """Options of such a build."""
    return ["--until", "pretrain", *(word for change in often(seed) for word in ("--set", change))]


def test_kill_9_of_the_server(site: Site) -> None:
    options = until_pretrained(103)
    before = site.checkpoints("pretrain")
    first = build(site, site.store.root, *options)
    site.until(lambda: site.checkpoints("pretrain") - before)
    kill_service(site, "server")
    output, _ = first.communicate(timeout=240)
    assert first.returncode == 0, output
    assert "the Prefect server does not answer; the build goes on" in output
    assert "Traceback" not in output and "Error logging" not in output
    made = trained(site, 103)
    assert made is not None and not made.manifest.provenance.resumed
    assert latest_record(site.store).status == "completed"
    site("up")
    again = build(site, site.store.root, *options)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0 and output.count(" HIT ") == 3, output


@pytest.fixture
def an_hour_ahead(site: Site) -> Iterator[str]:
    """A run that a host recorded whose clock was an hour ahead; its id."""
    newest = latest_record(site.store)
    moment = datetime.now(UTC) + timedelta(hours=1)
    run_id = f"{moment:%Y%m%d-%H%M%S}-abcd"
    record = newest.model_copy(update={"run_id": run_id, "started_at": moment.isoformat(timespec="seconds")})
    path = site.store.root / "runs" / f"{run_id}.json"
    write_durably(path, record.model_dump_json())
    yield run_id
    path.unlink()


def test_a_clock_that_was_an_hour_ahead(site: Site, an_hour_ahead: str) -> None:
    assert f"the store's newest run, {an_hour_ahead}, is 1h00m ahead of" in site("doctor")
    done = build(site, site.store.root, "--until", "tokenizer", "--set", "tokenizer.vocab_size=600")
    output, _ = done.communicate(timeout=240)
    assert done.returncode == 0, output
    newest = latest_record(site.store)
    assert newest.run_id > an_hour_ahead
    assert newest.configs["tokenizer"]["vocab_size"] == 600
    made = next(stage.fingerprint for stage in newest.stages if stage.name == "tokenizer")
    garbage = {item.folder.name for item in find_garbage(site.store, keep_runs=1)}
    assert made not in garbage and len(run_ids(site.store)) > 1


def test_a_disk_that_fills_up_in_mid_stage(site: Site, small_disk: Callable[[str], Path]) -> None:
    """Room for the text and the tokens, and not for the model's checkpoint."""
    folder = small_disk("size=2500k")
    done = build(site, folder, *until_pretrained(104))
    output, _ = done.communicate(timeout=240)
    assert done.returncode == 75, output
    assert "is full" in output and "glassworks gc" in output
    store = Store(folder)
    assert_whole(store)
    made = {spec.name for spec in STAGES if list(store.artifacts(spec.name))}
    assert {"corpus_prep", "tokenizer"} <= made and "pretrain" not in made
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    again = build(site, folder, *until_pretrained(104))
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0 and output.count(" HIT ") == 2, output
    assert_whole(store)
