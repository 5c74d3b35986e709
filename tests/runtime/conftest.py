"""A small real stage in a file of its own, run the way every stage is run: as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STAGE = '''
import sys, time
from pathlib import Path
from data_contracts.contract import Contract, FileRule
from stages.runtime import session as sessions
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.main import main
from stages.runtime.spec import Read, StageConfig, StageSpec

NUMBERS = Contract("numbers", int("{version}"), "one number a line", (FileRule("numbers.txt"),))

class Config(StageConfig):
    depth: int = 3
    """How many numbers."""
    seconds: float = 0.0
    """How long to take over each."""
    fault: str = ""
    """What to do wrong."""
    patience: float = 0.0
    """How long it may be silent when it is asked to stop; 0 for the default."""
    saving_seconds: float = 0.0
    """How long it takes to stop in good order."""

def run(config, inputs, outputs, session):
    checkpoint = session.work_dir / "checkpoints" / "done"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    session.log(f"starting at {{first}}")
    sessions.ASKS_WITHIN_SECONDS = config.patience or sessions.ASKS_WITHIN_SECONDS
    for number in range(first, config.depth):
        session.progress(number, config.depth, "numbers")
        time.sleep(config.seconds)
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text(str(number + 1))
        if config.fault != "deaf" and session.should_stop():
            time.sleep(config.saving_seconds)
            raise StopRequested("stopped in good order", hint="build again to go on")
        if config.fault == "long step":
            session.log("a long step")
            time.sleep(60)
    base = sum(map(int, (inputs["base"] / "numbers.txt").read_text().split())) if "base" in inputs else 0
    if config.fault == "full":
        (outputs["numbers"] / "numbers.txt").symlink_to("/dev/full")
    if config.fault == "crash":
        raise RuntimeError("the middle fell out")
    if config.fault != "empty":
        text = "\\n".join(str(base + n) for n in range(config.depth))
        (outputs["numbers"] / "numbers.txt").write_text(text)
    session.metrics(config.depth, loss=float("nan"))
    session.progress(config.depth, config.depth, "numbers")
    return {{"count": config.depth}}

READS = {{"base": Read("fake", "numbers", NUMBERS)}} if "{reads}" else {{}}
SPEC = StageSpec(name="fake", version=1, config=Config, writes={{"numbers": NUMBERS}}, reads=READS)
if __name__ == "__main__":
    main(SPEC, run)
'''


class FakeStage:
    """Runs the stage above in a folder."""

    def __init__(self, folder: Path, version: int = 1, reads: bool = False) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.script = folder / "fake_stage.py"
        self.script.write_text(STAGE.format(version=version, reads="yes" if reads else ""))

    def command(self, output: Path, config: str = "{}", *arguments: str) -> list[str]:
        path = self.folder / f"config-{abs(hash(config))}.json"
        path.write_text(config)
        return [sys.executable, str(self.script), "--config", str(path), "--output", str(output), *arguments]

    def start(self, output: Path, config: str = "{}", *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(output, config, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, output: Path, config: str = "{}", *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command(output, config, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def fake_stage(tmp_path: Path) -> FakeStage:
    """The stage, in a folder of its own."""
    return FakeStage(tmp_path / "fake")


@pytest.fixture
def reading_stage(tmp_path: Path) -> FakeStage:
    """The same stage with one input, `base`."""
    return FakeStage(tmp_path / "reading", reads=True)


@pytest.fixture
def newer_reading_stage(tmp_path: Path) -> FakeStage:
    """The same, but its contract is of version 2."""
    return FakeStage(tmp_path / "newer", version=2, reads=True)
