"""How many GPUs a stage gets by its settings, and what is refused before anything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.backends import BackendName, backend_named
from flows.build import Build
from flows.cli import plan
from flows.gpus import asks_for_several, gpus_to_hold, visible_gpus
from flows.settings import build_settings
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.store import Store

SPECS = {spec.name: spec for spec in STAGES}


def held(stage: str, visible: Sequence[str], **settings: Any) -> int:
    return gpus_to_hold(SPECS[stage], SPECS[stage].parse_config(settings), visible)


def test_the_gpus_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, GPU-8f1c,0")
    assert visible_gpus() == ["0", "GPU-8f1c"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(visible_gpus()) == len(list(Path("/dev").glob("nvidia[0-9]*")))


def test_a_stage_gets_as_many_as_it_asks_for() -> None:
    three = ["0", "2", "3"]
    assert held("pretrain", three) == 1
    assert held("pretrain", three, gpus=2) == 2
    assert held("pretrain", three, gpus="all") == 3
    assert held("sft", three) == held("dpo", three) == 1
    assert held("tokenizer", three) == 0
    assert held("pretrain", [], gpus=4) == held("pretrain", [], gpus="all") == 0


def test_several_processes_are_known_by_the_settings() -> None:
    def several(stage: str, **settings: Any) -> bool:
        return asks_for_several(SPECS[stage].parse_config(settings))

    assert (
        several("pretrain", gpus=2) and several("pretrain", gpus="all") and several("pretrain", processes=2)
    )
    assert not several("pretrain") and not several("sft") and not several("tokenizer")


def check(folder: Path, *changes: str, backend: BackendName = "process", until: str = "pretrain") -> None:
    """What a build does before its first stage, but for what the backend has to say of itself."""
    names = list(SPECS)
    specs = STAGES[: names.index(until) + 1]
    where = backend_named(backend)
    build = Build(
        Store(folder), build_settings("tiny", changes=changes), Terminal(), specs=specs, backend=where
    )
    asyncio.run(build.check())


def test_more_gpus_than_the_host_has_are_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    with pytest.raises(UserError, match=r"\[pretrain\] gpus is 4, .* names 2 \(0,3\)") as caught:
        check(tmp_path, "pretrain.gpus=4")
    assert "--set pretrain.gpus=2" in caught.value.hint
    with pytest.raises(UserError, match="gpus is 4"):
        plan(preset="tiny", change=["pretrain.gpus=4"], store=str(tmp_path))
    check(tmp_path, "pretrain.gpus=2")
    check(tmp_path, "pretrain.gpus=all")
    check(tmp_path, "pretrain.gpus=4", until="tokenizer")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check(tmp_path, "pretrain.gpus=4")


def test_without_a_variable_the_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("flows.gpus.socket.gethostname", lambda: "glass-1")
    with pytest.raises(UserError, match=r"gpus is 2, and glass-1 has 1 \(0\); expected at most that many"):
        held("pretrain", ["0"], gpus=2)


@pytest.mark.parametrize("backend", ["docker", "workers-docker"])
def test_several_machines_are_refused_where_stages_are_containers(
    tmp_path: Path, backend: BackendName
) -> None:
    asked = ("pretrain.nodes=2", "pretrain.rendezvous=host-a:29500")
    with pytest.raises(
        UserError, match="nodes is 2, and from a container no other machine is reached"
    ) as caught:
        check(tmp_path, *asked, backend=backend)
    assert "--backend process" in caught.value.hint and "stages/pretrain/README.md" in caught.value.hint
    check(tmp_path, *asked)


def test_on_workers_the_gpus_of_this_host_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    check(tmp_path, "pretrain.gpus=4", backend="workers")
