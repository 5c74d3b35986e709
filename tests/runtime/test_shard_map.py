"""The same work on shards here, in processes and on a cluster of two nodes; kills, stops, other code."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.runtime import shard_map
from stages.runtime.errors import RetryableError, StopRequested, UserError
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.runtime.shard_map import ShardMap
from tests.dask_cluster import two_nodes
from tests.runtime.shard_work import Job, add_up, die_once, refuse, write_down

REPOSITORY = Path(__file__).resolve().parents[2]


def session_in(folder: Path) -> StageSession:
    return StageSession(
        "corpus_prep", folder, EventLog(folder / "events.jsonl", as_json=True, stream=io.StringIO())
    )


def jobs(count: int = 6) -> list[Job]:
    return [Job(number, f"shard {number} " * number) for number in range(count)]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.txt"))}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes.address


def test_here_in_processes_and_on_a_cluster(tmp_path: Path, cluster: str) -> None:
    made = {}
    for name, options in {"here": (1, ""), "processes": (2, ""), "cluster": (1, cluster)}.items():
        with ShardMap(session_in(tmp_path / name), *options) as shards:
            done = shards.run("write", write_down, jobs())
            total = shards.run("add", add_up, [Job(0, str(shard.folder)) for shard in done])
        assert [shard.result["number"] for shard in done] == list(range(6))
        assert [shard.result["characters"] for shard in total] == [8 * n for n in range(6)]
        made[name] = files(tmp_path / name / "shards" / "write")
        workers = {shard.result["pid"] for shard in done}
        assert (os.getpid() in workers) == (name == "here")
    assert made["here"] == made["processes"] == made["cluster"] and len(made["here"]) == 6


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    with ShardMap(session_in(tmp_path), 1) as shards:
        first = shards.run("write", write_down, jobs())
        (first[2].folder / "words.txt").write_text("cut sho")
        changed = [*jobs()[:5], Job(5, "other words")]
        second = shards.run("write", write_down, changed)
    anew = [a.result["moment"] != b.result["moment"] for a, b in zip(first, second, strict=True)]
    assert anew == [False, False, True, False, False, True]
    assert (second[5].folder / "words.txt").read_text() == "other words"


def test_a_shorter_list_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    with ShardMap(session_in(tmp_path), 1) as shards:
        shards.run("write", write_down, jobs(6))
        (tmp_path / "shards" / "write" / "00001.abcdef12").mkdir()
        shards.run("write", write_down, jobs(2))
    assert sorted(p.name for p in (tmp_path / "shards" / "write").iterdir()) == ["00000", "00001"]


def test_a_worker_that_dies_is_told_and_the_rest_stays(tmp_path: Path) -> None:
    tasks = [Job(number, str(tmp_path / "died")) for number in range(4)]
    with (
        ShardMap(session_in(tmp_path), 2) as shards,
        pytest.raises(RetryableError, match="died, most likely"),
    ):
        shards.run("die", die_once, tasks)
    with ShardMap(session_in(tmp_path), 2) as shards:
        assert len(shards.run("die", die_once, tasks)) == 4


def test_a_node_that_dies_costs_only_time(tmp_path: Path, cluster: str) -> None:
    tasks = [Job(number, str(tmp_path / "died")) for number in range(4)]
    with ShardMap(session_in(tmp_path), 1, cluster) as shards:
        assert len(shards.run("die", die_once, tasks)) == 4
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("where", ["here", "processes", "cluster"])
def test_errors_keep_their_kind_and_their_hint(tmp_path: Path, cluster: str, where: str) -> None:
    workers = {"here": 1, "processes": 2, "cluster": 1}[where]
    address = cluster if where == "cluster" else ""
    with ShardMap(session_in(tmp_path), workers, address) as shards, pytest.raises(UserError) as raised:
        shards.run("refuse", refuse, jobs(2))
    assert raised.value.message in ("shard 0 is refused", "shard 1 is refused")
    assert raised.value.hint == "mend it"


def test_stopping(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.should_stop()
    session._on_signal(signal.SIGTERM, None)
    with ShardMap(session, 2) as shards, pytest.raises(StopRequested, match="the shards that are done stay"):
        shards.run("write", write_down, jobs())


def test_a_node_with_other_code_is_refused(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_map, "_code", lambda stage: {"stages/corpus_prep/run.py": "0" * 16})
    with ShardMap(session_in(tmp_path), 1, cluster) as shards:
        with pytest.raises(UserError, match="runs other code of corpus_prep"):
            shards.run("write", write_down, jobs(1))


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_map, "CONNECT_SECONDS", 0.5)
    with ShardMap(session_in(tmp_path), 1, "tcp://127.0.0.1:9") as shards:
        with pytest.raises(RetryableError, match="does not answer"):
            shards.run("write", write_down, jobs(1))


def test_workers_end_with_who_started_them(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.runtime.shard_work", str(tmp_path)]
    parent = subprocess.Popen(program, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    pids = tmp_path / "pids"
    deadline = time.monotonic() + 60
    while not pids.is_dir() or len(list(pids.iterdir())) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    workers = [int(path.name) for path in pids.iterdir()]
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("total_gib", "container", "processors", "workers"),
    [
        (64, "max", 8, 8),
        (64, str(4 << 30), 8, 3),
        (2, "max", 8, 1),
        (64, str(1 << 28), 8, 1),
        (8, None, 2, 2),
    ],
)
def test_workers_fit_into_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    total_gib: int,
    container: str | None,
    processors: int,
    workers: int,
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal:  {total_gib << 20} kB\nMemFree:  1 kB\n")
    if container is not None:
        (tmp_path / "memory.max").write_text(f"{container}\n")
    monkeypatch.setattr(shard_map, "_MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(shard_map, "_CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert shard_map.fitting_workers() == workers
