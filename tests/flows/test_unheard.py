"""A program whose reader is gone goes on to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from flows.unheard import go_on_unheard
if sys.argv[2] == "forgiving":
    go_on_unheard()
from rich.console import Console
out, err = Console(), Console(file=sys.stderr)
print("ready", flush=True)
sys.stdin.read()
for number in range(3):
    out.print("line", number)
    err.print("log", number)
Path(sys.argv[1]).write_text("went on")
"""


@pytest.mark.parametrize(("kind", "goes_on"), [("forgiving", True), ("plain", False)])
def test_a_reader_that_is_killed(tmp_path: Path, repository: Path, kind: str, goes_on: bool) -> None:
    """The plain program shows that the test would notice."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "end"), kind],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    assert process.stdout.readline() == b"ready\n"
    for stream in (process.stdout, process.stderr, process.stdin):
        stream.close()
    assert (process.wait(timeout=60) == 0) == goes_on
    assert (tmp_path / "end").exists() == goes_on


def test_what_is_heard_arrives(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "end"), "forgiving"]
    done = subprocess.run(command, cwd=repository, input="", capture_output=True, text=True, check=True)
    assert done.stdout == "ready\nline 0\nline 1\nline 2\n" and "log 2" in done.stderr
