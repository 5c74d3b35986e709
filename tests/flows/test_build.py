"""Which stages a build lets give way to others."""

from __future__ import annotations

from pathlib import Path

from flows.build import Build
from flows.settings import build_settings
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.store import Store

SPECS = {spec.name: spec for spec in STAGES}


def build_after(tmp_path: Path, *done: str) -> Build:
    build = Build(Store(tmp_path), build_settings("tiny"), Terminal())
    for name in done:
        build._note(SPECS[name], "hit", (), None, 0.0, "")
    return build


def test_threads_sleep_only_beside_another_stage(tmp_path: Path) -> None:
    data = ("corpus_prep", "tokenizer")
    build = build_after(tmp_path, *data)
    assert build._shares_the_cores(SPECS["pretrain"])
    assert build._shares_the_cores(SPECS["vector_store"])
    build = build_after(tmp_path, *data, "pretrain", "vector_store")
    assert not build._shares_the_cores(SPECS["sft"])
    build = build_after(tmp_path, *data, "pretrain", "vector_store", "sft", "dpo", "quantize")
    assert build._shares_the_cores(SPECS["agent_smoke"])
    assert not build_after(tmp_path)._shares_the_cores(SPECS["corpus_prep"])


def test_a_stage_gives_way_to_one_that_trains(tmp_path: Path) -> None:
    data = ("corpus_prep", "tokenizer")
    assert build_after(tmp_path, *data)._runs_beside_an_earlier_one(SPECS["vector_store"])
    assert not build_after(tmp_path, *data)._runs_beside_an_earlier_one(SPECS["pretrain"])
    later = build_after(tmp_path, *data, "pretrain", "vector_store", "sft", "dpo", "quantize")
    assert not later._runs_beside_an_earlier_one(SPECS["benchmark_eval"])
