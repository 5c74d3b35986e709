"""A stage session without the frame, and a builder of small packages on disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_contracts.tables import read_rows
from stages.corpus_prep.harvest_files import PackageFiles, SourceFile
from stages.corpus_prep.run import run
from stages.corpus_prep.spec import SPEC, CorpusPrepConfig
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


class StageRun:
    """What one run of the stage left behind."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.parts = {name: folder / "out" / name for name in SPEC.writes}
        log = EventLog(folder / "work" / "events.jsonl", as_json=True, stream=io.StringIO())
        session = StageSession("corpus_prep", folder / "work", log)
        self.metrics = run(CorpusPrepConfig.model_validate(settings), {}, self.parts, session)

    def rows(self, part: str) -> list[dict[str, Any]]:
        """All rows of a part."""
        return list(read_rows(self.parts[part]))


RunStage = Callable[..., StageRun]


@pytest.fixture
def run_stage(tmp_path: Path) -> RunStage:
    """Runs the stage on settings; each call in a folder of its own."""
    calls = iter(range(100))
    return lambda **settings: StageRun(tmp_path / f"run{next(calls)}", settings)


MakePackage = Callable[[Mapping[str, str]], PackageFiles]


@pytest.fixture
def make_package(tmp_path: Path) -> MakePackage:
    """Writes {module name: source} below a folder; a name that ends in `.__init__` is a package."""

    def make(modules: Mapping[str, str], name: str = "shop") -> PackageFiles:
        files = []
        for module, source in modules.items():
            path = tmp_path / "site" / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
            files.append(SourceFile(module.removesuffix(".__init__"), path, len(source)))
        return PackageFiles(name, "1.0", tuple(files))

    return make
