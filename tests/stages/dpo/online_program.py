"""Learns by reward and kills itself with SIGKILL after a step; the test starts it again.

python online_program.py FIELDS INPUTS WORK OUT KILL_AFTER      (FIELDS and INPUTS are JSON)
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path

from stages.dpo.run import run
from stages.dpo.spec import DpoConfig
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession

fields, folders, work, out, kill_after = sys.argv[1:]
session = StageSession(
    "dpo", Path(work), EventLog(Path(work) / "events.jsonl", as_json=True, stream=io.StringIO())
)
polls = iter(range(1, 10**6))


def poll() -> bool:
    """Asked after every step. Checkpoints are written by a thread: the kill waits until one is there."""
    if next(polls) == int(kill_after):
        waits_until = time.monotonic() + 60
        while not any(Path(work).glob("checkpoints/step-*")) and time.monotonic() < waits_until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return False


session.should_stop = poll  # type: ignore[method-assign]
inputs = {name: Path(folder) for name, folder in json.loads(folders).items()}
run(DpoConfig(**json.loads(fields)), inputs, {"model": Path(out)}, session)
