"""Which stages stay on the host that asked, because what they read lies there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flows import gpu_slots, launch, launch_on_workers
from flows.job import Job
from flows.launch_on_workers import WorkersBackend, _runs_here
from stages.catalog import STAGES
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Artifact, Store
from tests.flows.stage_workers import job


def test_pretraining_stays_only_where_it_goes_on_from_a_model(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in STAGES}
    here = {name for name, spec in specs.items() if _runs_here(spec, spec.parse_config({}))}
    assert here == {"corpus_prep", "tokenizer"}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    going_on = specs["pretrain"].parse_config({"continue_from": str(tmp_path)})
    assert _runs_here(specs["pretrain"], going_on)
    assert not _runs_here(specs["pretrain"])  # before the settings are known, it may


@pytest.mark.usefixtures("dummy_workers")
def test_what_stays_here_holds_the_gpus_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[StageConfig] = []
    seen: list[Job] = []

    @asynccontextmanager
    async def slot(spec: StageSpec, config: StageConfig, say: Any) -> AsyncIterator[dict[str, str]]:
        held.append(config)
        yield {"CUDA_VISIBLE_DEVICES": "5,7"}
        held.remove(config)

    class Inner(launch.ProcessBackend):
        async def launch(self, job: Job, on_event: Any) -> Artifact:
            assert held == [job.config]
            seen.append(job)
            return await super().launch(job, on_event)

    monkeypatch.setattr(gpu_slots, "gpu_slot", slot)
    monkeypatch.setattr(launch_on_workers, "_runs_here", lambda *_: True)
    asked = job(Store(tmp_path), "first")
    asyncio.run(WorkersBackend(Inner()).launch(asked, lambda _: None))
    assert seen[0].environment["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert held == []
