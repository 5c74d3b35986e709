"""Which stages a build lets give way to others, and how it ends when disk or server fail it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from prefect.exceptions import ObjectNotFound

from flows import build_llm, commands
from flows.build import Build
from flows.commands import cut_short
from flows.live_progress import FORGOTTEN
from flows.settings import build_settings
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import RetryableError, UserError
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


def test_a_full_disk_is_no_mystery(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    build = Build(Store(small_disk("nr_inodes=2")), build_settings("tiny"), Terminal())
    (build.store.root / "the last").touch()
    with pytest.raises(RetryableError, match=r"corpus_prep could not write: the disk .* is full") as caught:
        asyncio.run(build.stage(SPECS["corpus_prep"], print))
    assert "glassworks gc" in caught.value.hint
    assert isinstance(build.failure(), RetryableError)
    with pytest.raises(RetryableError, match=r"report of .* is full"):
        build.write_report()


def test_a_build_that_a_server_cuts_short_is_no_success(tmp_path: Path) -> None:
    gone = ConnectionError("gone")
    failure = cut_short(build_after(tmp_path, "corpus_prep"), gone)
    assert failure is not None and failure.exit_code == 75 and "ended the build early: gone" in str(failure)
    assert cut_short(build_after(tmp_path, *SPECS), gone) is None


@pytest.mark.parametrize(("stages", "code"), [(SPECS, 0), (["corpus_prep"], 75)])
def test_a_server_that_has_lost_the_run_does_not_decide_how_the_build_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stages: list[str],
    code: int,
) -> None:
    build, lost = build_after(tmp_path, *stages), ObjectNotFound(Exception("404"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(logging, "raiseExceptions", True)  # put back afterwards: the command sets it
    for name, instead in [("prepare_prefect", Mock()), ("PrefectServer", MagicMock()), ("_tell_end", Mock())]:
        monkeypatch.setattr(commands, name, instead)
    monkeypatch.setattr(build_llm, "build_flow", AsyncMock(side_effect=lost))
    monkeypatch.setattr(build_llm, "drain", Mock())

    def prepare(terminal: Terminal) -> Build:
        terminal.say(f"warning: {FORGOTTEN}")  # as its screen says while it runs
        return build

    assert commands._run_flow(build.store, prepare) == code
    assert capsys.readouterr().out.count("does not know this run any more") == 1


def test_experts_are_refused_before_hours_of_training_and_not_without_quantize(tmp_path: Path) -> None:
    settings = build_settings("tiny", changes=["pretrain.num_experts=4"])
    to_dpo = commands.specs_until("dpo")
    asyncio.run(Build(Store(tmp_path), settings, Terminal(), specs=to_dpo).check())
    with pytest.raises(UserError, match="quantize cannot take a model with experts") as caught:
        asyncio.run(Build(Store(tmp_path), settings, Terminal()).check())
    assert "--until dpo" in caught.value.hint
    asyncio.run(Build(Store(tmp_path), build_settings("tiny"), Terminal()).check())
