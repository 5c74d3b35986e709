"""Repeated paragraphs, lines and runs are cut out of all documents but the first, as a plain loop does it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.corpus_prep import gathering, repeat_passes
from stages.corpus_prep.cleaning import content_id
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.events import read_events

PLAIN = {
    "filters": (),
    "near_duplicate_similarity": 0,
    "max_megabytes": 100,
    "num_tool_conversations": 20,
    "num_question_conversations": 20,
    "num_scenarios": 5,
    "num_workers": 1,
}
MENU = "Home, news, weather, tide tables and the way to us"
LICENCE = "All of this may be read and copied.\nWho copies it says where it is from."
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SPLIT = {"line": r"\n", "paragraph": r"\n\s*\n"}


def story(number: int) -> str:
    """Words that no other story has."""
    words = [_word(f"{number} {place}") for place in range(24)]
    return f"{' '.join(words[:12])},\n{' '.join(words[12:])}."


def _word(seed: str) -> str:
    digest = hashlib.sha256(seed.encode()).digest()[:3]
    return "".join("aeiou"[byte % 5] + "bdfgklmnprst"[byte % 12] for byte in digest)


def write(folder: Path, texts: list[str]) -> tuple[str, ...]:
    """Two files, in order."""
    folder.mkdir()
    half = len(texts) // 2
    for name, held in (("a", texts[:half]), ("b", texts[half:])):
        rows = (json.dumps({"title": "", "text": text}) + "\n" for text in held)
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return tuple(str(folder / f"{name}.jsonl") for name in "ab")


def made_texts() -> list[str]:
    texts = [f"{MENU}\n\n{story(n)}\n\n{LICENCE}" for n in range(6)]
    texts += [f"{story(6)}\n\n{LICENCE}\n\n{story(7)}", f"{story(8)}\n{MENU}", MENU]
    texts += [texts[1], texts[3].upper(), f"{story(9)}\n\n{story(2)}"]
    return texts


def cut_plainly(texts: list[str], unit: str, limit: int) -> list[str]:
    """Without what more than `limit` different texts hold, but for the first; white space is as it falls."""
    originals: dict[str, str] = {}
    for text in texts:
        originals.setdefault(" ".join(text.split()).casefold(), text)
    holders: dict[str, list[str]] = defaultdict(list)
    for text in originals.values():
        for piece in dict.fromkeys(re.split(SPLIT[unit], text)):
            holders[piece].append(text)
    left = []
    for text in texts:
        first = originals[" ".join(text.split()).casefold()]
        pieces = re.split(SPLIT[unit], text)
        kept = [p for p in pieces if len(holders[p]) <= limit or holders[p][0] == first]
        left.append("".join("".join(kept).split()))
    return left


@pytest.mark.parametrize(("unit", "limit"), [("line", 3), ("paragraph", 1), ("paragraph", 3), ("line", 1)])
def test_the_documents_are_those_of_a_plain_loop(
    run_stage: Callable[..., Any], tmp_path: Path, unit: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SHARD_BYTES", 1)  # a shard for each file
    monkeypatch.setattr(repeat_passes, "PORTION_BYTES", 600)
    texts = made_texts()
    setting = {f"repeated_{unit}_documents": limit, "repeated_min_characters": 10}
    result = run_stage(sources=write(tmp_path / "in", texts), **setting, **PLAIN)
    rows = result.rows("documents")
    expected = cut_plainly(texts, unit, limit)
    distinct = dict.fromkeys(text.casefold() for text in expected if text)
    assert sorted("".join(row["text"].split()).casefold() for row in rows) == sorted(distinct)
    reasons = [row["reason"] for row in result.rows("rejects")]
    assert reasons.count("only_repeats") == expected.count("")
    for row in rows:
        assert row["num_bytes"] == len(row["text"].encode())
        assert row["doc_id"] == content_id(row["text"])


def test_what_is_cut_is_measured_again_and_told(run_stage: Callable[..., Any], tmp_path: Path) -> None:
    short = f"{MENU}\nSo it is."
    sources = write(
        tmp_path / "in", [f"{MENU}\n{story(n)}" for n in range(5)] + [short, short + "\nSo it was."]
    )
    rules = {"filters": ("documentation",), "repeated_line_documents": 2}
    result = run_stage(sources=sources, **{**PLAIN, **rules})
    reasons = {(row["step"], row["reason"]) for row in result.rows("rejects")}
    assert reasons == {("quality", "documentation.too_short")}  # nothing but "So it is." is judged
    assert sum(row["text"].count(MENU) for row in result.rows("documents")) == 1
    step = next(row for row in result.rows("funnel") if row["step"] == "repeats_cut")
    assert (step["documents_in"], step["documents_out"]) == (7, 7)
    assert step["bytes_in"] - step["bytes_out"] == 6 * (len(MENU) + 1)
    events = list(read_events(result.folder / "work" / "events.jsonl"))
    said = [event["message"] for event in events if event["event"] == "log"]
    assert "repeated text: 6 lines cut, 0.000 MB; 6 documents changed, 0 held nothing else" in said
    (table,) = (event for event in events if event.get("name") == "repeats")
    assert table["rows"] == [["line", 6, " | ".join([MENU] * 3)]]
    index = pq.read_table(result.parts["dedup_index"]).to_pylist()
    hashes = {row["doc_id"]: row["text_hash"].hex() for row in index}
    assert all(hashes[row["doc_id"]].startswith(row["doc_id"]) for row in result.rows("documents"))


def test_runs_of_words_and_source_code(run_stage: Callable[..., Any], tmp_path: Path) -> None:
    said = " ".join(NUMBERS)
    imports = "import os\nimport sys\nfrom pathlib import Path\n\n\n"
    body = "(path):\n    return {os.path.join(path, sys.argv[1]): Path}\n"
    code = [f"{imports}def {name}{body}" for name in "ab"]
    texts = [f"Alpha {said}, beta.", f"Gamma. {said.upper()}! Delta."]
    texts += [f"Epsilon: {' '.join(NUMBERS[:11])}."]
    rules = {"repeated_run_words": 12, "repeated_line_documents": 1, "repeated_min_characters": 5}
    first, second = write(tmp_path / "in", texts)
    (tmp_path / "in" / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in code))
    sources = (first, second, f"{tmp_path / 'in' / 'c.jsonl'};language=code")
    result = run_stage(sources=sources, **rules, **PLAIN)
    found = {row["text"].strip() for row in result.rows("documents")}
    assert found == {texts[0], "Gamma. ! Delta.", texts[2], *map(str.strip, code)}


def test_off_there_is_no_pass(run_stage: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("stages.corpus_prep.repeats._Repeats", None)
    result = run_stage(sources=write(tmp_path / "in", made_texts()), **PLAIN)
    assert max(sum(row["text"].count(MENU) for row in result.rows("documents")), 0) > 5
    steps = {row["step"]: row for row in result.rows("funnel")}
    before, step = steps["repaired"], steps["repeats_cut"]
    assert step["documents_in"] == step["documents_out"] == before["documents_out"]
    assert step["bytes_in"] == step["bytes_out"] == before["bytes_out"]


def test_short_runs_are_refused() -> None:
    with pytest.raises(ValidationError, match="just phrases"):
        CorpusPrepConfig(repeated_run_words=5)
