"""`glassworks` as a user meets it, with five dummy stages: runs, reruns, fails, is stopped, is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.records import latest_record, run_ids
from stages.runtime.store import Store

SLOW = ("--set", "first.steps=400", "--set", "first.seconds=0.05")


def outcomes(cli: Any) -> dict[str, str]:
    return {stage.name: stage.outcome for stage in latest_record(Store(cli.store)).stages}


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def begun(cli: Any) -> Callable[[], bool]:
    return lambda: bool(list(cli.store.glob("work/first/*/checkpoints/steps")))


def processes(cli: Any) -> list[str]:
    """Command lines of what still runs for this store: stages, and the server in its Prefect home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        ours = str(cli.store) in line or ("prefect_server" in line and str(cli.store.parent) in environment)
        if ours and int(folder.name) != os.getpid():
            found.append(line)
    return found


def prefect_states(cli: Any) -> dict[str, list[str]]:
    """Flow -> the names of its runs' states, the oldest first, as Prefect's own database has them."""
    database = sqlite3.connect(cli.store.parent / "home" / "prefect.db")
    query = "SELECT flow.name, flow_run.state_name FROM flow_run JOIN flow ON flow.id = flow_run.flow_id"
    found: dict[str, list[str]] = {}
    for flow, state in database.execute(f"{query} ORDER BY flow_run.created"):
        found.setdefault(flow, []).append(state)
    return found


def test_build_plan_change_rerun(glassworks: Any) -> None:
    constant = ("--set", "second.constant=true")
    done = glassworks("build", *constant)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(outcomes(glassworks).values()) == {"ran"}
    assert "/runs/flow-run/" in done.stdout
    assert Path(done.stdout.splitlines()[-1].removeprefix("report: ")).is_file()

    planned = glassworks("plan", *constant, "--set", 'left.word="iron"').stdout.splitlines()
    assert [line.split()[:2] for line in planned[:4]] == [
        ["first", "HIT"],
        ["second", "HIT"],
        ["left", "RUN"],
        ["right", "HIT"],
    ]
    assert 'word: "glass" -> "iron"' in planned[2]
    assert "input from left, to be made first" in planned[4]
    assert planned[-1].startswith("about ")

    again = glassworks("build", *constant, "--set", "second.steps=3")
    assert again.returncode == 0
    # The stage ran to the same bytes, so what follows was reused.
    assert [name for name, outcome in outcomes(glassworks).items() if outcome == "ran"] == ["second"]

    rerun = glassworks("rerun", "second", "--set", 'second.word="iron"')
    assert rerun.returncode == 0, rerun.stdout
    assert "kept, although made from an earlier second" in rerun.stdout
    assert "kept, although made from an earlier left" in rerun.stdout
    assert outcomes(glassworks)["second"] == "ran"

    idle = glassworks("rerun", "second", "--set", "first.steps=9")
    assert idle.returncode == 2
    assert "'first.steps=9' changes first, which is not rerun" in idle.stdout + idle.stderr


def test_names_of_runs(glassworks: Any) -> None:
    assert glassworks("build").returncode == 0
    for name in ("a/b", "../x", ""):
        assert "is no name" in glassworks("pin", name).stderr
    assert glassworks("pin", "good-one").returncode == 0
    (glassworks.store / "refs" / "folder").mkdir()
    assert glassworks("gc").returncode == 0
    assert glassworks("gc", "--keep", "-1").returncode == 2


def test_a_failure_is_explained_and_the_rest_goes_on(glassworks: Any) -> None:
    done = glassworks("build", "--set", "left.fault=user", "--set", "right.seconds=0.3")
    assert done.returncode == 2
    assert "left failed: the sand is wet: found water, expected sand\n  hint: dry it first" in done.stdout
    assert "failed; when that is mended, the same command goes on from here: glassworks build" in done.stdout
    expected = {"first": "ran", "second": "ran", "left": "failed", "right": "ran", "last": "not reached"}
    assert outcomes(glassworks) == expected
    assert latest_record(Store(glassworks.store)).status == "failed"


def test_ctrl_c_then_going_on(glassworks: Any) -> None:
    process = glassworks.start("build", *SLOW)
    wait_for(begun(glassworks))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped; the same command goes on from here: glassworks build" in output
    assert "Traceback" not in output
    assert latest_record(Store(glassworks.store)).status == "stopped"
    assert processes(glassworks) == []
    [checkpoint] = glassworks.store.glob("work/first/*/checkpoints/steps")
    checkpoint.write_text("399")
    assert glassworks("build", "--until", "first", *SLOW).returncode == 0
    [artifact] = Store(glassworks.store).artifacts("first")
    assert artifact.manifest.provenance.resumed


def test_sigterm_leaves_a_record_too(glassworks: Any) -> None:
    process = glassworks.start("build", *SLOW)
    wait_for(begun(glassworks))
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert latest_record(Store(glassworks.store)).status == "stopped"
    assert processes(glassworks) == []


def test_nothing_is_cleared_up_under_a_build(glassworks: Any) -> None:
    process = glassworks.start("build", *SLOW)
    wait_for(begun(glassworks))
    refused = glassworks("gc", "--yes")
    process.kill()
    process.communicate(timeout=60)
    assert refused.returncode == 75
    assert "a build is using" in refused.stderr
    wait_for(lambda: not processes(glassworks))
    assert glassworks("gc", "--yes").returncode == 0
    assert not list(glassworks.store.glob("work/*/*/"))


def test_kill_9_leaves_neither_stage_nor_server(lonely_glassworks: Any) -> None:
    process = lonely_glassworks.start("build", *SLOW)
    wait_for(begun(lonely_glassworks))
    assert any("prefect_server" in line for line in processes(lonely_glassworks))
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not processes(lonely_glassworks))
    assert run_ids(Store(lonely_glassworks.store)) == []
    assert lonely_glassworks("build", "--until", "first").returncode == 0
    assert prefect_states(lonely_glassworks) == {"build-llm": ["Crashed", "Completed"]}


def test_ctrl_c_while_the_server_starts(lonely_glassworks: Any) -> None:
    process = lonely_glassworks.start("build")
    wait_for(lambda: any("prefect_server" in line for line in processes(lonely_glassworks)))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    wait_for(lambda: not processes(lonely_glassworks))
