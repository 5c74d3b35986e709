"""`python -m stages.pretrain.worker`: one process of a training in several; torchrun can start it too.

    torchrun --nproc-per-node 2 -m stages.pretrain.worker --config c.json --input tokens=DIR \\
        --input tokenizer=DIR --model DIR --work DIR

The environment says who it is (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Rank 0 prints the
events and writes the model; every rank leaves a file that says how it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from stages.pretrain.launch import RANKS
from stages.pretrain.run import train_base_model
from stages.pretrain.spec import SPEC, PretrainConfig
from stages.runtime.errors import GlassworksError, RetryableError, disk_full, is_disk_full
from stages.runtime.events import EVENTS_NAME, EventLog
from stages.runtime.lease import end_with
from stages.runtime.session import StageSession
from stages.whitebox.distributed import process_group

_LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "remote process exited")


def main(arguments: Sequence[str] | None = None) -> None:
    """Take part in the training and end the process with the exit codes of a stage."""
    options = _parse_arguments(arguments)
    if options.parent is not None:
        end_with(options.parent)
    rank = int(os.environ["RANK"])
    session = _session(options, rank)
    session.install_signal_handlers()
    result = _guarded(options, session)
    _leave_word(options.work / RANKS / f"{rank}.json", result)
    # At once: a thread of the communication library may wait for a process that is gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(result["exit_code"])


def _leave_word(path: Path, result: dict[str, Any]) -> None:
    """For who waits. Where even that finds no room, the terminal gets it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result), encoding="utf-8")
    except OSError:
        path.unlink(missing_ok=True)  # an empty file would say less than none
        print(f"error: {result.get('message', 'no room to say how it ended')}", file=sys.stderr)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.pretrain.worker")
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the settings")
    parser.add_argument("--input", action="append", default=[], metavar="ROLE=DIR")
    parser.add_argument("--model", type=Path, help="folder that rank 0 writes the model into")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--events", choices=("text", "json"), default="text")
    parser.add_argument("--parent", type=int, help="process with which this one ends")
    return parser.parse_args(arguments)


def _session(options: argparse.Namespace, rank: int) -> StageSession:
    as_json = options.events == "json"
    if rank == 0:
        return StageSession(SPEC.name, options.work, EventLog(options.work / EVENTS_NAME, as_json=as_json))
    silent = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    return StageSession(SPEC.name, options.work, EventLog(Path(os.devnull), as_json=as_json, stream=silent))


def _guarded(options: argparse.Namespace, session: StageSession) -> dict[str, Any]:
    """How it ended: metrics, or an error with its exit code."""
    try:
        config = cast(PretrainConfig, SPEC.parse_config(json.loads(options.config.read_text("utf-8"))))
        inputs = {role: Path(folder) for role, _, folder in (pair.partition("=") for pair in options.input)}
        with process_group(config.data_parallel) as processes:
            adapted = _adapted(config, session)
            metrics = train_base_model(adapted, inputs, options.model, session, processes)
        return {"exit_code": 0, "metrics": metrics}
    except GlassworksError as error:
        return _failure(error)
    except Exception as error:
        if is_disk_full(error):
            return _failure(disk_full(SPEC.name, options.work))
        if any(phrase in str(error).lower() for phrase in _LOST):
            lost = RetryableError(f"the other processes are gone: {error}", hint="build again to go on")
            return _failure(lost, lost_others=True)
        traceback.print_exc()
        return _failure(GlassworksError(f"{type(error).__name__}: {error}", hint="the traceback is above"))


def _failure(error: GlassworksError, lost_others: bool = False) -> dict[str, Any]:
    return {
        "exit_code": error.exit_code,
        "message": error.message,
        "hint": error.hint,
        "lost_others": lost_others,
    }


def _adapted(config: PretrainConfig, session: StageSession) -> PretrainConfig:
    """Processes of one machine share its cores; torch.compile does not know divided weights."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    changes: dict[str, Any] = {"num_threads": config.num_threads or max(1, cores // here)}
    if config.data_parallel == "fsdp" and config.compile != "off":
        session.log("layers with divided weights are not compiled")
        changes["compile"] = "off"
    return config.model_copy(update=changes)


if __name__ == "__main__":
    main()
