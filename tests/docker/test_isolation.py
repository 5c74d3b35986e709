"""What a stage's container cannot do, tried for real."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from flows.launch_container import container_error
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.spec import Limits, Outside

ATTEMPT = """
import json, os, socket, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
part = arguments["--input"].partition("=")[2]
work = arguments["--work"]
store = os.path.dirname(os.path.dirname(os.path.dirname(work)))
def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return type(error).__name__ + " " + str(error.errno)
def execute():
    with open("/tmp/x", "w") as file:
        file.write("#!/bin/true")
    os.chmod("/tmp/x", 0o755)
    os.execv("/tmp/x", ["x"])
status = open("/proc/self/status").read()
print(json.dumps({
    "root": attempt(lambda: open("/glassworks/x", "w")),
    "packages": attempt(lambda: open("/opt/venv/x", "w")),
    "input": attempt(lambda: open(part + "/text.txt", "w")),
    "new in input": attempt(lambda: open(part + "/new", "w")),
    "manifest": attempt(lambda: open(os.path.dirname(part) + "/manifest.json", "a")),
    "config": attempt(lambda: open(arguments["--config"], "a")),
    "store": attempt(lambda: open(store + "/new", "w")),
    "another artifact": attempt(lambda: os.listdir(store + "/artifacts/other")),
    "network": attempt(lambda: socket.create_connection(("192.0.2.1", 80), timeout=5)),
    "become root": attempt(lambda: os.setuid(0)),
    "execute in /tmp": attempt(execute),
    "work": attempt(lambda: open(work + "/new", "w").write("x")),
    "scratch": attempt(lambda: open("/tmp/new", "w").write("x")),
    "read": attempt(lambda: open(part + "/text.txt").read()),
    "uid": os.getuid(),
    "capabilities": [line.split()[1] for line in status.splitlines() if line.startswith("Cap")],
    "new privileges": [line.split()[1] for line in status.splitlines() if line.startswith("NoNewPrivs")],
}))
"""


@pytest.fixture
def attempts(probe: Any) -> dict[str, Any]:
    ended, lines = probe(ATTEMPT)
    assert ended.exit_code == 0, ended.errors
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_a_stage_can_do_its_work_and_nothing_else(attempts: dict[str, Any]) -> None:
    read_only = "OSError 30"
    assert (attempts["work"], attempts["scratch"], attempts["read"]) == ("1", "1", "'sand'")
    for what in ("input", "new in input", "manifest", "config", "root", "packages"):
        assert attempts[what] in (read_only, "PermissionError 13"), what
    assert attempts["store"] in (read_only, "PermissionError 13")
    assert attempts["another artifact"] == "FileNotFoundError 2"
    assert attempts["network"] == "OSError 101"
    assert attempts["become root"] == "PermissionError 1"
    assert attempts["execute in /tmp"] == "PermissionError 13"
    assert attempts["uid"] != 0
    assert set(attempts["capabilities"]) == {"0" * 16}
    assert attempts["new privileges"] == ["1"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root has files in root's home")
def test_a_file_in_the_home_of_root_can_be_read(probe: Any) -> None:
    with tempfile.TemporaryDirectory(dir="/root") as folder:
        text = Path(folder, "books", "text.txt")
        text.parent.mkdir()
        text.write_text("sand")
        ended, lines = probe(f"print(open({str(text)!r}).read())", outside=Outside(same_place=(text,)))
    assert (ended.exit_code, lines) == (0, [b"sand"]), ended.errors


def test_too_much_memory_ends_in_words_that_say_what_to_do(probe: Any) -> None:
    limits = Limits(memory_gib=0.0625)
    ended, _ = probe("held = [bytearray(2**20) for _ in range(500)]", limits)
    assert ended.out_of_memory
    error = container_error(STAGES[0], limits, ended, None)
    assert isinstance(error, UserError)
    assert "more than its 0.0625 GiB" in error.message
    assert "--limit corpus_prep.memory_gib=0.125" in error.hint


def test_too_many_processes_are_refused(probe: Any) -> None:
    text = "import os, time\nfor _ in range(100):\n    if os.fork() == 0:\n        time.sleep(2); os._exit(0)"
    ended, _ = probe(text, Limits(memory_gib=0.5, num_processes=20))
    assert ended.exit_code == 1
    assert "BlockingIOError" in ended.errors


def test_much_output_on_both_streams_arrives_whole(probe: Any) -> None:
    text = (
        "import sys\nfor i in range(3000):\n    print(f'{i:05d}' * 40)\n    print('y' * 200, file=sys.stderr)"
    )
    ended, lines = probe(text)
    assert [int(line[:5]) for line in lines] == list(range(3000))
    assert ended.errors.endswith("y" * 200 + "\n")
