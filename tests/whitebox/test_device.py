"""Threads: their number is kept on a busy machine, and MKL is told to split sums the same way each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

# A program of its own: both libraries read their settings once, and other tests have computed already.
PROGRAM = """
import ctypes, torch
from stages.whitebox.device import fix_threads
fix_threads(2)
rows = torch.eye(64) + 0.1
torch.linalg.cholesky((rows @ rows.T).double())
print("teams may shrink:", getattr(ctypes.CDLL(None), "omp_get_dynamic", lambda: 0)())
"""


def said_by(program: str, **environment: str) -> str:
    """What MKL tells of each call, and what the program prints."""
    without = {name: value for name, value in os.environ.items() if not name.startswith(("MKL_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=without | environment | {"MKL_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch computes without MKL")
@pytest.mark.parametrize(
    ("asked", "mode"),
    [({}, "AUTO"), ({"OMP_DYNAMIC": "true", "MKL_DYNAMIC": "true"}, "AUTO"), ({"MKL_CBWR": "AVX2"}, "AVX2")],
)
def test_every_run_splits_sums_the_same_way(asked: dict[str, str], mode: str) -> None:
    said = said_by(PROGRAM, **asked)
    assert "teams may shrink: 0" in said
    calls = re.findall(r"(SGEMM|DPOTRF).* CNR:(\w+) Dyn:(\d).* NThr:(\d+)", said)
    assert set(calls) == {("SGEMM", mode, "0", "2"), ("DPOTRF", mode, "0", "2")}
