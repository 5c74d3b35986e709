"""From text on disk to a tested assistant, and what happens when parts of it change, break or are killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_contracts.tables import read_rows
from flows.cli import app
from stages.catalog import STAGES
from stages.runtime.store import Store, damage, read_manifest

pytestmark = pytest.mark.end_to_end

NAMES = [spec.name for spec in STAGES]


def outcomes(output: str) -> dict[str, str]:
    """Stage -> HIT or RUN, from the lines of `glassworks plan`."""
    return dict(re.findall(r"^(\w+) +(HIT|RUN|TRUST)\b", output, flags=re.MULTILINE))


def plan(tiny: Any, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return tiny.run("plan", "--preset", "tiny", "--store", str(tiny.store.root), *arguments, **options)


def test_nine_whole_artifacts_and_a_report(tiny: Any) -> None:
    assert tiny.record.status == "completed"
    assert [stage.name for stage in tiny.record.stages] == NAMES
    for spec in STAGES:
        artifact = tiny.artifact(spec.name)
        assert damage(artifact.folder, artifact.manifest) == []
        for part, contract in spec.writes.items():
            assert contract.check(artifact.part(part)) == []
    assert not list((tiny.store.root / "work").glob("*/*/"))
    report = Path(tiny.output.strip().splitlines()[-1].removeprefix("report: "))
    html = report.read_text(encoding="utf-8")
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S+", "", html)
    for name in NAMES:
        assert name in html


def test_peak_memory_stays_small(tiny: Any) -> None:
    peaks = {name: tiny.artifact(name).manifest.provenance.peak_memory_bytes for name in NAMES}
    assert max(peaks.values()) < 4 * 2**30, peaks


def test_a_second_build_reuses_everything(tiny: Any) -> None:
    done = tiny.run("build", "--preset", "tiny", "--store", str(tiny.store.root))
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"^ +(\w+) +HIT", done.stdout, flags=re.MULTILINE)) == sorted(NAMES)
    assert {stage.outcome for stage in tiny.record.stages} == {"hit"}


def test_one_changed_setting_is_named_and_reruns_what_follows(tiny: Any) -> None:
    done = plan(tiny, "--set", "sft.learning_rate=0.00123")
    assert 'learning_rate: "auto" -> 0.00123' in done.stdout
    rerun = [name for name, outcome in outcomes(done.stdout).items() if outcome == "RUN"]
    assert rerun == ["sft", "dpo", "quantize", "agent_smoke", "benchmark_eval"]


@pytest.fixture
def copied_code(repository: Path, tmp_path: Path) -> Path:
    for package in ("flows", "stages", "data_contracts"):
        shutil.copytree(repository / package, tmp_path / package)
    (tmp_path / "tests").symlink_to(repository / "tests")
    return tmp_path


def test_a_changed_comment_reruns_nothing(tiny: Any, copied_code: Path) -> None:
    losses = copied_code / "stages" / "whitebox" / "losses.py"
    losses.write_text(losses.read_text() + "\n# a remark\n")
    assert set(outcomes(plan(tiny, cwd=copied_code).stdout).values()) == {"HIT"}


def test_a_changed_line_of_the_losses_reruns_what_uses_them(tiny: Any, copied_code: Path) -> None:
    losses = copied_code / "stages" / "whitebox" / "losses.py"
    losses.write_text(losses.read_text().replace("IGNORED = -100", "IGNORED = -100 + 0"))
    done = plan(tiny, cwd=copied_code)
    found = outcomes(done.stdout)
    assert "code stages/whitebox/losses.py" in done.stdout
    assert found["corpus_prep"] == found["tokenizer"] == "HIT"
    assert {found[name] for name in ("pretrain", "sft", "dpo", "quantize", "benchmark_eval")} == {"RUN"}
    trusting = plan(tiny, "--trust-code", cwd=copied_code)
    assert set(outcomes(trusting.stdout).values()) <= {"HIT", "TRUST"}


def test_a_deleted_file_reruns_only_its_stage(tiny: Any) -> None:
    artifact = tiny.artifact("corpus_prep")
    (artifact.folder / "funnel" / "part-00000.parquet").unlink()
    planned = plan(tiny)
    assert "funnel/part-00000.parquet is missing" in planned.stdout
    assert [name for name, outcome in outcomes(planned.stdout).items() if outcome == "RUN"] == ["corpus_prep"]
    done = tiny.run("build", "--preset", "tiny", "--store", str(tiny.store.root))
    assert done.returncode == 0, done.stdout
    ran = [stage.name for stage in tiny.record.stages if stage.outcome == "ran"]
    assert ran == ["corpus_prep"]


def start_build(cli: Any, home: Path, store: Path, until: str, *more: str) -> subprocess.Popen[str]:
    arguments = ["build", "--preset", "tiny", "--store", str(store), "--until", until, *more]
    return subprocess.Popen(
        cli.command(*arguments),
        cwd=cli.repository,
        env=cli.environment(home=home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(store: Path) -> None:
    deadline = time.monotonic() + 240
    while not list((store / "work" / "pretrain").glob("*/checkpoints/*")):
        assert time.monotonic() < deadline, "pretraining left no checkpoint"
        time.sleep(0.05)


def wait_until_nobody_works(store: Path) -> None:
    """The stage notices by its lease that its controller is gone."""
    deadline = time.monotonic() + 60
    while list_processes(store):
        assert time.monotonic() < deadline, "a stage outlived its build"
        time.sleep(0.1)


def list_processes(store: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "-m stages." in line and str(store) in line:
            found.append(line)
    return found


def test_kill_9_in_pretraining_then_the_same_bits(tiny: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for stage in ("corpus_prep", "tokenizer"):
        shutil.copytree(tiny.store.root / "artifacts" / stage, store / "artifacts" / stage)
    settings = ["--set", "pretrain.checkpoint_every_seconds=0.5"]
    process = start_build(tiny.run, tmp_path / "prefect", store, "pretrain", *settings)
    wait_for_checkpoint(store)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_nobody_works(store)
    assert not list((store / "artifacts" / "pretrain").glob("*"))
    done = tiny.run("build", "--preset", "tiny", "--store", str(store), "--until", "pretrain", *settings)
    assert done.returncode == 0, done.stdout
    [artifact] = Store(store).artifacts("pretrain")
    assert artifact.manifest.provenance.resumed
    weights = "model/model.safetensors"
    uninterrupted = {f.path: f.sha256 for f in tiny.artifact("pretrain").manifest.files}
    resumed = {f.path: f.sha256 for f in artifact.manifest.files}
    assert resumed[weights] == uninterrupted[weights]


def test_ctrl_c_keeps_what_was_done(glassworks: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start_build(glassworks, tmp_path / "prefect", store, "pretrain")
    deadline = time.monotonic() + 240
    while not list((store / "work" / "pretrain").glob("*/events.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "the same command goes on from here" in output
    assert list_processes(store) == []
    assert not list((store / "artifacts" / "pretrain").glob("*"))
    assert len(list((store / "artifacts" / "tokenizer").glob("*"))) == 1


def test_two_builds_at_once_on_one_store(glassworks: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    processes = [start_build(glassworks, tmp_path / name, store, "tokenizer") for name in ("a", "b")]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    [artifact] = Store(store).artifacts("tokenizer")
    assert damage(artifact.folder, artifact.manifest) == []


def test_the_chat_answers(tiny: Any) -> None:
    done = tiny.run("chat", "--store", str(tiny.store.root), input="Hello!\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_artifact_can_be_shown(tiny: Any) -> None:
    for name in NAMES:
        done = CliRunner().invoke(app, ["show", name, "--store", str(tiny.store.root)])
        assert done.exit_code == 0, done.output
        assert tiny.artifact(name).manifest.fingerprint in done.output


def test_one_stage_reruns_to_the_same_bytes(tiny: Any) -> None:
    before = tiny.artifact("quantize").manifest
    done = tiny.run("rerun", "quantize", "--store", str(tiny.store.root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [s.name for s in tiny.record.stages if s.outcome == "ran"] == ["quantize"]
    after = tiny.artifact("quantize").manifest
    assert after.provenance.started_at != before.provenance.started_at
    assert {n: p.digest for n, p in after.parts.items()} == {n: p.digest for n, p in before.parts.items()}


def test_nothing_is_garbage_that_a_run_uses(tiny: Any) -> None:
    done = tiny.run("gc", "--yes", "--keep", "1", "--store", str(tiny.store.root))
    assert done.returncode == 0, done.stderr
    assert set(outcomes(plan(tiny).stdout).values()) == {"HIT"}


def test_rejected_documents_have_reasons(tiny: Any) -> None:
    rows = list(read_rows(tiny.artifact("corpus_prep").part("rejects")))
    assert all(row["step"] and row["reason"] for row in rows)


def test_the_manifest_is_written_last(tiny: Any) -> None:
    for name in NAMES:
        folder = tiny.artifact(name).folder
        assert read_manifest(folder) is not None
        newest = max(p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file())
        assert (folder / "manifest.json").stat().st_mtime_ns == newest


# The last one, because the newest run is then one without an agent.
def test_a_failing_agent_fails_the_build_and_says_what_to_do(tiny: Any) -> None:
    done = tiny.run(
        "build",
        "--preset",
        "tiny",
        "--store",
        str(tiny.store.root),
        "--set",
        "agent_smoke.minimum_success_fraction=1.0",
    )
    assert done.returncode != 0
    assert "agent_smoke" in done.stdout
    assert tiny.record.status == "failed"
    assert next(s for s in tiny.record.stages if s.name == "benchmark_eval").outcome == "hit"
