"""The corpus in many shards: the same bytes by one process, by two, by two nodes, and after kills.

With everything on that looks at several shards: repeated lines, paragraphs and runs, near-duplicates, limits.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_contracts.tables import read_rows
from stages.corpus_prep import gathering
from stages.corpus_prep.spec import SPEC
from tests.dask_cluster import two_nodes

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
REPOSITORY = FIXTURES.parents[1]
SMALL = {
    "num_tool_conversations": 60,
    "num_question_conversations": 60,
    "num_scenarios": 10,
    "repeated_paragraph_documents": 3,
    "repeated_line_documents": 2,
    "repeated_run_words": 12,
}
FOOTER = "This page was copied from the almanac of the harbour masters, volume"


def digests(folder: Path) -> dict[str, str]:
    """Every file of every part -> sha256."""
    files = (p for part in SPEC.writes for p in (folder / part).rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, ...]:
    """Eight files of English text, some documents in two of them, all with a footer, two with quotations."""
    lines = (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(8):
        rows = [json.loads(line) for line in lines[number * 4 : number * 4 + 6]]
        for row in rows:
            row["text"] += (
                f"\n\n{FOOTER} {number % 2 + 1}.\nAll rights of this almanac are reserved for ever."
            )
        if number in (2, 4):
            rows[0]["text"] = rows[1]["text"][200:500] + "\n\n" + json.loads(lines[0])["text"][100:400]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{number}.jsonl").write_text(text, encoding="utf-8")
    return (str(folder), str(FIXTURES / "corpus_dialogues.jsonl"))


def screens(folder: Path) -> dict[str, Any]:
    """Every setting of the screening that needs a list or a model, or changes text."""
    lines = (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
    good, bad, words = folder / "good.jsonl", folder / "bad.jsonl", folder / "words.txt"
    good.write_text("".join(f"{line}\n" for line in lines * 3), encoding="utf-8")
    bad.write_text("".join(f"{line}\n" for line in lines[10:]), encoding="utf-8")
    words.write_text("garden\n", encoding="utf-8")
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
    with two_nodes(tmp_path / "cluster") as cluster:
        nodes = run_stage(dask_scheduler=cluster.address, **settings)
        with killed_in(tmp_path / "run3" / "work", "prepare", lambda: cluster.kill_node(0)):
            left = run_stage(dask_scheduler=cluster.address, **settings)
        assert cluster.nodes[0].wait() == -signal.SIGKILL and cluster.nodes[1].poll() is None
    made, *others = (digests(run.folder / "out") for run in (one, two, nodes, left))
    assert len(list((one.folder / "out" / "documents").iterdir())) > 8
    assert {name.partition("/")[0] for name in made} == set(SPEC.writes)
    assert others == [made] * 3
    assert one.metrics == two.metrics == nodes.metrics == left.metrics
    footers = [row["text"].count(FOOTER) for row in one.rows("documents")]
    assert sum(footers) == 1 and len(footers) > 16
    dropped = {name for name in one.metrics if name.startswith("dropped_")}
    assert dropped > {"dropped_only_repeats", "dropped_listed_phrase", "dropped_low_quality_score"}


@contextmanager
def killed_in(work: Path, step: str, kill: Callable[[], None]) -> Iterator[None]:
    """Meanwhile: `kill` as soon as the first shard of the step is done."""
    killed = threading.Event()

    def watch() -> None:
        while not list((work / "shards" / step).glob("?????/done.json")):
            time.sleep(0.002)
        kill()
        killed.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    assert killed.is_set()
    thread.join()


def test_the_size_of_shards_changes_only_the_files(
    run_stage: Any, sources: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_stage(sources=sources, num_workers=1, **SMALL)
    monkeypatch.setattr(gathering, "SHARD_BYTES", 1_000)
    cut = run_stage(sources=sources, num_workers=1, **SMALL)
    parts = (
        "documents",
        "document_scores",
        "funnel",
        "benchmark",
        "scenarios",
        "conversations",
        "preferences",
    )
    for part in parts:
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


def test_kill_9_and_resume(
    run_stage: Any, sources: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SHARD_BYTES", 1_000)
    whole = run_stage(sources=sources, num_workers=1, **SMALL)
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

    shards = tmp_path / "w" / "killed" / "shards"
    done: dict[Path, int] = {}
    for step in ("prepare", "repeats_cut"):
        program = start("killed")
        deadline = time.monotonic() + 60
        while not list(shards.glob(f"{step}/?????/done.json")):
            assert program.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        program.kill()
        program.wait()
        assert not (tmp_path / "killed").exists()
        assert {path: path.stat().st_mtime_ns for path in done} == done  # by earlier runs, and not again
        done = {path: path.stat().st_mtime_ns for path in shards.glob("*/?????/done.json")}
    assert start("killed").wait() == 0
    made = digests(tmp_path / "killed")
    assert made == digests(whole.folder / "out") and len(made) > 16
