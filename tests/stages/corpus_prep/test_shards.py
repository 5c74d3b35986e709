"""The corpus in many shards: the same bytes by one process, by two, by two nodes, and after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_contracts.tables import read_rows
from stages.corpus_prep import gathering
from stages.corpus_prep.spec import SPEC
from tests.dask_cluster import two_nodes

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
REPOSITORY = FIXTURES.parents[1]
SMALL = {"num_tool_conversations": 60, "num_question_conversations": 60, "num_scenarios": 10}


def digests(folder: Path) -> dict[str, bytes]:
    parts = (p for part in SPEC.writes for p in (folder / part).rglob("*.parquet"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in parts}


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, ...]:
    """Eight files of English text, some documents in two of them."""
    lines = (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(8):
        held = lines[number * 4 : number * 4 + 6]
        (folder / f"{number}.jsonl").write_text("\n".join(held) + "\n", encoding="utf-8")
    return (str(folder), str(FIXTURES / "corpus_dialogues.jsonl"))


def screens(folder: Path) -> dict[str, Any]:
    """Every setting of the screening that needs a list or a model, or changes text."""
    lines = (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
    good, bad, words = folder / "good.jsonl", folder / "bad.jsonl", folder / "words.txt"
    good.write_text("".join(f"{line}\n" for line in lines * 3), encoding="utf-8")
    bad.write_text("".join(f"{line}\n" for line in lines[:10]), encoding="utf-8")
    words.write_text("lighthouse\n", encoding="utf-8")
    return {
        "filters": ("documentation", "c4_fineweb"),
        "thresholds": ("c4_fineweb.few_sentences=off",),
        "word_lists": (str(words),),
        "good_text": (str(good),),
        "bad_text": (str(bad),),
        "max_perplexity": 1e6,
        "min_quality": 0.3,
    }


def test_one_process_two_processes_two_nodes(
    run_stage: Any, sources: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SHARD_BYTES", 1_000)
    settings = {"sources": sources, **SMALL, **screens(tmp_path)}
    one = run_stage(num_workers=1, **settings)
    two = run_stage(num_workers=2, **settings)
    (tmp_path / "cluster").mkdir()
    with two_nodes(tmp_path / "cluster") as address:
        nodes = run_stage(dask_scheduler=address, **settings)
    made = digests(one.folder / "out")
    assert len(list((one.folder / "out" / "documents").iterdir())) > 8
    assert made == digests(two.folder / "out") == digests(nodes.folder / "out")
    assert one.metrics == two.metrics == nodes.metrics
    dropped = {name for name in one.metrics if name.startswith("dropped_")}
    assert dropped == {"dropped_exact_duplicate", "dropped_listed_phrase", "dropped_low_quality_score"}


def test_the_size_of_shards_changes_only_the_files(
    run_stage: Any, sources: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_stage(sources=sources, **SMALL)
    monkeypatch.setattr(gathering, "SHARD_BYTES", 1_000)
    cut = run_stage(sources=sources, **SMALL)
    for part in ("documents", "document_scores", "funnel", "benchmark", "conversations", "preferences"):
        assert list(read_rows(whole.parts[part])) == list(read_rows(cut.parts[part])), part
    rejects = [sorted(map(str, read_rows(run.parts["rejects"]))) for run in (whole, cut)]
    assert rejects[0] == rejects[1] and rejects[0]
    assert whole.metrics == cut.metrics


PROGRAM = """
import sys
from stages.corpus_prep import gathering
from stages.corpus_prep.run import run
from stages.corpus_prep.spec import SPEC
from stages.runtime.main import main
gathering.SHARD_BYTES = 1_000
if __name__ == "__main__":
    main(SPEC, run, sys.argv[1:])
"""


def test_kill_9_and_resume(sources: tuple[str, ...], tmp_path: Path) -> None:
    script, config = tmp_path / "program.py", tmp_path / "config.json"
    script.write_text(PROGRAM)
    config.write_text(json.dumps({"sources": sources, "num_workers": 2, **SMALL}))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def start(name: str) -> subprocess.Popen[bytes]:
        options = [
            "--config",
            str(config),
            "--output",
            str(tmp_path / name),
            "--work",
            str(tmp_path / "w" / name),
        ]
        return subprocess.Popen([sys.executable, str(script), *options], env=environment)

    shards = tmp_path / "w" / "killed" / "shards" / "prepare"
    program = start("killed")
    deadline = time.monotonic() + 60
    while not list(shards.glob("?????/done.json")):
        assert program.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    program.kill()
    program.wait()
    left = {path: path.stat().st_mtime_ns for path in shards.glob("?????/done.json")}
    assert left and not (tmp_path / "killed").exists()
    assert start("killed").wait() == start("whole").wait() == 0
    made = digests(tmp_path / "killed")
    assert made == digests(tmp_path / "whole") and len(made) > 16
