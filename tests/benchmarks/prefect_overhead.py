"""What Prefect, and containers, cost over a bare loop: the same build each way by turns, as a Markdown table.

    python tests/benchmarks/prefect_overhead.py [--rounds 5] [--preset tiny] [--own-server] [--containers]

A run of nine hits, and one of nine stages in an empty store. Each build is a new interpreter; the seconds are those of
the whole command. The bare loop plans, runs, records and reports in the same way, without Prefect.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from flows.build import Build
from flows.prefect_server import PrefectServer, prepare_prefect
from flows.settings import build_settings
from flows.terminal import Terminal
from stages.runtime.store import Store

SMALL = ("pretrain.train_tokens=20_000", "vector_store.training_steps=20", "corpus_prep.num_scenarios=5")
"""Stages so short that what is around them shows."""


async def bare_loop(build: Build) -> None:
    """All stages as soon as their inputs are there, and nobody else who is told."""

    async def when_ready(number: int) -> None:
        spec = build.specs[number]
        for needed in {read.stage for read in spec.reads.values()}:
            await build.settled[needed].wait()
        await build.stage(spec, lambda event: None)

    await asyncio.gather(*(when_ready(number) for number in range(len(build.specs))))
    build.write_report()


def run_bare(preset: str, changes: list[str], store: Path) -> None:
    """One build without Prefect."""
    with Terminal() as terminal:
        asyncio.run(bare_loop(Build(Store(store), build_settings(preset, changes=changes), terminal)))


def seconds_of(command: list[str], environment: Mapping[str, str]) -> float:
    """Wall time of a command that must succeed."""
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return time.monotonic() - started


def measure(
    preset: str, changes: list[str], rounds: int, home: Path, own_server: bool, containers: bool
) -> None:
    """Print the rows of the table."""
    told = [word for change in changes for word in ("--set", change)]
    here = [sys.executable, __file__, "--preset", preset, *told, "--bare"]
    build = [sys.executable, "-m", "flows.cli", "build", "--preset", preset, *told, "--store"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with PrefectServer(Path(os.environ["PREFECT_HOME"])) as server:
        server.wait()
        ways = {
            "bare loop": (here, alone),
            "flow, the server is up": (build, dict(os.environ)),
        }
        if own_server:
            ways["flow, with a server of its own"] = (build, alone)
        if containers:
            ways["flow, the server is up, a container per stage"] = (
                [*build[:-1], "--backend", "docker", "--store"],
                dict(os.environ),
            )
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, (command, environment) in ways.items():
                store = home / f"{number}-{way.replace(' ', '-')}"
                cold, warm = (seconds_of([*command, str(store)], environment) for _ in range(2))
                seconds[way].append((cold, warm))
                shutil.rmtree(store)
    bare_cold, bare_warm = (statistics.median(column) for column in zip(*seconds["bare loop"], strict=True))
    for way, pairs in seconds.items():
        cold, warm = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {way} | {warm:.2f} | {warm - bare_warm:+.2f} | {cold:.2f} | {cold - bare_cold:+.2f} |")


def main() -> None:
    """Measure and print, or run one bare build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", dest="changes")
    parser.add_argument("--bare", type=Path, metavar="STORE", help="run one build without Prefect")
    parser.add_argument(
        "--own-server", action="store_true", help="also with a server that the build brings along"
    )
    parser.add_argument("--containers", action="store_true", help="also with each stage in a container")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # it costs each start the compiling of all of our files
    changes = list(SMALL) if options.changes is None else options.changes
    if options.bare is not None:
        run_bare(options.preset, changes, options.bare)
        return
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, median of {options.rounds}\n")
    print("| build | nine hits, s | over bare | nine cold stages, s | over bare |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        prepare_prefect(Store(Path(folder) / "lasting"))
        measure(options.preset, changes, options.rounds, Path(folder), options.own_server, options.containers)


if __name__ == "__main__":
    main()
