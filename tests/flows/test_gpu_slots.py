"""One stage at a time on each GPU, over all builds that share a server or a host."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import gpu_slots
from flows.build import Build
from flows.gpu_slots import gpu_slot, limit_name
from flows.job import Job
from flows.launch import ProcessBackend
from flows.settings import BuildSettings
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Artifact, Store

AWAY = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}


def stage(name: str) -> StageSpec:
    return next(spec for spec in STAGES if spec.name == name)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A host with GPUs, and with a limit of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", request.param)
    monkeypatch.setattr(gpu_slots.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpu_slots.socket, "gethostname", lambda: tmp_path.name)
    return str(request.param)


async def run_all(stages: list[str], **settings: Any) -> tuple[int, list[str], list[str]]:
    """The most that ran at once, the GPUs in the order of their use, and what was said."""
    inside, most, used, said = 0, 0, [], []

    async def one(name: str) -> None:
        nonlocal inside, most
        config = stage(name).parse_config(settings)
        async with gpu_slot(stage(name), config, said.append) as environment:
            inside += 1
            most = max(most, inside)
            used.append(environment.get("CUDA_VISIBLE_DEVICES", "none"))
            await asyncio.sleep(0.2)
            inside -= 1

    await asyncio.gather(*map(one, stages))
    return most, used, said


async def set_limit(limit: int) -> None:
    """As somebody does in the UI."""
    async with get_client() as client:
        change = GlobalConcurrencyLimitUpdate(limit=limit)
        await client.update_global_concurrency_limit(limit_name(), change)


async def slots_in_use() -> int:
    async with get_client() as client:
        return (await client.read_global_concurrency_limit_by_name(limit_name())).active_slots


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
    with temporary_settings(AWAY):
        most, used, said = asyncio.run(run_all(["sft", "dpo"]))
    assert (most, used) == (1, ["0", "0"])
    assert sum("only the GPU locks of this host count" in line for line in said) == 2


@pytest.mark.parametrize("gpus", ["0"], indirect=True)
def test_the_lock_of_a_gpu_goes_with_its_holder(gpus: str) -> None:
    with ExitStack() as held:
        held.enter_context(gpu_slots._locked("0"))
        with pytest.raises(BlockingIOError):
            held.enter_context(gpu_slots._locked("0"))
    with gpu_slots._locked("0"):
        pass


# Several GPUs for one stage


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["0,2,3"], indirect=True)
def test_two_stages_that_need_two_of_three_gpus_take_turns(
    gpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "PATIENCE_SECONDS", 0.1)
    most, used, said = asyncio.run(run_all(["pretrain", "pretrain"], gpus=2))
    assert (most, used) == (1, ["0,2", "0,2"])
    assert any("waits for 2 GPUs at once" in line for line in said)
    assert asyncio.run(slots_in_use()) == 0


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["0,2,3"], indirect=True)
def test_what_several_leave_over_goes_to_another_stage(gpus: str) -> None:
    async def both() -> tuple[str, str, int]:
        pretrain, sft = stage("pretrain"), stage("sft")
        async with (
            gpu_slot(pretrain, pretrain.parse_config({"gpus": 2}), print) as several,
            gpu_slot(sft, sft.parse_config({}), print) as one,
        ):
            found = several["CUDA_VISIBLE_DEVICES"], one["CUDA_VISIBLE_DEVICES"], await slots_in_use()
        return found

    assert asyncio.run(both()) == ("0,2", "3", 3)


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["0,2,3"], indirect=True)
def test_all_gpus_are_those_that_are_visible(gpus: str) -> None:
    assert asyncio.run(run_all(["pretrain"], gpus="all"))[1] == ["0,2,3"]


class Several(StageConfig):
    """The settings of a stage that can use several GPUs."""

    gpus: int = 1
    """How many."""


class Recorder(ProcessBackend):
    """Keeps what it is told to start, and starts nothing."""

    def __init__(self) -> None:
        self.seen: list[Job] = []

    def packages(self, spec: StageSpec) -> Mapping[str, str]:
        return {}

    async def launch(self, job: Job, on_event: Any) -> Artifact:
        self.seen.append(job)
        raise UserError("seen")


@pytest.mark.parametrize("gpus", ["0,1,2"], indirect=True)
def test_a_build_gives_a_stage_the_gpus_of_its_settings(gpus: str, tmp_path: Path) -> None:
    fake = StageSpec("fake", 1, Several, writes={}, gpu="preferred")
    backend = Recorder()
    settings = BuildSettings("own", {"fake": Several(gpus=2)})
    build = Build(Store(tmp_path / "store"), settings, Terminal(), specs=(fake,), backend=backend)
    build.gpu_slot = gpu_slot
    with temporary_settings(AWAY), pytest.raises(UserError, match="seen"):
        asyncio.run(build.stage(fake, print))
    assert backend.seen[0].environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    with gpu_slots._locked("0"), gpu_slots._locked("1"):
        pass  # both are free again


@pytest.mark.parametrize("gpus", ["0,1,2"], indirect=True)
def test_several_gpus_are_taken_all_at_once_or_none_where_only_the_locks_decide(
    gpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "POLL_SECONDS", 0.01)

    async def three_builds() -> list[str]:
        sft = stage("sft")
        with ExitStack() as held:
            held.enter_context(gpu_slots._locked("0"))
            held.enter_context(gpu_slots._locked("1"))
            waiting = asyncio.create_task(run_all(["pretrain"], gpus=2))
            await asyncio.sleep(0.5)
            async with gpu_slot(sft, sft.parse_config({}), print) as one:
                used = [one["CUDA_VISIBLE_DEVICES"]]  # not kept by the one that waits for two
        return used + (await waiting)[1]

    with temporary_settings(AWAY):
        assert asyncio.run(three_builds()) == ["2", "0,1"]


@pytest.mark.parametrize("gpus", ["0,1,2"], indirect=True)
def test_builds_that_need_several_never_keep_each_other_waiting_for_ever(gpus: str, tmp_path: Path) -> None:
    """Four processes, twenty times each: none ever holds what another holds, and all come to their end."""
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(script), str(tmp_path)]
    running = [
        subprocess.Popen([*command, count], env=environment, stderr=subprocess.PIPE, text=True)
        for count in ("2", "2", "3", "1")
    ]
    told = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0, 0], told


BUILD = """
import asyncio, sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from flows import gpu_slots

gpu_slots.POLL_SECONDS = 0.005

async def build(folder, count):
    for _ in range(20):
        with ExitStack() as held:
            mine = await gpu_slots._free_gpus(["0", "1", "2"], count, held)
            assert len(mine) == count
            for gpu in mine:
                (folder / f"held-{gpu}").touch(exist_ok=False)
            await asyncio.sleep(0.005)
            for gpu in mine:
                (folder / f"held-{gpu}").unlink()

asyncio.run(build(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["0,1"], indirect=True)
def test_more_gpus_than_there_are_is_an_error_at_once(gpus: str) -> None:
    with pytest.raises(UserError, match=r"gpus is 3, and CUDA_VISIBLE_DEVICES on .* names 2 \(0,1\)"):
        asyncio.run(run_all(["pretrain"], gpus=3))


@pytest.mark.parametrize("gpus", [""], indirect=True)
def test_on_a_host_without_gpus_the_stage_itself_decides(gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert asyncio.run(run_all(["pretrain"], gpus=4))[1] == ["none"]
    assert asyncio.run(run_all(["pretrain"], gpus="all"))[1] == ["none"]


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["0,1,2"], indirect=True)
def test_a_limit_that_is_too_low_is_named_until_somebody_raises_it(
    gpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "LOOK_SECONDS", 0.05)
    pretrain, said = stage("pretrain"), []

    async def lowered_and_raised() -> str:
        await run_all(["sft"])  # makes the limit
        await set_limit(1)

        async def one() -> str:
            async with gpu_slot(pretrain, pretrain.parse_config({"gpus": 2}), said.append) as environment:
                return environment["CUDA_VISIBLE_DEVICES"]

        waiting = asyncio.create_task(one())
        while not said:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert len(said) == 1 and "is 1, and it needs 2; raise it in the UI" in said[0]
        await set_limit(2)
        return await waiting

    assert asyncio.run(lowered_and_raised()) == "0,1"
    assert not any("does not answer" in line for line in said)


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("gpus", ["0,1"], indirect=True)
def test_a_limit_that_is_lowered_while_a_stage_waits_for_its_turn_is_named_too(
    gpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "LOOK_SECONDS", 0.05)
    pretrain, said = stage("pretrain"), []
    config = pretrain.parse_config({"gpus": 2})

    async def lowered_meanwhile() -> str:
        async def one() -> str:
            async with gpu_slot(pretrain, config, said.append) as environment:
                return environment["CUDA_VISIBLE_DEVICES"]

        async with gpu_slot(pretrain, config, print):
            waiting = asyncio.create_task(one())
            await asyncio.sleep(0.3)
            await set_limit(1)
        while not any("is 1, and it needs 2" in line for line in said):
            await asyncio.sleep(0.05)
        await set_limit(2)
        return await waiting

    assert asyncio.run(asyncio.wait_for(lowered_meanwhile(), 60)) == "0,1"
    assert not any("does not answer" in line for line in said)
