"""What a container, or a worker, costs over a process: the same stage started both ways by turns, as a table.

    python tests/benchmarks/backend_overhead.py STORE [--rounds 5] [--stage corpus_prep ...] [--backend workers]

STORE holds a finished build (`glassworks build --preset tiny --store STORE`); each stage is forced to run again on
that build's inputs. Seconds are from asking for the stage to having its artifact, interpreter and all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

from flows.backends import backend_named
from flows.job import Backend, Job
from flows.records import latest_record
from stages.catalog import STAGES
from stages.runtime.fingerprint import key_parts
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store, read_manifest


def job_of(store: Store, spec: StageSpec) -> Job:
    """The job that made the stage's artifact of the newest run."""
    names = {done.name: done.fingerprint for done in latest_record(store).stages}
    folders = {name: store.artifact_dir(name, key) for name, key in names.items() if key}
    found = {name: Artifact(folder, m) for name, folder in folders.items() if (m := read_manifest(folder))}
    inputs = {role: found[read.stage].part(read.part) for role, read in spec.reads.items()}
    digests = {role: found[r.stage].manifest.parts[r.part].digest for role, r in spec.reads.items()}
    config = spec.parse_config(found[spec.name].manifest.config)
    key = key_parts(spec, config, digests)
    return Job(spec, config, key, inputs, store, force=True, run_id="backend-overhead")


def seconds_of(backend: Backend, job: Job) -> float:
    """Wall time of one launch."""
    started = time.monotonic()
    asyncio.run(backend.launch(job, lambda event: None))
    return time.monotonic() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", action="append", choices=[spec.name for spec in STAGES])
    parser.add_argument("--backend", default="docker", help="docker; workers, where a server and one are up")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # it costs each start the compiling of all of our files
    store = Store(options.store)
    backends = [backend_named("process"), backend_named(options.backend)]
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, median of {options.rounds}\n")
    print(f"| stage | process, s | {options.backend}, s | overhead, s |\n|---|---|---|---|")
    for spec in STAGES:
        if options.stage and spec.name not in options.stage:
            continue
        job = job_of(store, spec)
        rounds = [[seconds_of(backend, job) for backend in backends] for _ in range(options.rounds)]
        process, other = (statistics.median(column) for column in zip(*rounds, strict=True))
        over = statistics.median(row[1] - row[0] for row in rounds)
        print(f"| {spec.name} | {process:.2f} | {other:.2f} | {over:+.2f} |", flush=True)


if __name__ == "__main__":
    main()
