"""What `glassworks redecide` and `calibrate` print, counted by hand."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from data_contracts import DOCUMENT_SCORES
from data_contracts.document_scores import STATISTICS
from data_contracts.manifest import PartEntry
from data_contracts.tables import PartWriter
from flows.redecide import show_calibration, show_redecision
from flows.settings import parse_change
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.errors import UserError
from stages.runtime.store import Artifact
from tests.flows.manifests import empty_manifest

TOP = "gopher_repetition.top_2_gram"


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    """A hundred documents of 1,000 characters; in number n the most frequent pair of words takes n of them.

    Rules were `gopher_repetition`, with a threshold that 10 of them are over.
    """
    for part in range(2):
        with PartWriter(tmp_path / "document_scores", DOCUMENT_SCORES, f"part-0000{part}.parquet") as writer:
            for number in range(part, 100, 2):
                plain = dict.fromkeys(STATISTICS, 0) | {"characters": 1000, "lines": 10, "paragraphs": 5}
                about = {"doc_id": f"{number:024x}", "source": "web.jsonl", "title": f"page {number}"}
                place = {"origin": "web.jsonl", "byte_start": 10 * number, "byte_end": 10 * number + 9}
                judged = {"language": "en", "switches": "", "num_bytes": 1_000_000, "reasons": []}
                verdict = "quality" if number > 89 else "deduplicated" if number == 80 else "kept"
                measured = plain | {"top_2_gram_characters": number}
                writer.write(about | place | judged | measured | {"verdict": verdict})
    config = CorpusPrepConfig(filters=("gopher_repetition",), thresholds=(f"{TOP}=0.089",))
    entry = PartEntry(contract=DOCUMENT_SCORES.identity, digest="d")
    manifest = empty_manifest(
        "corpus_prep", parts={"document_scores": entry}, config=config.model_dump(mode="json")
    )
    return Artifact(tmp_path, manifest)


def _redecided(corpus: Artifact, *changes: str, rows: int = 3) -> str:
    text = io.StringIO()
    show_redecision(corpus, changes, Console(file=text, width=140), rows)
    return text.getvalue()


def _row(shown: str, name: str) -> list[str]:
    (line,) = (line for line in shown.splitlines() if line.strip().startswith(name))
    return line.split()[name.count(" ") + 1 :]


def test_a_moved_threshold(corpus: Artifact) -> None:
    shown = _redecided(corpus, f'corpus_prep.thresholds=["{TOP}=0.079"]', rows=2)
    assert "100 documents (100.0 MB) were measured" in shown
    assert f"thresholds: {TOP}=0.089 -> {TOP}=0.079" in shown
    assert _row(shown, TOP) == ["10", "10.00", "20", "20.00", "20"]
    assert _row(shown, "all together") == ["10", "10.00", "20", "20.00"]
    assert "10 documents (10.0 MB) would go; in the corpus are 9 documents (9.0 MB) of them" in shown
    assert "page 80  web.jsonl  bytes 800 to 809" in shown and "page 81" in shown
    assert "page 82" not in shown
    assert f"top_2_gram 0.08 {TOP}: top_2_gram_characters / characters > 0.079" in shown
    assert "0 documents (0.0 MB) would pass that do not now" in shown
    command = shlex.split(shown.splitlines()[-1])
    assert command[:3] == ["glassworks", "rerun", "corpus_prep"]
    assert parse_change(command[4]) == ("corpus_prep", "thresholds", [f"{TOP}=0.079"])


def test_a_rule_that_is_off_lets_documents_pass(corpus: Artifact) -> None:
    shown = _redecided(corpus, f"corpus_prep.thresholds={TOP}=off", rows=1)
    assert _row(shown, TOP) == ["10", "10.00", "0", "0.00", "0"]
    assert "10 documents (10.0 MB) would pass that do not now\n  page 90" in shown


def test_nothing_changed_and_rules_that_are_others_now(corpus: Artifact) -> None:
    assert "0 documents (0.0 MB) would go\n" in _redecided(corpus)
    other = corpus.manifest.config | {"thresholds": [f"{TOP}=0.095"]}
    moved = Artifact(corpus.folder, corpus.manifest.model_copy(update={"config": other}))
    assert "warning: of 6 documents the corpus itself says otherwise" in _redecided(moved)


@pytest.mark.parametrize("change", ["corpus_prep.max_megabytes=3", "pretrain.depth=2"])
def test_what_scores_cannot_tell_wants_a_rerun(corpus: Artifact, change: str) -> None:
    with pytest.raises(UserError, match="cannot be tried on scores") as error:
        _redecided(corpus, change)
    assert change in str(error.value.hint)


def test_an_artifact_without_scores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keeps no scores") as error:
        _redecided(Artifact(tmp_path, empty_manifest("sft")))
    assert "glassworks rerun corpus_prep" in str(error.value.hint)


def _calibrated(corpus: Artifact, *changes: str, quantile: float = 0.05, language: str = "") -> str:
    text = io.StringIO()
    show_calibration(corpus, changes, Console(file=text, width=140), quantile, language)
    return text.getvalue()


def test_calibrated_thresholds_can_be_pasted(corpus: Artifact) -> None:
    shown = _calibrated(corpus)
    assert "100 documents (100.0 MB): en 100" in shown
    assert _row(shown, TOP) == [">", "0.089", "10", "10.00", ">", "0.094", "5", "5.00"]
    (line,) = (line for line in shown.splitlines() if line.startswith("glassworks redecide"))
    change = shlex.split(line)[3]
    tried = _redecided(corpus, change)
    assert _row(tried, TOP)[:4] == ["10", "10.00", "5", "5.00"]
    listed = re.findall(r'^    "(\S+)",$', shown, re.MULTILINE)
    assert listed == list(parse_change(change)[2]) and f"{TOP}=0.094" in listed


def test_other_filters_can_be_calibrated(corpus: Artifact) -> None:
    shown = _calibrated(corpus, 'corpus_prep.filters=["fineweb"]')
    assert TOP not in [line.split()[0] for line in shown.splitlines() if line.endswith("MB")]
    assert "fineweb.blank" in shown and 'corpus_prep.filters=["fineweb"]' in shown


def test_no_share_and_no_such_language(corpus: Artifact) -> None:
    with pytest.raises(UserError, match="--quantile 2 is no share"):
        _calibrated(corpus, quantile=2)
    with pytest.raises(UserError, match="no documents of language 'zh'"):
        _calibrated(corpus, language="zh")
