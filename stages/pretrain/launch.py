"""More than one process: start them, wait, and tell what became of them.

The stage stays one program. This process checks the inputs and commits the artifact, as always; it starts one
worker for each device with torch's elastic agent (what `torchrun` is made of), and the worker of rank 0
reports the events and writes the model. The agent ends all when one dies, and passes SIGTERM on to all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stages.pretrain.spec import PretrainConfig
from stages.runtime.errors import GlassworksError, RetryableError, StopRequested, UserError
from stages.runtime.session import StageSession

AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
SECONDS_TO_STOP = 20
"""For the last checkpoint; the flow that asked for the stop gives the whole stage 25."""
SECONDS_TO_MEET = 900
STOPPED = StopRequested.exit_code
RANKS = "ranks"
KINDS = {kind.exit_code: kind for kind in (UserError, RetryableError, StopRequested, GlassworksError)}


def processes_here(config: PretrainConfig) -> int:
    """Processes of this machine.

    Raises:
        ValueError: it has fewer GPUs than that, or the other machines would not know where to come.
    """
    if config.nodes > 1 and ":" not in config.rendezvous:
        raise ValueError(
            f"nodes is {config.nodes} and rendezvous {config.rendezvous!r}; give HOST:PORT of this machine"
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0 and config.gpus in (1, "all"):
        return config.processes
    wanted = found if config.gpus == "all" else config.gpus
    if wanted > found:
        raise ValueError(
            f"gpus is {wanted}, and this machine has {found}; set it lower, or 1 and `processes` for a CPU"
        )
    return wanted


def launch(
    config: PretrainConfig,
    inputs: Mapping[str, Path],
    model_folder: Path,
    session: StageSession,
    count: int,
) -> dict[str, float]:
    """Train in `count` processes of this machine, the first node; returns what rank 0 returned.

    Raises:
        UserError, RetryableError, StopRequested: what the worker that failed first raised.
    """
    session.log(
        f"training in {count * config.nodes} processes ({config.data_parallel}), {count} of them here"
    )
    settings = session.work_dir / "worker.json"
    settings.write_text(config.model_dump_json(), encoding="utf-8")
    words = ["--config", str(settings), "--model", str(model_folder), "--work", str(session.work_dir)]
    words += ["--events", "json" if session.events_as_json else "text"]
    run_workers(config, inputs, words, session.work_dir, count, node_rank=0)
    return dict(_result(session.work_dir, 0)["metrics"])


def run_workers(
    config: PretrainConfig,
    inputs: Mapping[str, Path],
    words: list[str],
    work: Path,
    count: int,
    node_rank: int,
) -> None:
    """Start this node's workers and wait for them.

    Raises:
        UserError, RetryableError, StopRequested: what the worker that failed first raised.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from stages.pretrain import worker

    shutil.rmtree(work / RANKS, ignore_errors=True)
    command = ["-m", worker.__name__, *words, "--parent", str(os.getpid())]
    command += [f"--input={role}={folder}" for role, folder in inputs.items()]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we tell what happened
    try:
        with _own_signals_afterwards():
            elastic_launch(_launch_config(config, work, count, node_rank), sys.executable)(*command)
    except SignalException as stopped:
        raise _stop(work, stopped.sigval.name) from None
    except ChildFailedError as failed:
        exit_codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        raise _what_happened(work, exit_codes) from None


def _launch_config(config: PretrainConfig, work: Path, count: int, node_rank: int) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    alone = config.nodes == 1
    return LaunchConfig(
        min_nodes=config.nodes,
        max_nodes=config.nodes,
        nproc_per_node=count,
        run_id="pretrain",
        role="pretrain",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="127.0.0.1:0" if alone else config.rendezvous,
        rdzv_configs={"timeout": SECONDS_TO_MEET} | ({} if alone else {"rank": node_rank}),
        local_addr="127.0.0.1" if alone else None,
        logs_specs=DefaultLogsSpecs(log_dir=str(work / RANKS)),
        max_restarts=0,  # the build goes on from the checkpoint, after somebody has read why
        shutdown_timeout=SECONDS_TO_STOP,
    )


@contextmanager
def _own_signals_afterwards() -> Iterator[None]:
    """The agent puts its handlers in the place of the session's."""
    before = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(work: Path, signal_name: str) -> StopRequested:
    stopped = [
        told["message"] for rank in _ranks(work) if (told := _result(work, rank))["exit_code"] == STOPPED
    ]
    message = stopped[0] if stopped else f"pretrain was stopped by {signal_name}"
    return StopRequested(message, hint="build again to go on")


def _what_happened(work: Path, exit_codes: Mapping[int, int]) -> GlassworksError:
    """The error of the worker that failed on its own, and not of those that lost it."""
    for rank, code in sorted(exit_codes.items()):
        if code < 0 and not _result(work, rank):
            name = signal.Signals(-code).name
            return RetryableError(
                f"process {rank} of the training was killed by {name}; the others were ended",
                hint="build again to go on from the last checkpoint; SIGKILL often means that memory ran out",
            )
    told = {rank: _result(work, rank) for rank in _ranks(work)}
    for rank, result in told.items():
        if "message" in result and not result["lost_others"]:
            kind = KINDS.get(result["exit_code"], GlassworksError)
            if kind is StopRequested:
                return kind(result["message"], hint=result["hint"])
            return kind(f"process {rank} of the training: {result['message']}", hint=result["hint"])
    listed = ", ".join(f"process {rank} with exit code {code}" for rank, code in sorted(exit_codes.items()))
    return RetryableError(f"the training ended: {listed}", hint="their output is above; build again to go on")


def _ranks(work: Path) -> list[int]:
    return sorted(int(path.stem) for path in (work / RANKS).glob("*.json"))


def _result(work: Path, rank: int) -> dict[str, Any]:
    path = work / RANKS / f"{rank}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
