"""One function over many shards: here, in other processes, or on the nodes of a Dask cluster.

A task is a small frozen dataclass, its result a small JSON object, and everything large lies in files. So
what travels between processes and nodes are names, and the same tasks give the same bytes wherever they run.
Each task fills a folder of its own, which gets its name when it is whole: a run that was killed goes on with
the tasks that are missing.

On a cluster all nodes see the work folder under one path, and have the same code; both are checked.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stages.runtime.errors import RetryableError, StopRequested, UserError
from stages.runtime.fingerprint import code_digests
from stages.runtime.session import StageSession

DONE_NAME = "done.json"
POLL_SECONDS = 0.5
WORKER_BYTES = 1 << 30
"""What a worker is promised to stay below."""
_MEMORY_INFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CONNECT_SECONDS = 20.0

Result = dict[str, Any]
Work = Callable[[Any, Path], Mapping[str, Any]]
"""(task, empty folder) -> what the caller wants to know; a function at the top of a module."""


@dataclass(frozen=True)
class Shard:
    """A task that is done: its folder and its result."""

    folder: Path
    result: Result


@dataclass(frozen=True)
class _Order:
    """What is sent to a worker: which function, the task, and where its folder shall be."""

    work: str
    task: Any
    folder: Path
    key: str


class ShardMap:
    """Maps functions over tasks; use as a context manager.

    num_workers: processes; 0 for as many as there are processors and memory for. dask_scheduler: address
    such as `tcp://10.0.0.5:8786`, then the cluster's workers are used instead.
    """

    def __init__(self, session: StageSession, num_workers: int = 0, dask_scheduler: str = "") -> None:
        self.session = session
        self.num_workers = num_workers or fitting_workers()
        self.dask_scheduler = dask_scheduler
        self._pool: ProcessPoolExecutor | None = None
        self._client: Any = None

    def __enter__(self) -> ShardMap:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def run(
        self, step: str, work: Work, tasks: Sequence[Any], weights: Sequence[int] | None = None
    ) -> list[Shard]:
        """Do `work` for every task; shards come in the order of the tasks.

        weights: sizes of the tasks, for the progress that is shown. Raises what `work` raises, RetryableError
        where a worker died, UserError where a node of the cluster has other code or does not see the folder.
        """
        base = self.session.work_dir / "shards" / step
        base.mkdir(parents=True, exist_ok=True)
        name = f"{work.__module__}:{work.__qualname__}"
        orders = [
            _Order(name, task, base / f"{number:05d}", _key_of(task)) for number, task in enumerate(tasks)
        ]
        _remove_others(base, {order.folder.name for order in orders})
        sizes = list(weights) if weights is not None else [1] * len(orders)
        unit = "shards" if weights is None else "kB"
        done = [_finished(order) for order in orders]
        waiting = [number for number, shard in enumerate(done) if shard is None]
        complete = sum(size for number, size in enumerate(sizes) if done[number] is not None)
        for number, result in self._results(orders, waiting):
            done[number] = Shard(orders[number].folder, result)
            complete += sizes[number]
            self.session.progress(_scaled(complete, unit), _scaled(sum(sizes), unit), unit, step=step)
        return [shard for shard in done if shard is not None]

    def _results(self, orders: Sequence[_Order], waiting: Sequence[int]) -> Iterator[tuple[int, Result]]:
        """(number, result) as they come."""
        if not waiting:
            return
        if self.dask_scheduler:
            yield from self._by_cluster(orders, waiting)
        elif self.num_workers == 1 or len(orders) == 1:
            for number in waiting:
                self._ask_to_stop()
                yield number, _do(orders[number])
        else:
            yield from self._by_processes(orders, waiting)

    def _ask_to_stop(self) -> None:
        if self.session.should_stop():
            message = f"{self.session.stage} was asked to stop; the shards that are done stay"
            raise StopRequested(message, hint="build again to go on")

    def _by_processes(self, orders: Sequence[_Order], waiting: Sequence[int]) -> Iterator[tuple[int, Result]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_workers, multiprocessing.get_context("spawn"), _begin_worker, (os.getpid(),)
            )
        futures = {self._pool.submit(_do, orders[number]): number for number in waiting}
        try:
            for future in self._as_they_come(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise RetryableError(
                f"a worker process of {self.session.stage} died, most likely for want of memory "
                f"({self.num_workers} of them were at work)",
                hint=f"build again to go on; with less memory: --set {self.session.stage}.num_workers=1",
            ) from None

    def _as_they_come(self, futures: Mapping[Future[Result], int]) -> Iterator[Future[Result]]:
        left = set(futures)
        while left:
            ended, left = wait(left, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            self._ask_to_stop()
            yield from ended

    def _by_cluster(self, orders: Sequence[_Order], waiting: Sequence[int]) -> Iterator[tuple[int, Result]]:
        client = self._connect()
        seen = self.session.work_dir / f"seen-{uuid.uuid4().hex}"
        seen.touch()
        do = partial(_do_on_node, stage=self.session.stage, code=_code(self.session.stage), seen=seen)
        futures = {client.submit(do, orders[n], pure=False): n for n in waiting}
        try:
            while futures:
                ended = [future for future in futures if future.done()]
                self._ask_to_stop()
                for future in ended:
                    yield futures.pop(future), self._cluster_result(future)
                if not ended:
                    time.sleep(POLL_SECONDS / 5)
        finally:
            client.cancel(list(futures))
            seen.unlink()

    def _cluster_result(self, future: Any) -> Result:
        killed_worker = importlib.import_module("distributed.scheduler").KilledWorker
        try:
            result: Result = future.result()
        except killed_worker as error:
            raise RetryableError(
                f"workers of {self.dask_scheduler} died over one shard again and again: {error}",
                hint="build again to go on; give the workers more memory (dask worker --memory-limit)",
            ) from None
        return result

    def _connect(self) -> Any:
        if self._client is None:
            try:  # by name: what only says who works is not part of what a stage is made of
                connect: Any = importlib.import_module("distributed").Client
            except ImportError:
                raise UserError(
                    f"dask_scheduler = {self.dask_scheduler!r} needs the package distributed",
                    hint="pip install 'glassworks[cluster]'",
                ) from None
            try:
                self._client = connect(self.dask_scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
                nodes = len(self._client.scheduler_info()["workers"])
            except (OSError, TimeoutError, ValueError) as error:
                raise RetryableError(
                    f"the Dask scheduler {self.dask_scheduler} does not answer: {error}",
                    hint="start one: `dask scheduler`, and on each node `dask worker ADDRESS`",
                ) from None
            self.session.log(f"shards go to {nodes} workers of {self.dask_scheduler}")
        return self._client


def fitting_workers() -> int:
    """A process for each processor that we may use, as far as memory goes, the container's in one."""
    limits = [int(line.split()[1]) * 1024 for line in _lines(_MEMORY_INFO) if line.startswith("MemTotal:")]
    limits += [int(line) for line in _lines(_CGROUP_LIMIT) if line.strip().isdecimal()]
    fit = min(limits, default=WORKER_BYTES) // WORKER_BYTES - 1  # one is for who asks
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def peak_worker_memory_bytes() -> int:
    """The most memory that this process, or one that it started and that has ended, held at once."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024


def _scaled(size: int, unit: str) -> int:
    return size // 1000 if unit == "kB" else size


def _key_of(task: Any) -> str:
    return json.dumps(asdict(task), sort_keys=True, default=str)


def _finished(order: _Order) -> Shard | None:
    """The shard of an earlier run, if it is whole and was made of the same task."""
    try:
        done = json.loads((order.folder / DONE_NAME).read_text(encoding="utf-8"))
        sizes = {name: (order.folder / name).stat().st_size for name in done["files"]}
    except (OSError, ValueError, KeyError):
        return None
    whole = done["key"] == order.key and done["work"] == order.work and done["files"] == sizes
    return Shard(order.folder, done["result"]) if whole else None


def _remove_others(base: Path, wanted: set[str]) -> None:
    """Half-made folders, and those of another list of tasks."""
    for folder in base.iterdir():
        if folder.name not in wanted:
            shutil.rmtree(folder, ignore_errors=True)


def _do(order: _Order) -> Result:
    """Do one task in a folder with a name of its own, then give it the right one."""
    module, _, function = order.work.partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    made = order.folder.with_name(f"{order.folder.name}.{uuid.uuid4().hex[:8]}")
    made.mkdir(parents=True)
    try:
        result: Result = json.loads(json.dumps(work(order.task, made)))  # as it will be read next time
        files = {p.relative_to(made).as_posix(): p.stat().st_size for p in made.rglob("*") if p.is_file()}
        done = {"work": order.work, "key": order.key, "files": files, "result": result}
        (made / DONE_NAME).write_text(json.dumps(done, ensure_ascii=False), encoding="utf-8")
        shutil.rmtree(order.folder, ignore_errors=True)
        made.rename(order.folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return result


def _code(stage: str) -> dict[str, str]:
    return code_digests(f"stages.{stage}.__main__")


def _do_on_node(order: _Order, stage: str, code: Mapping[str, str], seen: Path) -> Result:
    """The same on a node of a cluster, if it is a node of ours."""
    node = os.uname().nodename
    if _code(stage) != code:
        raise UserError(
            f"node {node} runs other code of {stage} than the node that asks",
            hint="bring all nodes to the same commit, and start their workers again",
        )
    if not seen.exists():
        raise UserError(
            f"node {node} does not see {seen.parent}",
            hint="put the store on a file system that all nodes mount at the same path",
        )
    return _do(order)


def _begin_worker(parent: int) -> None:
    """A worker process: one thread of Arrow, deaf to Ctrl-C, and gone when who started it is."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
