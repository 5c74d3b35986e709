"""An artifact exists whole or not at all, whatever happens; and every mistake has its message."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from stages.runtime.events import read_events
from stages.runtime.store import damage, read_manifest


def slow(**settings: Any) -> str:
    return json.dumps({"depth": 40, "seconds": 0.1} | settings)


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def started_counting(output: Path) -> bool:
    return (output.with_name(output.name + ".work") / "checkpoints" / "done").exists()


def numbers(output: Path) -> list[int]:
    return [int(line) for line in (output / "numbers" / "numbers.txt").read_text().split()]


def test_a_stage_becomes_a_whole_artifact(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    done = fake_stage.run(output)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(output)
    assert manifest is not None
    assert damage(output, manifest) == []
    assert manifest.parts["numbers"].contract == "numbers@1"
    assert manifest.metrics == {"count": 3.0}
    assert manifest.provenance.peak_memory_bytes > 1_000_000
    assert not output.with_name("artifact.work").exists()
    kinds = [event["event"] for event in read_events(output / "events.jsonl")]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert '"loss": null' in (output / "events.jsonl").read_text()


def test_a_second_run_changes_nothing(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    fake_stage.run(output)
    before = (output / "manifest.json").read_bytes()
    done = fake_stage.run(output, "{}", "--events", "json")
    assert done.returncode == 0
    assert '"already_built": true' in done.stdout
    assert (output / "manifest.json").read_bytes() == before


def test_a_damaged_artifact_is_replaced(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    fake_stage.run(output)
    (output / "numbers" / "numbers.txt").write_text("0\n1\n3")
    assert fake_stage.run(output).returncode == 0
    assert numbers(output) == [0, 1, 2]
    assert sorted(p.name for p in output.parent.iterdir() if "damaged" in p.name) == []


def test_kill_9_leaves_no_artifact_and_the_next_run_goes_on(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    process = fake_stage.start(output, slow())
    wait_for(lambda: started_counting(output))
    process.kill()
    process.wait()
    assert not output.exists()
    done = fake_stage.run(output, slow(), "--events", "json")
    assert done.returncode == 0
    assert "starting at 0" not in done.stdout
    assert numbers(output) == list(range(40))
    manifest = read_manifest(output)
    assert manifest is not None
    assert manifest.provenance.resumed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_keeps_the_checkpoint(fake_stage: Any, tmp_path: Path, number: int) -> None:
    output = tmp_path / "artifact"
    process = fake_stage.start(output, slow())
    wait_for(lambda: started_counting(output))
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "stopped in good order" in errors
    assert not output.exists()
    assert fake_stage.run(output, slow()).returncode == 0


def test_a_stage_that_never_asks_is_stopped_all_the_same(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    process = fake_stage.start(output, slow(fault="deaf"))
    wait_for(lambda: started_counting(output))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "was stopped by SIGTERM" in errors


def test_a_stage_in_a_long_step_is_stopped_and_keeps_its_checkpoint(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    process = fake_stage.start(output, slow(patience=0.5, fault="long step"))
    events = output.with_name("artifact.work") / "events.jsonl"
    wait_for(lambda: events.exists() and "a long step" in events.read_text())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "was stopped by SIGTERM" in errors
    assert started_counting(output)


def test_a_stage_that_has_heard_may_take_its_time_to_save(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    process = fake_stage.start(output, slow(patience=0.5, saving_seconds=2.0))
    wait_for(lambda: started_counting(output))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "stopped in good order" in errors


def test_the_stage_stops_when_its_controller_is_gone(fake_stage: Any, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    process = fake_stage.start(output, slow(), "--lease", "stdin")
    wait_for(lambda: started_counting(output))
    process.stdin.close()
    assert process.wait(timeout=20) == 143
    assert not output.exists()


def two_at_once(fake_stage: Any, output: Path, *arguments: str) -> tuple[str, str]:
    """What two builds of the same say, of which the second must wait for the first."""
    first = fake_stage.start(output, slow(depth=8), *arguments)
    wait_for(lambda: started_counting(output))
    first.send_signal(signal.SIGSTOP)  # it is not to end before the other has come
    second = fake_stage.start(output, slow(depth=8), *arguments)
    waiting = second.stdout.readline()
    first.send_signal(signal.SIGCONT)
    first_out, _ = first.communicate(timeout=30)
    second_out, _ = second.communicate(timeout=30)
    assert (first.returncode, second.returncode) == (0, 0), second_out
    assert f"waiting for another build: process {first.pid}" in waiting
    return first_out, second_out


def test_two_builds_at_once_make_it_once(fake_stage: Any, tmp_path: Path) -> None:
    first_out, second_out = two_at_once(fake_stage, tmp_path / "artifact")
    assert "starting at" in first_out
    assert "starting at" not in second_out


def test_two_forced_builds_at_once_make_it_twice(fake_stage: Any, tmp_path: Path) -> None:
    """The first removes the work folder that the second, waiting, is going to write to."""
    output = tmp_path / "artifact"
    _, second_out = two_at_once(fake_stage, output, "--force")
    assert "starting at" in second_out
    kept = [event["event"] for event in read_events(output / "events.jsonl")]
    assert (kept[0], kept[-1]) == ("started", "finished")
    assert "waiting" not in (output / "events.jsonl").read_text()


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *sentences: str) -> None:
    assert done.returncode == code, done.stderr
    for sentence in sentences:
        assert sentence in done.stderr


def test_a_typo_in_the_configuration(fake_stage: Any, tmp_path: Path) -> None:
    done = fake_stage.run(tmp_path / "a", '{"dept": 4}')
    assert_refused(done, 2, "[fake] has no setting 'dept' (did you mean 'depth'?)", "depth, seconds, fault")


def test_a_value_of_the_wrong_type(fake_stage: Any, tmp_path: Path) -> None:
    done = fake_stage.run(tmp_path / "a", '{"depth": "deep"}')
    assert_refused(done, 2, "[fake] depth = 'deep'", "depth: How many numbers.")


def test_a_configuration_that_is_no_json(fake_stage: Any, tmp_path: Path) -> None:
    assert_refused(fake_stage.run(tmp_path / "a", "{depth"), 2, "is no JSON")


def test_inputs_must_be_named_and_complete(reading_stage: Any, tmp_path: Path) -> None:
    assert_refused(reading_stage.run(tmp_path / "a"), 2, "lacks its input base (numbers@1)")
    wrong = reading_stage.run(tmp_path / "a", "{}", "--input", f"bass={tmp_path}")
    assert_refused(wrong, 2, "no input 'bass' (did you mean 'base'?)")
    absent = reading_stage.run(tmp_path / "a", "{}", "--input", f"base={tmp_path}/nowhere")
    assert_refused(absent, 2, "nowhere does not exist", "glassworks rerun fake")


def test_an_input_with_one_flipped_bit(fake_stage: Any, reading_stage: Any, tmp_path: Path) -> None:
    fake_stage.run(tmp_path / "base")
    path = tmp_path / "base" / "numbers" / "numbers.txt"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    done = reading_stage.run(tmp_path / "a", "{}", "--input", f"base={tmp_path}/base/numbers")
    assert_refused(done, 3, "numbers/numbers.txt is damaged", "rebuild it: glassworks rerun fake")


def test_an_input_under_another_version(fake_stage: Any, newer_reading_stage: Any, tmp_path: Path) -> None:
    fake_stage.run(tmp_path / "base")
    done = newer_reading_stage.run(tmp_path / "a", "{}", "--input", f"base={tmp_path}/base/numbers")
    assert_refused(done, 3, "was written as numbers@1, this code reads numbers@2")


def test_an_input_from_outside_the_store(reading_stage: Any, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    missing = reading_stage.run(tmp_path / "a", "{}", "--input", f"base={tmp_path}/own")
    assert_refused(missing, 3, "does not keep numbers@1", "expected: one number a line")
    (tmp_path / "own" / "numbers.txt").write_text("40\n2")
    done = reading_stage.run(tmp_path / "a", "{}", "--input", f"base={tmp_path}/own")
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "a") == [42, 43, 44]


def test_a_stage_that_breaks_its_contract_commits_nothing(fake_stage: Any, tmp_path: Path) -> None:
    done = fake_stage.run(tmp_path / "a", '{"fault": "empty"}')
    assert_refused(done, 3, "fake broke numbers@1", "nothing was committed")
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_said_to_be_full(fake_stage: Any, tmp_path: Path) -> None:
    done = fake_stage.run(tmp_path / "a", '{"fault": "full"}')
    assert_refused(done, 75, "is full", "glassworks gc")
    assert not (tmp_path / "a").exists()


def test_a_disk_that_really_is_full(fake_stage: Any, small_disk: Any) -> None:
    small = small_disk("size=64k")
    done = fake_stage.run(small / "a", '{"depth": 30000}')
    assert_refused(done, 75, "is full", "glassworks gc")
    assert not (small / "a").exists()


def test_a_crash_names_the_stage_and_keeps_the_traceback(fake_stage: Any, tmp_path: Path) -> None:
    done = fake_stage.run(tmp_path / "a", '{"fault": "crash"}')
    assert_refused(done, 1, "fake failed with RuntimeError: the middle fell out", "Traceback")


def test_a_plan_that_no_longer_holds(fake_stage: Any, tmp_path: Path) -> None:
    done = fake_stage.run(tmp_path / "a", "{}", "--expect", "0123")
    assert_refused(done, 75, "was planned as 0123", "run the same command again")
