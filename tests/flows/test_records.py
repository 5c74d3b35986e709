"""Runs and artifacts are found by the names that people use; garbage is what no kept run needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import commands
from flows import compare as comparing
from flows.compare import compare_runs
from flows.garbage import find_garbage, remove
from flows.plan import downstream, upstream
from flows.records import find_artifact, latest_record, read_record
from flows.report.record import RunRecord, StageRecord
from flows.run_order import awaiting_a_record, close_note, new_run_id, note_begun
from stages.runtime.errors import UserError
from stages.runtime.lock import exclusive
from stages.runtime.store import Artifact, Store, write_durably
from tests.flows.manifests import empty_manifest, provenance

MANIFEST: Any = None


def record(run_id: str, key: str, depth: int = 4) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        preset="tiny",
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        command="glassworks build",
        status="completed",
        stages=(StageRecord(name="tokenizer", outcome="ran", fingerprint=key),),
        configs={"pretrain": {"depth": depth}},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    place = Store(tmp_path)
    for run_id, key in (("20260101-a", "aaa"), ("20260102-b", "bbb")):
        write_durably(place.root / "runs" / f"{run_id}.json", record(run_id, key).model_dump_json())
        write_durably(place.root / "runs" / run_id / "report.html", "x" * 10)
        write_durably(place.artifact_dir("tokenizer", key) / "tokens" / "t", "x" * 100)
    return place


def test_runs_by_id_beginning_ref_and_latest(store: Store) -> None:
    assert latest_record(store).run_id == read_record(store, "latest").run_id == "20260102-b"
    assert read_record(store, "20260101").run_id == "20260101-a"
    write_durably(store.root / "refs" / "best", "20260101-a\n")
    assert read_record(store, "best").run_id == "20260101-a"


def test_names_that_do_not_fit(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 runs '2026'"):
        read_record(store, "2026")
    with pytest.raises(UserError, match="no run 'yesterday'"):
        read_record(store, "yesterday")
    with pytest.raises(UserError, match="holds no run yet"):
        latest_record(Store(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no artifact 'tokeniser' \(did you mean 'tokenizer'\?\)"):
        find_artifact(store, "tokeniser")
    (store.root / "runs" / "20260103-c.json").write_text("{}")
    with pytest.raises(UserError, match="is no run record"):
        latest_record(store)


def test_what_follows_a_stage() -> None:
    assert downstream("quantize") == {"agent_smoke", "benchmark_eval"}
    assert downstream("benchmark_eval") == set()
    assert "pretrain" not in downstream("sft")


def test_what_a_stage_waits_for() -> None:
    assert upstream("vector_store") == {"corpus_prep", "tokenizer"}
    assert upstream("corpus_prep") == set()
    assert "vector_store" not in upstream("benchmark_eval")


def test_garbage_is_what_no_kept_run_uses(store: Store) -> None:
    assert find_garbage(store, keep_runs=2) == []
    names = [item.folder.name for item in find_garbage(store, keep_runs=1)]
    assert names == ["aaa", "20260101-a"]
    write_durably(store.root / "refs" / "best", "20260101-a\n")
    assert find_garbage(store, keep_runs=1) == []


def test_removing_garbage_leaves_the_rest(store: Store) -> None:
    assert remove(store, find_garbage(store, keep_runs=1)) == 110
    assert read_record(store, "latest").run_id == "20260102-b"
    assert store.artifact_dir("tokenizer", "bbb").exists()
    assert not store.artifact_dir("tokenizer", "aaa").exists()
    with pytest.raises(UserError):
        read_record(store, "20260101-a")


def test_work_that_somebody_is_at_is_no_garbage(store: Store) -> None:
    work = store.work_dir("pretrain", "ccc")
    write_durably(work / "checkpoints" / "x", "x")
    with exclusive(work.with_name("ccc.lock"), print, lambda: False):
        assert find_garbage(store, keep_runs=2) == []
    assert [item.folder for item in find_garbage(store, keep_runs=2)] == [work]


NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_a_later_run_sorts_later_whatever_the_clock_says(store: Store) -> None:
    """The host's clock was a day ahead when the newest run was recorded, and has been set right since."""
    ids = [tomorrow(store), new_run_id(store, NOW)]
    note_begun(store, ids[1], "tokenizer", "aaa")
    ids.append(new_run_id(store, NOW))
    write_durably(store.root / "runs" / f"{ids[2]}.json", record(ids[2], "bbb").model_dump_json())
    ids.append(new_run_id(store, NOW - timedelta(hours=1)))
    assert ids == sorted(ids)
    assert latest_record(store).run_id == ids[2]
    assert new_run_id(Store(store.root / "empty"), NOW).startswith("20260102-120000-")


def tomorrow(store: Store) -> str:
    """The newest run, recorded by a clock that was a day ahead."""
    run_id = "20260103-120000-aaaa"
    write_durably(store.root / "runs" / f"{run_id}.json", record(run_id, "bbb").model_dump_json())
    return run_id


def artifact_of_yesterday(store: Store, key: str) -> None:
    """As a host makes it whose clock is behind: older than every run, by what it says itself."""
    made = provenance(started_at="2025-12-31T00:00:00+00:00")
    manifest = empty_manifest("tokenizer", fingerprint=key, provenance=made)
    write_durably(store.artifact_dir("tokenizer", key) / "manifest.json", manifest.model_dump_json())


def test_what_a_killed_build_made_is_kept_whatever_the_clock_says(store: Store) -> None:
    artifact_of_yesterday(store, "ccc")
    tomorrow(store)
    assert [item.folder.name for item in find_garbage(store, keep_runs=3)] == ["ccc"]
    killed = new_run_id(store, NOW - timedelta(days=1))
    note_begun(store, killed, "tokenizer", "ccc")
    assert find_garbage(store, keep_runs=3) == []
    later = new_run_id(store, NOW - timedelta(days=1))
    write_durably(store.root / "runs" / f"{later}.json", record(later, "bbb").model_dump_json())
    garbage = find_garbage(store, keep_runs=4)
    assert [item.folder.name for item in garbage] == ["ccc", killed]
    remove(store, garbage)
    assert find_garbage(store, keep_runs=4) == []


def test_a_run_with_a_record_needs_no_note(store: Store) -> None:
    run_id = new_run_id(store)
    note_begun(store, run_id, "tokenizer", "aaa")
    note_begun(store, run_id, "pretrain", "ddd")
    assert awaiting_a_record(store) == {("tokenizer", "aaa"), ("pretrain", "ddd")}
    close_note(store, run_id)
    assert awaiting_a_record(store) == set()


def test_two_runs_are_compared_field_by_field(store: Store) -> None:
    text = compare_runs(store, record("a", "aaa"), record("b", "bbb", depth=6))
    assert "| pretrain.depth | 4 | 6 |" in text


def test_figures_are_compared_with_their_intervals_and_samples_by_kind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathered(_: Store, run: RunRecord) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        value = 0.5 if run.run_id == "a" else 0.75
        metrics = {"accuracy": value, "accuracy_low": value - 0.1, "accuracy_high": value + 0.1, "pairs": 9.0}
        samples = [
            {"event": "sample", "kind": kind, "prompt": "Hi", "text": f"{run.run_id} | {kind}\nmore"}
            for kind in ("int8", "int4")
        ]
        return {"dpo": SimpleNamespace(metrics=metrics)}, {"dpo": samples}

    monkeypatch.setattr(comparing, "gather", gathered)
    text = compare_runs(store, record("a", "aaa"), record("b", "bbb"))
    assert "| dpo accuracy | 0.5 (0.4 to 0.6) | 0.75 (0.65 to 0.85) | +0.25 |" in text
    assert "_low |" not in text and "pairs" not in text
    assert "| dpo int4 | Hi | a \\| int4 ⏎ more | b \\| int4 ⏎ more |" in text
    assert "| dpo int8 |" in text


def test_the_chat_gets_all_models_and_what_its_tools_need(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "newest_with", lambda *_: record("a", "aaa"))
    monkeypatch.setattr(commands, "artifact_of", lambda _store, _run, stage: Artifact(Path(stage), MANIFEST))
    command = commands.chat_command(store, None, "int8", "base, dpo,int4", ["--no-history"])
    words = " ".join(command)
    assert "--model pretrain/model --compare dpo/model quantize/int4 --store vector_store/store" in words
    assert words.endswith("--documents corpus_prep/documents --no-history")
    assert "--store" not in commands.chat_command(store, None, "int8", "", ["--no-tools"])
    with pytest.raises(UserError, match=r"no model 'int5' \(did you mean 'int"):
        commands.chat_command(store, None, "int5", "", [])
