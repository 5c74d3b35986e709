"""The stage in two processes: it reports and commits as one does, and says what became of its workers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.pretrain import launch as launching
from stages.pretrain.launch import processes_here
from stages.pretrain.run import run
from stages.pretrain.spec import SPEC, PretrainConfig
from stages.runtime.errors import GlassworksError, RetryableError, StopRequested, UserError
from stages.runtime.session import StageSession


def changed(config: PretrainConfig, **changes: object) -> PretrainConfig:
    return PretrainConfig(**{**config.model_dump(), **changes})


def worker_of(parent: int, rank: int) -> int:
    """The process of a rank, as the kernel lists it."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(parent).encode() in words and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no worker of rank {rank}")


def test_it_survives_a_killed_worker_and_a_stop_and_makes_what_one_process_makes(
    config: PretrainConfig,
    inputs: dict[str, Path],
    tmp_path: Path,
    session: StageSession,
    make_program: Callable[[PretrainConfig], Any],
) -> None:
    short = changed(
        config, train_tokens=30_000, checkpoint_every_seconds=0.2, evaluations=2, precision="float32"
    )
    program = make_program(changed(short, processes=2, data_parallel="ddp"))
    code, text = program.end_with(
        signal.SIGKILL, after_step=3, whom=lambda process: worker_of(process.pid, rank=1)
    )
    assert code == RetryableError.exit_code, text
    assert "process 1 of the training was killed by SIGKILL" in text

    program = make_program(changed(short, processes=2, data_parallel="fsdp"))
    code, text = program.end_with(signal.SIGTERM, after_step=program.newest_step() + 3)
    assert code == StopRequested.exit_code, text
    assert "going on after step" in text
    assert "the checkpoint is saved" in text
    assert not program.output.exists()

    text = make_program(changed(short, processes=2, data_parallel="ddp")).finish()
    assert "training in 2 processes (ddp), 2 of them here" in text
    assert_is_an_artifact(program.output)
    expected = run(short, inputs, {"model": tmp_path}, session)["validation_loss"]
    found = json.loads((program.output / "manifest.json").read_text())["metrics"]["validation_loss"]
    assert found == pytest.approx(expected, abs=1e-3)  # rounding has had 117 steps to grow


def assert_is_an_artifact(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["processes"] == 2 and "processes" not in manifest["key"]["config"]
    assert manifest["metrics"]["train_tokens"] > 20_000
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "started" and kinds[-1] == "finished"
    assert kinds.count("sample") == 2  # of the first process only
    assert {"model", "events.jsonl", "manifest.json"} == {path.name for path in folder.iterdir()}


def test_who_works_is_not_in_the_fingerprint(config: PretrainConfig) -> None:
    other = changed(config, processes=8, nodes=2, rendezvous="host:1", gpus=4, data_parallel="fsdp")
    assert SPEC.key_config(other) == SPEC.key_config(config)
    assert SPEC.key_config(changed(config, seed=1)) != SPEC.key_config(config)


@pytest.mark.parametrize(
    ("gpus_found", "changes", "expected"),
    [
        (0, {}, 1),
        (0, {"processes": 3}, 3),
        (0, {"gpus": "all", "processes": 2}, 2),
        (4, {}, 1),
        (4, {"gpus": 3}, 3),
        (4, {"gpus": "all", "processes": 9}, 4),
        (0, {"nodes": 2, "rendezvous": "first:29500"}, 1),
    ],
)
def test_how_many_processes(
    config: PretrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    gpus_found: int,
    changes: dict[str, object],
    expected: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus_found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus_found)
    assert processes_here(changed(config, **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 2}, "gpus is 2, and this machine has 0; set it lower, or 1 and `processes` for a CPU"),
        ({"nodes": 2}, "nodes is 2 and rendezvous ''; give HOST:PORT of this machine"),
    ],
)
def test_what_is_not_there_is_refused(
    config: PretrainConfig,
    inputs: dict[str, Path],
    tmp_path: Path,
    session: StageSession,
    changes: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(UserError) as caught:
        run(changed(config, **changes), inputs, {"model": tmp_path}, session)
    assert message in caught.value.message


def left(work: Path, **results: dict[str, Any]) -> Path:
    """A work folder with what workers say of themselves, `rank0=...`."""
    (work / launching.RANKS).mkdir(parents=True)
    for name, result in results.items():
        path = work / launching.RANKS / f"{name.removeprefix('rank')}.json"
        path.write_text(json.dumps(result))
    return work


def failure(error: GlassworksError, lost_others: bool = False) -> dict[str, Any]:
    return {"exit_code": error.exit_code, "message": error.message, "hint": "", "lost_others": lost_others}


LOST = failure(RetryableError("the other processes are gone"), lost_others=True)


def test_the_error_that_is_shown_is_the_one_that_began_it(tmp_path: Path) -> None:
    own = failure(UserError("no such token"))
    error = launching._what_happened(left(tmp_path / "a", rank0=LOST, rank1=own), {0: 75, 1: 2})
    assert isinstance(error, UserError) and error.message == "process 1 of the training: no such token"
    error = launching._what_happened(left(tmp_path / "b", rank0=LOST), {0: 75, 1: -signal.SIGSEGV})
    assert (
        isinstance(error, RetryableError)
        and "process 1 of the training was killed by SIGSEGV" in error.message
    )
    error = launching._what_happened(left(tmp_path / "c", rank1=LOST), {0: 1, 1: 75})
    assert error.message == "the training ended: process 0 with exit code 1, process 1 with exit code 75"


def test_workers_use_the_cores_once(config: PretrainConfig, session: StageSession) -> None:
    from stages.pretrain.worker import _adapted

    cores = len(os.sched_getaffinity(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "2")
        assert _adapted(changed(config, num_threads=0), session).num_threads == max(1, cores // 2)
        assert _adapted(changed(config, num_threads=3), session).num_threads == 3
        assert _adapted(changed(config, data_parallel="fsdp"), session).compile == "off"
