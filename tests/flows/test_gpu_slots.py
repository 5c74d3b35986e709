"""One stage at a time on each GPU, over all builds that share a server or a host."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import gpu_slots
from flows.gpu_slots import gpu_slot, limit_name, visible_gpus
from stages.catalog import STAGES
from stages.runtime.spec import StageSpec


def stage(name: str) -> StageSpec:
    return next(spec for spec in STAGES if spec.name == name)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A host with GPUs, and with a limit of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", request.param)
    monkeypatch.setattr(gpu_slots.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpu_slots.socket, "gethostname", lambda: tmp_path.name)
    return str(request.param)


async def run_all(stages: list[str]) -> tuple[int, list[str], list[str]]:
    """The most that ran at once, the GPUs in the order of their use, and what was said."""
    inside, most, used, said = 0, 0, [], []

    async def one(name: str) -> None:
        nonlocal inside, most
        async with gpu_slot(stage(name), said.append) as environment:
            inside += 1
            most = max(most, inside)
            used.append(environment.get("CUDA_VISIBLE_DEVICES", "none"))
            await asyncio.sleep(0.2)
            inside -= 1

    await asyncio.gather(*map(one, stages))
    return most, used, said


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["0"], indirect=True)
def test_two_stages_share_one_gpu_in_turn(gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_slots, "PATIENCE_SECONDS", 0.1)
    most, used, said = asyncio.run(run_all(["sft", "dpo"]))
    assert (most, used) == (1, ["0", "0"])
    assert any("waits for a GPU" in line for line in said)


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["2,3"], indirect=True)
def test_two_gpus_run_two_stages_and_each_has_its_own(gpus: str) -> None:
    most, used, _ = asyncio.run(run_all(["sft", "dpo"]))
    assert most == 2
    assert sorted(used) == ["2", "3"]

    async def limit() -> int:
        async with get_client() as client:
            return (await client.read_global_concurrency_limit_by_name(limit_name())).limit

    assert asyncio.run(limit()) == 2


@pytest.mark.parametrize("gpus", ["", "-1"], indirect=True)
def test_without_gpus_nobody_waits_or_asks_a_server(gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert asyncio.run(run_all(["sft", "dpo"]))[:2] == (2, ["none", "none"])


@pytest.mark.parametrize("gpus", ["0"], indirect=True)
def test_a_stage_that_needs_none_does_not_wait(gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert asyncio.run(run_all(["tokenizer", "vector_store"]))[:2] == (2, ["none", "none"])


@pytest.mark.parametrize("gpus", ["0"], indirect=True)
def test_without_a_server_the_locks_of_the_host_decide(gpus: str) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        most, used, said = asyncio.run(run_all(["sft", "dpo"]))
    assert (most, used) == (1, ["0", "0"])
    assert sum("only the GPU locks of this host count" in line for line in said) == 2


def test_the_gpus_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, GPU-8f1c")
    assert visible_gpus() == ["0", "GPU-8f1c"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(visible_gpus()) == len(list(Path("/dev").glob("nvidia[0-9]*")))


@pytest.mark.parametrize("gpus", ["0"], indirect=True)
def test_the_lock_of_a_gpu_goes_with_its_holder(gpus: str) -> None:
    with ExitStack() as held:
        held.enter_context(gpu_slots._locked("0"))
        with pytest.raises(BlockingIOError):
            held.enter_context(gpu_slots._locked("0"))
    with gpu_slots._locked("0"):
        pass
