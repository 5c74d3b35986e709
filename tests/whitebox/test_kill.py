"""A real process, killed with SIGKILL at random steps ten times: the weights are the same, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).with_name("kill_program.py")
KILLS = 10


def test_ten_kills_cost_no_bit(counting_shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(counting_shards), str(tmp_path), str(KILLS)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed after") == KILLS, done.stdout
    assert done.stdout.count("going on after step") >= KILLS // 2, done.stdout
    killed, whole = (load_file(tmp_path / f"{name}.safetensors") for name in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(killed[name], tensor), name
