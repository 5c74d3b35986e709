"""Work that the tests of shards send to other processes, which import it by name."""

from __future__ import annotations

import io
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.errors import UserError
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.runtime.shard_map import ShardMap


@dataclass(frozen=True)
class Job:
    """One shard's task."""

    number: int
    text: str


def write_down(task: Job, folder: Path) -> dict[str, Any]:
    """Write the text to a file."""
    (folder / "words.txt").write_text(task.text)
    return {"number": task.number, "pid": os.getpid(), "moment": time.time_ns()}


def add_up(task: Job, folder: Path) -> dict[str, Any]:
    """Read what another task wrote."""
    return {"characters": len((Path(task.text) / "words.txt").read_text())}


def die_once(task: Job, folder: Path) -> dict[str, Any]:
    """Die as a process does that takes too much memory, the first time that shard 1 comes."""
    if task.number == 1 and not Path(task.text).exists():
        Path(task.text).touch()
        os._exit(137)
    return {}


def refuse(task: Job, folder: Path) -> dict[str, Any]:
    """Find a mistake of the user's."""
    raise UserError(f"shard {task.number} is refused", hint="mend it")


def wait_long(task: Job, folder: Path) -> dict[str, Any]:
    """Say who works, and go on working."""
    pids = Path(task.text)
    pids.mkdir(exist_ok=True)
    (pids / str(os.getpid())).touch()
    time.sleep(600)
    return {}


if __name__ == "__main__":
    work = Path(sys.argv[1])
    session = StageSession(
        "corpus_prep", work, EventLog(work / "e.jsonl", as_json=True, stream=io.StringIO())
    )
    with ShardMap(session, 2) as shards:
        shards.run("wait", wait_long, [Job(n, str(work / "pids")) for n in range(2)])
