"""Five stages of a second each, with every way to go wrong: for tests of the flows.

As a program, `python dummy_stages.py STAGE --config ...` is one of the stages, and
`python dummy_stages.py glassworks build ...` is the command line with these five in the place of the nine.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from data_contracts.contract import Contract, FileRule
from stages.runtime.errors import ContractError, RetryableError, StopRequested, UserError
from stages.runtime.main import main
from stages.runtime.session import StageSession
from stages.runtime.spec import Read, StageConfig, StageSpec

TEXT = Contract("text", 1, "one line of text", (FileRule("text.txt"),))


class DummyConfig(StageConfig):
    """The same for all five."""

    word: str = "glass"
    """What the output says."""
    steps: int = 2
    """How many steps to take."""
    seconds: float = 0.0
    """How long each step takes."""
    fault: str = ""
    """What to do wrong: user, contract, retry, crash, kill, empty."""
    padding_kib: int = 0
    """How many KiB of numbers to write after the words."""
    constant: bool = False
    """Leave the inputs out of the output, so that it stays the same whatever they are."""


def _spec(name: str, *reads: str) -> StageSpec:
    inputs = {role: Read(role, "text", TEXT) for role in reads}
    return StageSpec(name, 1, DummyConfig, {"text": TEXT}, inputs, summary=f"the {name} stage")


STAGES = (
    _spec("first"),
    _spec("second", "first"),
    _spec("left", "second"),
    _spec("right", "first"),
    _spec("last", "left", "right"),
)


def run(
    config: DummyConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Take the steps, resume where a stopped run left off, and write one line."""
    checkpoint = session.work_dir / "checkpoints" / "steps"
    begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(begin, config.steps):
        time.sleep(config.seconds)
        session.progress(step + 1, config.steps, "steps", loss=1.0 / (step + 1))
        session.metrics(step, train_loss=1.0 / (step + 1))
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text(str(step + 1))
        if session.should_stop():
            raise StopRequested(f"stopped at step {step + 1}", hint="build again to go on")
    _go_wrong(config.fault)
    session.warn("the glass is hot")
    session.sample("Hello", f"{config.word}!")
    session.table("numbers", ["name", "value"], [["steps", config.steps]], "What was counted")
    points = [[step, 1.0 / (step + 1)] for step in range(config.steps)]
    session.chart("loss", title="Loss", x_label="step", y_label="nats", series={"train": points})
    if config.fault != "empty":
        read = [] if config.constant else [(inputs[r] / "text.txt").read_text() for r in sorted(inputs)]
        numbers = random.Random(config.word).randbytes(512 * config.padding_kib).hex()
        (outputs["text"] / "text.txt").write_text(" ".join([config.word, *read]) + numbers)
    return {"steps": config.steps, "num_words": 1 + len(inputs)}


def _go_wrong(fault: str) -> None:
    if fault == "user":
        raise UserError("the sand is wet: found water, expected sand", hint="dry it first")
    if fault == "contract":
        raise ContractError("the mould broke", hint="make a new mould")
    if fault == "retry":
        raise RetryableError("the oven is busy", hint="wait a little")
    if fault == "crash":
        raise RuntimeError("the glass fell down")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def entry_point(spec: StageSpec) -> list[str]:
    """The command that starts one of these stages."""
    return [sys.executable, __file__, spec.name]


def glassworks(arguments: list[str]) -> None:
    """The command line, with these stages in the catalog's place."""
    import stages.catalog

    stages.catalog.STAGES = STAGES
    from flows import cli, launch

    launch.entry_point = entry_point
    sys.argv = ["glassworks", *arguments]
    cli.main()


if __name__ == "__main__":
    if sys.argv[1] == "glassworks":
        glassworks(sys.argv[2:])
    else:
        main(next(spec for spec in STAGES if spec.name == sys.argv[1]), run, sys.argv[2:])
