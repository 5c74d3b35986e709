"""What a rerun starts from, and what it refuses before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.plan import rerun_set
from flows.records import earlier_run, needed_by
from flows.report.record import RunRecord, StageRecord, Status
from flows.rerun_stage import StageName, rerun_build
from flows.settings import build_settings
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.store import Store, write_durably
from tests.flows.manifests import FINGERPRINT, empty_manifest

NAMES = [spec.name for spec in STAGES]


def enter(store: Store, run_id: str, status: Status = "completed", missing: tuple[str, ...] = ()) -> None:
    """A run that made every stage but those `missing`."""
    configs = build_settings("tiny").configs
    record = RunRecord(
        run_id=run_id,
        preset="tiny",
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        command="glassworks build",
        status=status,
        stages=tuple(
            StageRecord(name=name, outcome="not reached")
            if name in missing
            else StageRecord(name=name, outcome="ran", fingerprint=FINGERPRINT)
            for name in NAMES
        ),
        configs={name: config.model_dump(mode="json") for name, config in configs.items()},
    )
    write_durably(store.root / "runs" / f"{run_id}.json", record.model_dump_json())
    for name in set(NAMES) - set(missing):
        place = store.artifact_dir(name, FINGERPRINT) / "manifest.json"
        write_durably(place, empty_manifest(name).model_dump_json())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def rerun(store: Store, stages: list[str], downstream: bool = False, changes: tuple[str, ...] = ()) -> Any:
    nobody: Any = None
    record = earlier_run(store, None, rerun_set(stages, downstream))
    return rerun_build(store, record, stages, downstream, changes, nobody, "glassworks rerun")


def test_the_form_offers_the_nine_stages() -> None:
    assert list(StageName.__args__) == NAMES


def test_what_is_rerun_and_what_it_needs() -> None:
    assert rerun_set(["vector_store"], with_downstream=True) == {"vector_store", "agent_smoke"}
    assert rerun_set(["dpo", "sft"], with_downstream=False) == {"dpo", "sft"}
    assert needed_by({"vector_store", "agent_smoke"}) == {"corpus_prep", "tokenizer", "quantize"}
    with pytest.raises(UserError, match="did you mean 'quantize'"):
        rerun_set(["quantise"], with_downstream=False)


def test_the_newest_run_that_has_all_inputs_of_what_follows_too(store: Store) -> None:
    enter(store, "20260101-a")
    enter(store, "20260102-b", "failed", missing=("quantize",))
    assert earlier_run(store, None, {"vector_store"}).run_id == "20260102-b"
    assert earlier_run(store, None, {"vector_store", "agent_smoke"}).run_id == "20260101-a"
    assert earlier_run(store, "20260102", {"vector_store", "agent_smoke"}).run_id == "20260102-b"


def test_a_cancelled_run_is_no_default(store: Store) -> None:
    enter(store, "20260101-a")
    enter(store, "20260102-b", "stopped")
    assert earlier_run(store, None, {"dpo"}).run_id == "20260101-a"
    (store.root / "runs" / "20260101-a.json").unlink()
    assert earlier_run(store, None, {"dpo"}).run_id == "20260102-b"


def test_what_an_earlier_run_did_not_make_is_not_made_by_a_rerun(store: Store) -> None:
    enter(store, "20260101-a", missing=tuple(NAMES[2:]))
    build = rerun(store, ["corpus_prep"])
    assert [spec.name for spec in build.specs] == ["corpus_prep", "tokenizer"]
    build = rerun(store, ["tokenizer"], downstream=True)
    assert {spec.name for spec in build.specs} == {"corpus_prep", *rerun_set(["tokenizer"], True)}


def test_force_is_for_what_is_rerun_only(store: Store) -> None:
    enter(store, "20260101-a")
    build = rerun(store, ["dpo"])
    assert build.settings.force == {"dpo"}
    assert set(build.only) == set(NAMES) - {"dpo"}


def test_a_change_of_a_stage_that_is_not_rerun_is_refused(store: Store) -> None:
    enter(store, "20260101-a")
    with pytest.raises(UserError, match="changes pretrain, which is not rerun"):
        rerun(store, ["sft"], changes=("pretrain.depth=3",))
    assert rerun(store, ["pretrain"], changes=("pretrain.depth=3",)).settings.configs["pretrain"].depth == 3


def test_a_wrong_value_names_the_field(store: Store) -> None:
    enter(store, "20260101-a")
    with pytest.raises(UserError, match=r"no setting 'epoch' \(did you mean 'epochs'\?\)"):
        rerun(store, ["sft"], changes=("sft.epoch=3",))


def test_missing_inputs_are_named(store: Store) -> None:
    enter(store, "20260101-a", missing=("corpus_prep", "quantize"))
    with pytest.raises(UserError, match="no whole artifact of corpus_prep, quantize"):
        rerun(store, ["agent_smoke"])


def test_what_is_wrong_with_a_damaged_input_is_said(store: Store) -> None:
    enter(store, "20260101-a")
    (store.artifact_dir("sft", FINGERPRINT) / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"artifact of sft \(its manifest is missing or unreadable\)"):
        rerun(store, ["dpo"])
