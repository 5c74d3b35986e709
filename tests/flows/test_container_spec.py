"""What a container is asked to be, as a pure function: no engine is needed to check it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import pytest

from flows.container_spec import (
    RUN_LABEL,
    STAGE_LABEL,
    STORE_LABEL,
    Request,
    User,
    cpu_shares,
    own_cores,
    request,
    user_of,
)
from flows.docker_engine import EngineFacts, facts_of
from flows.host_paths import HostRoots
from flows.job import Job
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import key_parts
from stages.runtime.spec import Limits, Outside, StageConfig, StageSpec
from stages.runtime.store import Store

FACTS = EngineFacts(num_cpus=8, has_gpus=False)
GPUS = EngineFacts(num_cpus=8, has_gpus=True)
USER = User(1000, 1001, (1001, 27, 0))


class Config(StageConfig):
    """No settings."""


class Several(StageConfig):
    """The settings of a stage that can use several devices."""

    gpus: int | Literal["all"] = 1
    """How many."""
    processes: int = 1
    """How many without GPUs."""


def ask(
    store: Path,
    gpu: Any = "none",
    outside: Outside | None = None,
    cores: Collection[int] = (),
    roots: HostRoots = None,
    config: StageConfig | None = None,
    facts: EngineFacts | None = None,
    **options: Any,
) -> Request:
    """A request for a stage with one input."""
    config = config or Config()
    spec = StageSpec(name="fake", version=1, config=type(config), writes={}, gpu=gpu)
    part = store / "artifacts" / "first" / "aa" / "text"
    part.mkdir(parents=True, exist_ok=True)
    (part.parent / "manifest.json").touch()
    job = Job(
        spec, config, key_parts(spec, config, {}), {"text": part}, Store(store), run_id="run-1", **options
    )
    return request(
        job,
        "glassworks/fake:dev",
        "sha256:11",
        facts or (GPUS if gpu != "none" else FACTS),
        USER,
        limits=Limits(memory_gib=2, num_cpus=1.5, num_processes=99, scratch_gib=0.5),
        outside=outside or Outside(),
        documents={},
        commit="abc",
        inherited={"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "SECRET": "word"},
        cores=cores,
        roots=roots,
    )


def mounts(asked: Request) -> dict[str, tuple[str, bool]]:
    """Target -> source, whether it is read-only."""
    found = [(m["Target"], m["Source"], m["ReadOnly"]) for m in asked.host["mounts"]]
    assert len({target for target, _, _ in found}) == len(found)
    return {target: (source, bool(read_only)) for target, source, read_only in found}


def test_only_the_work_folder_and_its_lock_can_be_written(tmp_path: Path) -> None:
    asked = ask(tmp_path)
    writable = {target for target, (_, read_only) in mounts(asked).items() if not read_only}
    [work] = [path for path in writable if not path.endswith(".lock")]
    assert Path(work).parent == tmp_path / "work" / "fake"
    assert writable == {work, f"{work}.lock"}


def test_inputs_are_mounted_by_part_and_read_only(tmp_path: Path) -> None:
    artifact = tmp_path / "artifacts" / "first" / "aa"
    found = mounts(ask(tmp_path))
    assert found[str(artifact / "text")] == (str(artifact / "text"), True)
    assert found[str(artifact / "manifest.json")] == (str(artifact / "manifest.json"), True)
    assert str(artifact) not in found


def test_nothing_is_open_that_a_stage_does_not_need(tmp_path: Path) -> None:
    host = ask(tmp_path).host
    assert host["read_only"] is True
    assert host["cap_drop"] == ["ALL"]
    assert "no-new-privileges" in host["security_opt"]
    assert host["network_mode"] == "none"
    assert host["init"] is True
    assert host["auto_remove"] is True
    assert "privileged" not in host
    assert set(host["tmpfs"]) == {"/tmp"}
    assert "noexec" in host["tmpfs"]["/tmp"]


def test_limits_come_from_the_stage(tmp_path: Path) -> None:
    host = ask(tmp_path).host
    assert host["mem_limit"] == host["memswap_limit"] == 2 * 2**30
    assert host["nano_cpus"] == 1_500_000_000
    assert host["pids_limit"] == 99
    assert "size=536870912" in host["tmpfs"]["/tmp"]


def test_a_container_is_kept_to_the_cores_that_a_process_would_be_kept_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 2})
    assert ask(tmp_path, cores=own_cores(FACTS)).host["cpuset_cpus"] == "2,5"
    another_machine = EngineFacts(num_cpus=16, has_gpus=False)
    assert "cpuset_cpus" not in ask(tmp_path, cores=own_cores(another_machine)).host
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert "cpuset_cpus" not in ask(tmp_path, cores=own_cores(FACTS)).host


def test_every_stage_of_ours_has_limits() -> None:
    for spec in STAGES:
        assert 0 < spec.limits.memory_gib <= 8, spec.name
        assert spec.limits.num_processes >= 64, spec.name


def test_the_program_is_told_the_same_as_a_process_but_for_where_it_leaves_the_artifact(
    tmp_path: Path,
) -> None:
    command = ask(tmp_path, force=True).container["command"]
    output = command[command.index("--output") + 1]
    work = command[command.index("--work") + 1]
    assert output == f"{work}/delivered"
    assert command[command.index("--lease") + 1] == "stdin"
    assert command[command.index("--input") + 1] == f"text={tmp_path}/artifacts/first/aa/text"
    assert command[-1] == "--force"


def test_labels_say_whose_it_is(tmp_path: Path) -> None:
    container = ask(tmp_path).container
    labels = container["labels"]
    assert (labels[RUN_LABEL], labels[STAGE_LABEL], labels[STORE_LABEL]) == ("run-1", "fake", str(tmp_path))
    assert container["stdin_open"] is True
    assert container["network_disabled"] is True


def test_secrets_of_the_environment_stay_outside(tmp_path: Path) -> None:
    environment = ask(tmp_path).container["environment"]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["ATEN_CPU_CAPABILITY"] == "avx2"
    assert environment["GLASSWORKS_IMAGE_DIGEST"] == "sha256:11"
    assert environment["GLASSWORKS_GIT_COMMIT"] == "abc"
    assert "SECRET" not in environment


@pytest.mark.parametrize(("gpu", "given"), [("none", False), ("preferred", True), ("required", True)])
def test_a_gpu_is_given_to_who_wants_one(tmp_path: Path, gpu: str, given: bool) -> None:
    [*found] = ask(tmp_path, gpu).host.get("device_requests", [])
    assert bool(found) is given
    if given:
        assert found[0]["Driver"] == "nvidia"
        assert found[0]["Count"] == 1
        assert found[0]["Capabilities"] == [["gpu"]]


def test_the_gpu_of_a_slot_is_asked_for_by_name(tmp_path: Path) -> None:
    asked = ask(tmp_path, "required", environment={"CUDA_VISIBLE_DEVICES": "1", "OMP_WAIT_POLICY": "PASSIVE"})
    (found,) = asked.host["device_requests"]
    assert (found["DeviceIDs"], found["Count"]) == (["1"], 0)
    assert asked.container["environment"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "CUDA_VISIBLE_DEVICES" not in asked.container["environment"]


def test_all_gpus_that_are_held_are_asked_for_by_name(tmp_path: Path) -> None:
    several = {"CUDA_VISIBLE_DEVICES": "0,2,GPU-8f1c"}
    asked = ask(tmp_path, "preferred", config=Several(gpus=3), environment=several)
    (found,) = asked.host["device_requests"]
    assert (found["DeviceIDs"], found["Count"]) == (["0", "2", "GPU-8f1c"], 0)
    assert "CUDA_VISIBLE_DEVICES" not in asked.container["environment"]


@pytest.mark.parametrize(("gpus", "count"), [(1, 1), (3, 3), ("all", -1)])
def test_where_nobody_holds_any_as_many_are_asked_for_as_are_set(
    tmp_path: Path, gpus: Any, count: int
) -> None:
    (found,) = ask(tmp_path, "preferred", config=Several(gpus=gpus)).host["device_requests"]
    assert found["Count"] == count


def test_several_processes_have_room_for_what_they_exchange(tmp_path: Path) -> None:
    def room(gpu: str, config: StageConfig, facts: EngineFacts | None = None) -> tuple[int | None, bool]:
        host = ask(tmp_path, gpu, config=config, facts=facts).host
        pinned = [each for each in host["ulimits"] if each["Name"] == "memlock"]
        assert all((each["Soft"], each["Hard"]) == (-1, -1) for each in pinned)
        assert "ipc_mode" not in host  # its memory is its own
        return host.get("shm_size"), bool(pinned)

    assert room("preferred", Several(gpus=2)) == room("preferred", Several(gpus="all")) == (8 * 2**30, True)
    assert room("none", Several(processes=2)) == (8 * 2**30, False)
    assert room("preferred", Several()) == room("none", Config()) == (None, False)
    rootless = EngineFacts(8, True, is_rootless=True)
    assert room("preferred", Several(gpus=2), rootless) == (8 * 2**30, False)


def test_stages_have_the_rights_of_the_user_and_never_those_of_root() -> None:
    assert user_of(USER, FACTS) == "1000:1001"
    assert user_of(User(0, 0), FACTS) == "10001:10001"
    assert user_of(USER, EngineFacts(2, False, is_rootless=True)) == "0:0"


def test_groups_of_the_user_are_kept_but_that_of_root(tmp_path: Path) -> None:
    assert ask(tmp_path).host["group_add"] == [27]


def test_who_stands_back_gets_the_weight_of_that_niceness() -> None:
    # The kernel's own table (sched_prio_to_weight): niceness 0 is 1024, 5 is 335, 15 is 36.
    assert [cpu_shares(n) for n in (0, 5, 15)] == [1024, 336, 36]


def test_outside_files_are_where_the_configuration_says(tmp_path: Path) -> None:
    data = tmp_path / "data"
    outside = Outside(same_place=(data, data / "inner" / "x.txt"), moved={"/harvest/lib": tmp_path / "lib"})
    found = mounts(ask(tmp_path / "store", outside=outside))
    assert found[str(data)] == (str(data), True)
    assert str(data / "inner" / "x.txt") not in found  # lies in the folder that is there already
    assert found["/harvest/lib"] == (str(tmp_path / "lib"), True)


def test_a_mount_may_not_hide_the_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/usr cannot be brought into a container") as caught:
        ask(tmp_path, outside=Outside(same_place=(Path("/usr"),)))
    assert "--backend process" in caught.value.hint


def test_what_lies_in_roots_home_can_be_reached(tmp_path: Path) -> None:
    host = ask(tmp_path, outside=Outside(same_place=(Path("/root/books"),))).host
    assert "mode=755" in host["tmpfs"]["/root"]


@pytest.mark.parametrize(
    ("info", "has_gpus"),
    [
        ({"Runtimes": {"runc": {}}}, False),
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, True),
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, True),
        ({"DiscoveredDevices": None, "Runtimes": None}, False),
    ],
)
def test_gpus_are_seen_by_runtime_or_by_device(info: dict[str, Any], has_gpus: bool) -> None:
    assert facts_of({"NCPU": 4, **info}).has_gpus is has_gpus


def test_rootless_and_remapping_engines_are_recognised() -> None:
    rootless = facts_of({"NCPU": 4, "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]})
    remapping = facts_of({"NCPU": 4, "SecurityOptions": ["name=userns"]})
    assert (rootless.is_rootless, remapping.remaps_users) == (True, True)


def test_in_a_container_only_the_sources_of_mounts_and_the_label_are_those_of_the_host(
    tmp_path: Path,
) -> None:
    here, moved = ask(tmp_path), ask(tmp_path, roots={tmp_path: Path("/srv/store")})
    assert mounts(moved) == {
        target: (source.replace(str(tmp_path), "/srv/store"), read_only)
        for target, (source, read_only) in mounts(here).items()
    }
    assert moved.container["command"] == here.container["command"]
    assert moved.container["labels"][STORE_LABEL] == "/srv/store"


def test_a_source_that_the_host_does_not_have_is_refused(tmp_path: Path) -> None:
    outside = Outside(moved={"/harvest/library": Path("/usr/lib/python3.11")})
    with pytest.raises(UserError, match="lies in the flow's own container"):
        ask(tmp_path, outside=outside, roots={tmp_path: Path("/srv/store")})
