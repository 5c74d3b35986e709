"""The stage in a process of its own, killed with SIGKILL in the middle of a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.runtime.store import file_sha256
from tests.stages.dpo.conftest import OF_A_POLICY, QUICK

PROGRAM = """
    import json, sys
    from pathlib import Path
    from stages.dpo.run import run
    from stages.dpo.spec import DpoConfig
    from stages.runtime.events import EventLog
    from stages.runtime.session import StageSession

    given = json.loads(sys.argv[1])
    work = Path(given["work"])
    session = StageSession("dpo", work, EventLog(work / "log", as_json=True))
    named = [{name: Path(path) for name, path in given[of].items()} for of in ("inputs", "outputs")]
    run(DpoConfig(**given["config"]), *named, session)
"""


def test_kill_9_in_the_middle_costs_no_bit(
    run_dpo: Callable[..., Any], preferences_part: Path, base_model: Any, repository: Path, tmp_path: Path
) -> None:
    fields = {"method": "kto", "epochs": 10.0, "evaluations": 1}
    whole = run_dpo(**fields)
    inputs = {
        "preferences": preferences_part,
        "tokenizer": base_model.tokenizer_folder,
        "tokens": base_model.tokens,
        "model": base_model.model,
    }
    (tmp_path / "model").mkdir()
    given = {
        "work": str(tmp_path / "work"),
        "inputs": {role: str(path) for role, path in inputs.items()},
        "outputs": {"model": str(tmp_path / "model")},
        "config": {**QUICK, **OF_A_POLICY, **fields, "checkpoint_every_seconds": 1e-3},
    }
    killed = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(given)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("work/checkpoints/step-*/state.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "model/model.safetensors").exists()
    resumed = run_dpo(work=tmp_path / "work", **fields)
    assert any("going on after step" in event.get("message", "") for event in resumed.events)
    weights = [tuned.outputs["model"] / "model.safetensors" for tuned in (whole, resumed)]
    assert file_sha256(weights[0]) == file_sha256(weights[1])
