"""Paging through what was dropped: every row once and in order, and errors that say what there is."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from data_contracts import REJECTS
from data_contracts.manifest import PartEntry
from data_contracts.tables import PartWriter
from flows.dropped import count_reasons, show_dropped
from flows.records import _stage_called
from stages.runtime.errors import UserError
from stages.runtime.store import Artifact
from tests.flows.manifests import empty_manifest, provenance

REPEATED, SHORT, ENGLISH = "gopher_repetition", "too_short", "other_language"


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    """Seven repetitive and two short documents in two files."""
    reasons = [REPEATED, SHORT, *[REPEATED] * 3, SHORT, *[REPEATED] * 3]
    for number, part in enumerate((reasons[:4], reasons[4:])):
        with PartWriter(tmp_path / "rejects", REJECTS, f"part-0000{number}.parquet") as writer:
            for index, reason in enumerate(part):
                name = f"{number}-{index}"
                writer.write(
                    {"doc_id": name, "source": "web.jsonl", "title": f"page {name}", "step": "quality",
                     "reason": reason, "detail": "31 % in lines", "num_bytes": 1234, "preview": f"[{name}]"}
                )  # fmt: skip
    entry = PartEntry(contract="rejects@1", digest="d")
    made = provenance(seconds=1.0, peak_memory_bytes=1)
    return Artifact(tmp_path, empty_manifest("corpus_prep", parts={"rejects": entry}, provenance=made))


def _shown(corpus: Artifact, reason: str, **options: int) -> str:
    text = io.StringIO()
    show_dropped(corpus, reason, Console(file=text, width=100), **options)
    return text.getvalue()


def test_pages_hold_every_document_once_and_in_order(corpus: Artifact) -> None:
    pages = [_shown(corpus, REPEATED, page=page, rows=3) for page in (1, 2, 3)]
    found = [name for text in pages for name in re.findall(r"\[(\d-\d)\]", text)]
    assert found == ["0-0", "0-2", "0-3", "1-0", "1-2", "1-3", "1-4"]
    assert [len(re.findall(r"\[\d-\d\]", text)) for text in pages] == [3, 3, 1]
    assert "7 documents, page 1 of 3" in pages[0]
    assert "--page 2" in pages[0] and "--page" not in pages[2]
    assert "4. page 1-0" in pages[1]
    assert "web.jsonl" in pages[1] and "1,234 bytes" in pages[1] and "31 % in lines" in pages[1]


def test_a_step_narrows_the_reason(corpus: Artifact) -> None:
    assert "2 documents" in _shown(corpus, f"quality/{SHORT}")
    with pytest.raises(UserError, match="no document was dropped for 'read/too_short'"):
        _shown(corpus, f"read/{SHORT}")


def test_an_unknown_reason_is_answered_with_those_there_are(corpus: Artifact) -> None:
    with pytest.raises(UserError, match=r"did you mean 'gopher_repetition'") as error:
        _shown(corpus, "goper_repetition")
    assert error.value.hint == f"dropped: {REPEATED} 7, {SHORT} 2"
    assert count_reasons(corpus.part("rejects")) == {("quality", REPEATED): 7, ("quality", SHORT): 2}


@pytest.mark.parametrize("page", [0, 2])
def test_a_page_that_is_not_there(corpus: Artifact, page: int) -> None:
    with pytest.raises(UserError, match=f"page {page} of 1: 2 documents were dropped for too_short") as error:
        _shown(corpus, SHORT, page=page)
    assert "--page 1 to 1" in str(error.value.hint)


def test_an_artifact_without_rejects_says_where_they_are(tmp_path: Path) -> None:
    made = provenance(seconds=1.0, peak_memory_bytes=1)
    with pytest.raises(UserError, match="keeps no rejects") as error:
        _shown(Artifact(tmp_path, empty_manifest("sft", parts={}, provenance=made)), SHORT)
    assert "glassworks show corpus_prep --dropped" in str(error.value.hint)


def test_the_first_word_of_a_stage_is_enough_where_it_is_the_only_one() -> None:
    stages = ["corpus_prep", "agent_smoke", "agent_eval", "sft"]
    assert [_stage_called(word, stages) for word in ("corpus", "agent", "sft", "x")] == [
        "corpus_prep", "agent", "sft", "x"
    ]  # fmt: skip
