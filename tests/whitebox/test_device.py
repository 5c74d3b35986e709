"""Threads: their number is kept on a busy machine, and MKL is told to split sums the same way each time."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

import pytest
import torch

from stages.whitebox.device import in_product_dtype, pick_device, product_dtype

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
    [
        ({}, "AUTO"),
        ({"OMP_DYNAMIC": "true", "MKL_DYNAMIC": "true"}, "AUTO"),
        ({"MKL_CBWR": "COMPATIBLE"}, "COMPATIBLE"),
    ],
)
def test_every_run_splits_sums_the_same_way(asked: dict[str, str], mode: str) -> None:
    said = said_by(PROGRAM, **asked)
    assert "teams may shrink: 0" in said
    calls = re.findall(r"(SGEMM|DPOTRF).* CNR:(\w+) Dyn:(\d).* NThr:(\d+)", said)
    assert set(calls) == {("SGEMM", mode, "0", "2"), ("DPOTRF", mode, "0", "2")}


# Of a program of its own too: what a process was told once holds until its end.
FAULTS = """
import resource, sys, torch
from stages.whitebox.device import keep_freed_memory
if sys.argv[1] == "keeps":
    assert keep_freed_memory()
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(10 * 2**20) for _ in range(3)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keeps") < 100
    assert faults("returns") > 10_000


def test_under_autocast_products_take_its_type() -> None:
    wide = torch.ones(2)
    assert in_product_dtype(wide) is wide
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product_dtype(wide) == in_product_dtype(wide).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert product_dtype(wide) == torch.float32


SHAPES = """
import torch
from stages.whitebox.device import fix_threads
fix_threads(1)
left, right = torch.ones(200, 64).bfloat16(), torch.ones(64, 64).bfloat16()
for rows in 2 * [*range(40, 190)]:
    left[:rows] @ right
"""


@pytest.mark.skipif(
    pick_device().compute_dtype != torch.bfloat16, reason="products in bfloat16 are not chosen here"
)
@pytest.mark.parametrize(
    ("asked", "written"), [({}, 300), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, 150)]
)
def test_few_programs_for_products_are_kept(asked: dict[str, str], written: int) -> None:
    said = said_by(SHAPES, ONEDNN_VERBOSE="2", **asked)
    assert said.count("create:cache_miss") == written
